"""LRN across channels on the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import DIVISOR, Device, divisor
from protocaffe.engines.cuda.forms import Form
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.normalization import LRN
from protocaffe.proto.caffe_pb2 import LRNParameter

NORM = np.dtype(
    [(name, DIVISOR) for name in ("runs", "area")]
    + [(name, np.int32) for name in ("channels", "half", "last")]
    + [(name, np.float32) for name in ("k", "alpha", "beta")]
)
"""The kernels' struct ``Norm``."""

RUN = 8
"""Channels per thread."""

NEAR = ("lrn_forward", "lrn_backward")
FAR = ("lrn_far_forward", "lrn_far_backward")
KERNELS = {size: NEAR if size <= 5 else FAR for size in range(1, 19, 2)}
"""Which kernels normalize over so many channels; those for more need more registers."""


@override(LRN)
class CudaLRN(Override[LRN]):
    """Only x is needed in backward; in place, it is kept."""

    def __init__(self, device: Device, node: LayerNode[LRN]) -> None:
        super().__init__(device, node)
        layer, (images, channels, *rest) = node.layer, node.bottoms[0].shape
        self._form = self.top_form(device, node)
        runs, area = -(-channels // RUN), math.prod(rest)
        extents = (divisor(runs), divisor(area), channels, layer.size // 2, self._form is not None)
        self._norm = np.array((*extents, layer.k, layer.alpha / layer.size, layer.beta), NORM)
        self._threads = images * runs * area
        self._forward, self._backward = KERNELS[layer.size]
        self._x: Any = None
        if node.tops[0] is node.bottoms[0]:
            count, form = node.bottoms[0].count, self._form
            self._x = device.empty(form) if form else self.xp.empty(count, np.float32)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[LRN]) -> bool:
        layer = node.layer
        return layer.region == LRNParameter.ACROSS_CHANNELS and layer.size in KERNELS

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[LRN]) -> Form:
        return device.image_form(node.bottoms[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self._form), self.data(top[0], self._form)
        if self._x is not None:
            self._x[...] = x
            x = self._x
        self.device.run(self._forward, self._threads, x, y, self._norm, self._threads)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            x = self.data(bottom[0], self._form) if self._x is None else self._x
            dy, dx = self.diff(top[0], self._form), self.diff(bottom[0], self._form, True)
            if self._x is not None:
                dy = dy.copy()  # threads read their neighbours'
            arguments = (x, dy, dx, self._norm, self._threads)
            self.device.run(self._backward, self._threads, *arguments)
