"""SoftmaxWithLoss on the device, without waiting for a number."""

from __future__ import annotations

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.labels import bottom_name
from protocaffe.layers.loss import SoftmaxWithLoss
from protocaffe.proto.caffe_pb2 import LossParameter


@override(SoftmaxWithLoss)
class CudaSoftmaxWithLoss(Override[SoftmaxWithLoss]):
    """A label that is no class makes the loss NaN; who reads it then asks :meth:`explain`."""

    def __init__(self, device: Device, node: LayerNode[SoftmaxWithLoss]) -> None:
        super().__init__(device, node)
        layer = node.layer
        outer, self._classes, self._inner = layer.extents
        self._positions = outer * self._inner
        self._probability = self.xp.empty(layer.extents, layer.dtype)
        self._losses, self._counted = self.xp.empty((2, self._positions), layer.dtype)
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
        outputs = (self._probability, self._losses, self._counted, self._wrong)
        settings = (self._classes, self._inner, ignored is not None, ignored or 0)
        arrays = (bottom[0].data, bottom[1].data, *outputs)
        self.device.run_blocks("softmax_loss_forward", self._positions, *arrays, *settings)
        sums = (self._losses, self._counted, top[0].data, self._divisor)
        self.device.run_blocks("softmax_loss_total", 1, *sums, self._fixed, self._positions)
        if len(top) > 1:
            top[1].data[...] = self._probability.reshape(top[1].shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.layer.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            dx = bottom[0].diff
            reads = (self._probability, bottom[1].data, self._counted, top[0].diff, self._divisor)
            extents = (self._classes, self._inner, dx.size)
            self.device.run("softmax_loss_backward", dx.size, *reads, dx, *extents)

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
