"""Pooling over windows of an image, and the spatial pyramid made of it."""

from __future__ import annotations

import math
from collections.abc import Callable

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.planes import Pair, PlanePooling, PoolingGeometry, StochasticPooling
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import PoolingParameter


@register("Pooling")
class Pooling(Layer):
    """The maximum, the average or a random pixel of every window.

    Output extent: ceil((in + 2 pad - kernel) / stride) + 1, or floor with ``round_mode: FLOOR``
    (or ``ceil_mode: false``, its name in other software);
    with padding, a last window that starts at or beyond in + pad is dropped. MAX looks at real
    pixels only, and the first of equal ones gets the gradient. AVE divides by the window's area
    within the padded image. ``global_pooling`` makes the whole image one window.

    STOCHASTIC (no padding; for x of at least 0, such as a ReLU's) draws in TRAIN pixel i with
    probability x_i / sum(x), in row order the first whose running sum reaches a random share of
    the sum; it gets the gradient. TEST: y = sum(x^2) / sum(x), 0 where that sum is not positive.

    Bottoms: x (N, C, H, W). Tops: y (N, C, H', W'); with MAX, optionally the index h W + w of
    each maximum in its own plane.
    Reference: Caffe's PoolingLayer (there STOCHASTIC runs on a GPU only); Zeiler and Fergus,
    "Stochastic Pooling for Regularization of Deep Convolutional Neural Networks", ICLR 2013.

    Example:
        layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
            pooling_param { pool: MAX kernel_size: 3 stride: 2 } }

    Attributes:
        geometry: the windows, known after ``reshape``.
    """

    bottoms = (1, 1)
    tops = (1, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.pooling_param
        self.method = param.pool
        if self.method != PoolingParameter.MAX and len(top) > 1:
            raise self.error("only pool: MAX has a second top (the index of each maximum)")
        self.global_pooling = param.global_pooling
        self.floor = param.round_mode == PoolingParameter.FLOOR or not param.ceil_mode
        if not param.avg_include_pad:
            raise self.error("avg_include_pad: false is not available; averages count padding")
        self.pad = _pair(param, "pad", "pad_h", "pad_w", self.error)
        if self.method == PoolingParameter.STOCHASTIC and any(self.pad):
            raise self.error("pool: STOCHASTIC takes no pad; use MAX or AVE")
        self.stride = _pair(param, "stride", "stride_h", "stride_w", self.error)
        self.kernel = self._kernel(param)

    def _kernel(self, param: PoolingParameter) -> Pair:
        given = [each for each in ("kernel_size", "kernel_h", "kernel_w") if param.HasField(each)]
        if self.global_pooling:
            if given:
                raise self.error(f"global_pooling takes no {given[0]}: the window is the image")
            if self.pad != (0, 0) or self.stride != (1, 1):
                raise self.error("global_pooling needs pad 0 and stride 1")
            return (0, 0)
        if not given:
            raise self.error("kernel_size is missing (or kernel_h and kernel_w)")
        kernel = _pair(param, "kernel_size", "kernel_h", "kernel_w", self.error)
        if not all(kernel) or not all(self.stride):
            raise self.error(
                f"kernel and stride must be at least 1, got {kernel} and {self.stride}"
            )
        if any(pad >= extent for pad, extent in zip(self.pad, kernel, strict=True)):
            raise self.error(f"pad {self.pad} must be smaller than the kernel {kernel}")
        return kernel

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        extents = (shape[2], shape[3])
        kernel = extents if self.global_pooling else self.kernel
        self.geometry = PoolingGeometry.fit(
            self.method, kernel, self.stride, self.pad, extents, self.floor
        )
        if min(self.geometry.output) < 1:
            raise self.error(
                f"kernel {kernel} with pad {self.pad} does not fit a bottom of shape {shape}"
            )
        self._planes = self._pooling()
        for blob in top:
            blob.reshape(*shape[:2], *self.geometry.output)

    def _pooling(self) -> PlanePooling:
        settings = (self.geometry, self.xp, self.dtype)
        if self.method != PoolingParameter.STOCHASTIC:
            return PlanePooling(*settings)
        return StochasticPooling(*settings, self.rng if self.phase == caffe_pb2.TRAIN else None)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._planes.forward(_planes(bottom[0].data), _planes(top[0].data))
        if len(top) > 1:
            _planes(top[1].data)[...] = self._planes.index()

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        if self.method == PoolingParameter.STOCHASTIC and self.phase != caffe_pb2.TRAIN:
            raise self.error("pool: STOCHASTIC has a gradient in phase TRAIN only")
        self._planes.backward(_planes(top[0].diff), _planes(bottom[0].diff))


def _planes(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _pair(
    param: PoolingParameter, both: str, high: str, wide: str, error: Callable[[str], Exception]
) -> Pair:
    """Read a setting that is given for both axes at once, or for each."""
    separate = [name for name in (high, wide) if param.HasField(name)]
    if not separate:
        value = getattr(param, both)
        return (value, value)
    if param.HasField(both):
        raise error(f"give either {both} or {high} and {wide}, not both")
    if len(separate) == 1:
        raise error(f"{high} and {wide} must be given together, got only {separate[0]}")
    return (getattr(param, high), getattr(param, wide))


@register("SPP")
class SPP(Layer):
    """Spatial pyramid: level l pools the image into 2^l x 2^l bins, all levels side by side.

    Per level and axis: kernel = stride = ceil(in / bins), pad = floor((kernel bins - in + 1) / 2),
    then as Pooling.

    Bottoms: x (N, C, H, W). Tops: y (N, C * sum of bins^2), each level channel by channel; with
    ``pyramid_height: 1`` it stays (N, C, 1, 1).
    Reference: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", ECCV 2014;
    Caffe's SPPLayer.

    Example:
        layer { name: "spp" type: "SPP" bottom: "conv5" top: "spp"
            spp_param { pyramid_height: 3 pool: MAX } }

    Attributes:
        levels: the poolings from coarse to fine, known after ``reshape``.
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.spp_param
        self.method = int(param.pool)
        if self.method == PoolingParameter.STOCHASTIC:
            raise self.error("pool: STOCHASTIC is not available in a pyramid; use MAX or AVE")
        if param.pyramid_height < 1:
            raise self.error("pyramid_height must be at least 1")
        self.pyramid_height = param.pyramid_height

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4 or not all(shape[2:]):
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        geometries = [
            self._level((shape[2], shape[3]), 2**level) for level in range(self.pyramid_height)
        ]
        self.levels = [PlanePooling(each, self.xp, self.dtype) for each in geometries]
        if self.pyramid_height == 1:
            top[0].reshape(*shape[:2], 1, 1)
        else:
            bins = sum(math.prod(each.output) for each in geometries)
            top[0].reshape(shape[0], shape[1] * bins)

    def _level(self, extents: Pair, bins: int) -> PoolingGeometry:
        kernel = (-(-extents[0] // bins), -(-extents[1] // bins))
        pad = ((kernel[0] * bins - extents[0] + 1) // 2, (kernel[1] * bins - extents[1] + 1) // 2)
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            raise self.error(
                f"planes of {extents[0]}x{extents[1]} are too small for {bins} bins per axis; "
                f"lower pyramid_height ({self.pyramid_height}) or enlarge the input"
            )
        return PoolingGeometry.fit(self.method, kernel, kernel, pad, extents)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = _planes(bottom[0].data)
        for level, part in zip(self.levels, self._parts(top[0].data, bottom[0]), strict=True):
            y = self.xp.empty((len(x), *level.geometry.output), self.dtype)
            level.forward(x, y)
            part[...] = y.reshape(part.shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dx = _planes(bottom[0].diff)
        dx[...] = 0
        share = self.xp.empty_like(dx)
        for level, part in zip(self.levels, self._parts(top[0].diff, bottom[0]), strict=True):
            level.backward(part.reshape(len(dx), *level.geometry.output), share)
            dx += share

    def _parts(self, top: Array, bottom: Blob) -> list[Array]:
        """View the top as one (N, C * bins^2) array per level."""
        rows = top.reshape(bottom.shape[0], -1)
        sizes = [bottom.shape[1] * math.prod(level.geometry.output) for level in self.levels]
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return [rows[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]
