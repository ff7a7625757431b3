"""LRN and BatchNorm on the device."""

from __future__ import annotations

import math

from protocaffe.blob import Array, Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.normalization import LRN, BatchNorm
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


@override(BatchNorm)
class CudaBatchNorm(Override[BatchNorm]):
    """Two kernels forward and two backward; what it normalized is kept, as by the layer."""

    def __init__(self, device: Device, node: LayerNode[BatchNorm]) -> None:
        super().__init__(device, node)
        shape, dtype = node.bottoms[0].shape, node.layer.dtype
        self._images, self._channels, self._area = shape[0], shape[1], math.prod(shape[2:])
        self._y = self.xp.empty(shape, dtype)
        statistics = self.xp.zeros((4, self._channels), dtype)
        self._mean, self._variance, self._plain, self._product = statistics

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y, layer = bottom[0].data, top[0].data, self.layer
        if layer.use_global_stats:
            mean, variance = layer.running_statistics()
            self._mean[...], self._variance[...] = mean, variance
        else:
            self._measure(x)
        arrays = (x, self._mean, self._variance, y, self._y)
        settings = (layer.eps, self._channels, self._area, x.size)
        self.device.run("normalize", x.size, *arrays, *settings)

    def _measure(self, x: Array) -> None:
        statistics = (self._mean, self._variance)
        extents = (self._images, self._channels, self._area)
        self.device.run_blocks("channel_statistics", self._channels, x, *statistics, *extents)
        count = self._images * self._area
        unbiased = count / (count - 1) if count > 1 else 1.0
        sums = [blob.data for blob in self.layer.blobs]
        settings = (self.layer.fraction, unbiased, self._channels)
        self.device.run("running_statistics", self._channels, *statistics, *sums, *settings)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx, means = top[0].diff, bottom[0].diff, (self._plain, self._product)
        if not self.layer.use_global_stats:  # else the means are 0
            extents = (self._images, self._channels, self._area)
            self.device.run_blocks("gradient_means", self._channels, dy, self._y, *means, *extents)
        arrays = (dy, self._y, *means, self._variance, dx)
        settings = (self.layer.eps, self._channels, self._area, dy.size)
        self.device.run("normalize_backward", dy.size, *arrays, *settings)
