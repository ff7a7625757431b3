"""Layers on the device that treat every number by itself; their tops lie as their bottoms do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from protocaffe.blob import Blob, Storage, serving
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import OfOneForm, override
from protocaffe.layers.activation import (
    BNLL,
    ELU,
    AbsVal,
    Clip,
    Exp,
    Log,
    Neuron,
    Power,
    ReLU,
    ReLU6,
    Sigmoid,
    Swish,
    TanH,
    Threshold,
)
from protocaffe.layers.dropout import Dropout


@override(AbsVal, BNLL, Clip, ELU, Exp, Log, Power, Sigmoid, Swish, TanH, Threshold)
class CudaFunction(OfOneForm[Neuron]):
    """The layer's own code on float32 numbers with channels last, as they lie."""

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Neuron]) -> bool:
        form = device.form(node.bottoms[0].data_storage)
        return form is not None and not device.precision.is_half

    @contextmanager
    def _as_they_lie(self) -> Iterator[None]:
        def serve(storage: Storage) -> Any:
            return self.device.serve(storage, self.form)

        plain, serving.array = serving.array, serve
        try:
            yield
        finally:
            serving.array = plain

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        with self._as_they_lie():
            self.layer.forward(bottom, top)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        with self._as_they_lie():
            self.layer.backward(top, propagate_down, bottom)


@override(ReLU)
class CudaReLU(OfOneForm[ReLU]):
    """One kernel per pass."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self.form), self.data(top[0], self.form)
        slope = float(self.layer.negative_slope)
        self.device.run_wide("relu_forward", x.size, x, y, slope, x.size)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            x, dy = self.data(bottom[0], self.form), self.diff(top[0], self.form)
            slope, dx = float(self.layer.negative_slope), self.diff(bottom[0], self.form, True)
            self.device.run_wide("relu_backward", x.size, x, dy, dx, slope, x.size)


@override(ReLU6)
class CudaReLU6(OfOneForm[ReLU6]):
    """One kernel per pass."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self.form), self.data(top[0], self.form)
        self.device.run_wide("relu6_forward", x.size, x, y, x.size)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            y, dy = self.data(top[0], self.form), self.diff(top[0], self.form)
            dx = self.diff(bottom[0], self.form, overwrites=True)
            self.device.run_wide("relu6_backward", y.size, y, dy, dx, y.size)


@override(Dropout)
class CudaDropout(OfOneForm[Dropout]):
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
        self._run(self.data(bottom[0], self.form), self.data(top[0], self.form))

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dy, dx = self.diff(top[0], self.form), self.diff(bottom[0], self.form, True)
            self._run(dy, dx)

    def _run(self, x: Any, y: Any) -> None:
        settings = (self._seed, self.layer.ratio, self.layer.scale, x.size)
        self.device.run_wide("dropout", x.size, x, y, *settings)
