"""ReLU and Dropout on the device."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.forms import Form
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.activation import ReLU
from protocaffe.layers.dropout import Dropout


@override(ReLU)
class CudaReLU(Override[ReLU]):
    """One kernel per pass."""

    def __init__(self, device: Device, node: LayerNode[ReLU]) -> None:
        super().__init__(device, node)
        self._form = device.form(node.bottoms[0].data_storage)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[ReLU]) -> Form:
        return device.form(node.bottoms[0].data_storage)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self._form), self.data(top[0], self._form)
        slope = float(self.layer.negative_slope)
        self.device.run("relu_forward", x.size, x, y, slope, x.size)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            x, dy = self.data(bottom[0], self._form), self.diff(top[0], self._form)
            dx, slope = self.diff(bottom[0], self._form), float(self.layer.negative_slope)
            self.device.run("relu_backward", x.size, x, dy, dx, slope, x.size)


@override(Dropout)
class CudaDropout(Override[Dropout]):
    """Draws the same numbers in both passes, from one seed per forward; no mask in memory."""

    def __init__(self, device: Device, node: LayerNode[Dropout]) -> None:
        super().__init__(device, node)
        self._seed = self.xp.zeros(2, np.uint32)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Dropout]) -> bool:
        return node.layer.drops

    def prepare(self) -> None:
        """Draw a seed, from the random numbers that snapshots keep."""
        with self.device.active():
            self._seed.set(self.layer.rng.integers(1 << 32, size=2, dtype=np.uint32))

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._run(bottom[0].data, top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            self._run(top[0].diff, bottom[0].diff)

    def _run(self, x: np.ndarray, y: np.ndarray) -> None:
        threads = -(-x.size // 4)
        settings = (self._seed, self.layer.ratio, self.layer.scale, x.size)
        self.device.run("dropout", threads, x, y, *settings)
