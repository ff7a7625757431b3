"""Pooling on the device, by Caffe's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import DIVISOR, WIDE_BYTES, Device, divisor
from protocaffe.engines.cuda.forms import ChannelsLast, Form
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.planes import PoolingGeometry
from protocaffe.layers.pooling import Pooling
from protocaffe.proto.caffe_pb2 import PoolingParameter

AXIS = np.dtype(
    [(name, DIVISOR) for name in ("pixels", "windows", "stride")]
    + [(name, np.int32) for name in ("kernel", "pad")]
)
WINDOWS = np.dtype(
    [("rows", AXIS), ("columns", AXIS), ("groups", DIVISOR)]
    + [(name, np.int32) for name in ("channels", "numbers")]
)
"""The kernels' struct ``Windows``."""

KERNELS = {
    (True, False): ("max_pool_forward", "max_pool_backward"),
    (True, True): ("max_pool_wide_forward", "max_pool_wide_backward"),
    (False, False): ("ave_pool_forward", "ave_pool_backward"),
    (False, True): ("ave_pool_wide_forward", "ave_pool_wide_backward"),
}
"""The kernels of MAX (or AVE) that work on one channel per thread (or several)."""

TEAMS = 8
"""How many teams of threads a block of ``average_planes`` has."""

LANES = 32
"""How many threads a team has."""


def _windows(geometry: PoolingGeometry, channels: int, numbers: int) -> np.ndarray:
    extents = (geometry.input, geometry.output, geometry.stride)
    axes = [
        (*map(divisor, each), kernel, pad)
        for *each, kernel, pad in zip(*extents, geometry.kernel, geometry.pad, strict=True)
    ]
    return np.array((*axes, divisor(channels // numbers), channels, numbers), WINDOWS)


@override(Pooling)
class CudaPooling(Override[Pooling]):
    """MAX remembers where each maximum was, so that in-place layers after it do no harm."""

    def __init__(self, device: Device, node: LayerNode[Pooling]) -> None:
        super().__init__(device, node)
        geometry, (bottom, top) = node.layer.geometry, (node.bottoms[0], node.tops[0])
        self._form = device.image_form(bottom)
        self._top_form = self.top_forms(device, node)[0]
        self._extents = (bottom.shape[1], math.prod(bottom.shape[2:]))
        channels = bottom.shape[1] if self._form else 1
        wide = WIDE_BYTES // (2 if self._form and device.precision.is_half else 4)
        self._numbers = 1 if channels % wide else wide
        self._windows = _windows(geometry, channels, self._numbers)
        self._is_max = geometry.method == PoolingParameter.MAX
        self._forward, self._backward = KERNELS[self._is_max, self._numbers > 1]
        self._is_whole = geometry.pad == (0, 0) and all(
            kernel >= extent for kernel, extent in zip(geometry.kernel, geometry.input, strict=True)
        )
        if self._is_max:
            self._codes = self.xp.empty(top.count, np.int16)
        else:
            self._shares = self.xp.asarray((1 / geometry.areas).astype(np.float32))

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Pooling]) -> bool:
        geometry = node.layer.geometry
        if geometry.method == PoolingParameter.MAX:
            return math.prod(geometry.kernel) <= np.iinfo(np.int16).max
        return bool(geometry.method == PoolingParameter.AVE)

    @classmethod
    def top_forms(cls, device: Device, node: LayerNode[Pooling]) -> Sequence[Form]:
        """The places of maxima stay plain: they may be numbers that 16 bits do not hold."""
        form = device.image_form(node.bottoms[0]) and ChannelsLast.of(node.tops[0].shape)
        return [form, None][: len(node.tops)]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self._form), self.data(top[0], self._top_form)
        if self._is_max:
            self._run(self._forward, y.size, x, y, self._codes)
        elif self._is_whole:
            self._average(x, y)
        else:
            self._run(self._forward, y.size, x, self._shares, y)
        if len(top) > 1:
            self._run("max_pool_places", y.size, self._codes, self.data(top[1], None))

    def _run(self, name: str, count: int, *arrays: Any) -> None:
        threads = count // self._numbers
        self.device.run(name, threads, *arrays, self._windows, threads)

    def _average(self, x: Any, y: Any) -> None:
        """Set y to the averages of whole planes, which are too few for one thread each."""
        channels, area = self._extents
        if self._form is None:
            self.device.run_blocks("average_planes", -(-y.size // TEAMS), x, y, y.size, area)
            return
        name = "average_pixels" if self._numbers == 1 else "average_wide_pixels"
        blocks = -(-channels // (LANES * self._numbers))
        self.device.run_blocks(name, blocks * (y.size // channels), x, y, channels, area)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx = self.diff(top[0], self._top_form), self.diff(bottom[0], self._form, True)
        kept = self._codes if self._is_max else self._shares
        self._run(self._backward, dx.size, dy, kept, dx)
