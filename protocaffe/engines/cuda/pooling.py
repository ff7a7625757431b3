"""Pooling on the device, by Caffe's rules."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.pooling import Pooling
from protocaffe.proto.caffe_pb2 import PoolingParameter


@override(Pooling)
class CudaPooling(Override[Pooling]):
    """MAX remembers where each maximum was, so that in-place layers after it do no harm."""

    def __init__(self, device: Device, node: LayerNode[Pooling]) -> None:
        super().__init__(device, node)
        geometry = node.layer.geometry
        self._is_max = geometry.method == PoolingParameter.MAX
        self._settings = (
            *(*geometry.input, *geometry.output),
            *(*geometry.kernel, *geometry.stride, *geometry.pad),
        )
        if self._is_max:
            self._index = self.xp.empty(node.tops[0].count, np.int32)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Pooling]) -> bool:
        return bool(node.layer.method != PoolingParameter.STOCHASTIC)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = bottom[0].data, top[0].data
        if not self._is_max:
            self.device.run("ave_pool_forward", y.size, x, y, *self._settings, y.size)
            return
        self.device.run("max_pool_forward", y.size, x, y, self._index, *self._settings, y.size)
        if len(top) > 1:
            top[1].data[...] = self._index.reshape(top[1].shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx = top[0].diff, bottom[0].diff
        if self._is_max:
            arrays = (dy, self._index, dx)
            self.device.run("max_pool_backward", dx.size, *arrays, *self._settings, dx.size)
        else:
            self.device.run("ave_pool_backward", dx.size, dy, dx, *self._settings, dx.size)
