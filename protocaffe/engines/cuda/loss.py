"""SoftmaxWithLoss on the device, without waiting for a number."""

from __future__ import annotations

from typing import Any

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.engines.cuda.sums import slice_channels
from protocaffe.layers.labels import bottom_name
from protocaffe.layers.loss import SoftmaxWithLoss
from protocaffe.proto.caffe_pb2 import LossParameter

MANY = 1024
"""Positions from which on each is worth only a thread, not a block, if its classes are few."""

FEW = 64
"""Classes that one thread goes through."""


@override(SoftmaxWithLoss)
class CudaSoftmaxWithLoss(Override[SoftmaxWithLoss]):
    """A label that is no class makes the loss NaN; who reads it then asks :meth:`explain`."""

    def __init__(self, device: Device, node: LayerNode[SoftmaxWithLoss]) -> None:
        super().__init__(device, node)
        layer = node.layer
        outer, self._classes, self._inner = layer.extents
        self._positions = outer * self._inner
        self._by_threads = self._positions >= MANY and self._classes <= FEW
        self._probability = self.xp.empty(layer.extents, layer.dtype)
        self._losses_and_counts = self.xp.empty((2, self._positions), layer.dtype)
        self._divisor = self.xp.empty(1, layer.dtype)
        self._wrong = self.xp.zeros(2, layer.dtype)
        divisors: dict[int, float] = {
            LossParameter.VALID: 0.0,  # the kernel counts
            LossParameter.FULL: self._positions,
            LossParameter.BATCH_SIZE: outer,
        }
        self._fixed = float(divisors.get(layer.normalization.mode, 1.0))

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        ignored = self.layer.ignore_label
        outputs = (self._probability, *self._losses_and_counts, self._wrong)
        settings = (self._classes, self._inner, ignored is not None, ignored or 0)
        arguments = (bottom[0].data, bottom[1].data, *outputs, *settings)
        if self._by_threads:
            positions = self._positions
            self.device.run("softmax_loss_forward_many", positions, *arguments, positions)
        else:
            self.device.run_blocks("softmax_loss_forward", self._positions, *arguments)
        parts = self._add_up()
        sums = (*parts, top[0].data, self._divisor)
        self.device.run_blocks("softmax_loss_total", 1, *sums, self._fixed, parts.shape[1])
        if len(top) > 1:
            top[1].data[...] = self._probability.reshape(top[1].shape)

    def _add_up(self) -> Any:
        """Return losses and counts, or where they are many, sums of their parts."""
        both = self._losses_and_counts
        slicing = slice_channels((1, *both.shape), False, both.itemsize)
        if slicing.slices == 1:
            return both
        parts = self.xp.empty((2, slicing.slices), both.dtype)
        self.device.run_blocks(
            "channel_sums", slicing.blocks, both, parts, 1.0, False, *slicing.extents
        )
        return parts

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.layer.refuse_label_gradient(propagate_down)
        if not propagate_down[0]:
            return
        dx, counted = bottom[0].diff, self._losses_and_counts[1]
        reads = (self._probability, bottom[1].data, counted, top[0].diff, self._divisor)
        extents = (self._classes, self._inner)
        if self._by_threads:
            name, count = "softmax_loss_backward_many", self._positions
        else:
            name, count = "softmax_loss_backward", dx.size
        self.device.run(name, count, *reads, dx, *extents, count)

    def explain(self) -> None:
        """Raise an error if a label was no class since the last time."""
        with self.device.active():
            found, label = self._wrong.get()
            self._wrong.fill(0)
        if found:
            raise self.layer.error(
                f"label {label:g} is out of range (blob {bottom_name(self.layer, 1)}); "
                f"legal are whole numbers from 0 to {self._classes - 1}"
            )
