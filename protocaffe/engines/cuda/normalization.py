"""LRN on the device."""

from __future__ import annotations

import math

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.normalization import LRN
from protocaffe.proto.caffe_pb2 import LRNParameter


@override(LRN)
class CudaLRN(Override[LRN]):
    """Across channels; in place, x is kept."""

    def __init__(self, device: Device, node: LayerNode[LRN]) -> None:
        super().__init__(device, node)
        shape = node.bottoms[0].shape
        self._extents = (node.layer.size, shape[1], math.prod(shape[2:]))
        self._s = self.xp.empty(shape, node.layer.dtype)
        self._ratio = self.xp.empty_like(self._s)
        self._x = self.xp.empty_like(self._s) if node.tops[0] is node.bottoms[0] else None

    @classmethod
    def fits(cls, device: Device, node: LayerNode[LRN]) -> bool:
        return bool(node.layer.region == LRNParameter.ACROSS_CHANNELS)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y, layer = bottom[0].data, top[0].data, self.layer
        if self._x is not None:
            self._x[...] = x
        settings = (layer.k, layer.alpha / layer.size, *self._extents, x.size)
        self.device.run("lrn_scale", x.size, x, self._s, *settings)
        self.device.run("lrn_output", x.size, x, self._s, y, layer.beta, x.size)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        x = bottom[0].data if self._x is None else self._x
        dy, dx, layer = top[0].diff, bottom[0].diff, self.layer
        self.device.run("lrn_ratio", x.size, x, self._s, dy, self._ratio, layer.beta, x.size)
        factor = 2 * layer.alpha * layer.beta / layer.size
        settings = (layer.beta, factor, *self._extents, x.size)
        self.device.run("lrn_backward", x.size, x, self._s, self._ratio, dy, dx, *settings)
