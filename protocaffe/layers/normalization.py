"""Layers that bring activations to a common scale: BatchNorm, MVN, LRN."""

from __future__ import annotations

import math
from typing import Any

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.saved import SavedInput
from protocaffe.layers.windows import window_offsets
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import LRNParameter


def _standardized_backward(xp: Any, dy: Array, y: Array, axes: tuple[int, ...], dx: Array) -> None:
    """Set dx = dy - mean(dy) - mean(dy y) y, means over the axes; dx may be dy."""
    product = dy * y
    xp.multiply(y, product.mean(axis=axes, keepdims=True), out=product)
    xp.subtract(dy, dy.mean(axis=axes, keepdims=True), out=dx)
    dx -= product


@register("BatchNorm")
class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + eps), per channel (axis 1).

    In batch mode (TRAIN, unless ``use_global_stats`` says else) mean and biased variance are
    the batch's, and every forward updates the running sums: sum = sum * fraction + new, with
    the unbiased variance. In global mode they are the running sums divided by the third blob.
    There is no learned scale or shift; a Scale layer after this one has them.

    Backward: dx = (dy - mean(dy) - mean(dy y) y) / sqrt(variance + eps) in batch mode,
    dy / sqrt(variance + eps) in global mode.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameters, never learned: sum of means (C), sum of variances (C), sum of weights (1).
    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015; Caffe's BatchNormLayer.

    Example:
        layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
    """

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.batch_norm_param
        self.eps = param.eps
        self.fraction = param.moving_average_fraction
        if param.HasField("use_global_stats"):
            self.use_global_stats = param.use_global_stats
        else:
            self.use_global_stats = self.phase == caffe_pb2.TEST
        if bottom[0].num_axes < 2:
            raise self.error(f"needs a bottom (N, C, ...), got shape {bottom[0].shape}")
        self.channels = bottom[0].shape[1]
        for shape in ((self.channels,), (self.channels,), (1,)):
            self.add_blob(shape)
        self._freeze_blobs()

    def _freeze_blobs(self) -> None:
        specs = self.param.param
        for index in range(len(self.blobs)):
            if index == len(specs):
                specs.add(lr_mult=0)
            elif specs[index].lr_mult != 0:
                raise self.error(
                    f"its blobs are running statistics, not learned; param {index} must have "
                    f"lr_mult 0, got {specs[index].lr_mult:g}"
                )

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) < 2 or shape[1] != self.channels:
            raise self.error(
                f"was set up for {self.channels} channels; the bottom now has shape {shape}"
            )
        top[0].reshape(shape)
        self._extents = (shape[0], self.channels, math.prod(shape[2:]))
        self._y = self.xp.empty(self._extents, self.dtype)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp = self.xp
        x, y = bottom[0].data.reshape(self._extents), top[0].data.reshape(self._extents)
        if self.use_global_stats:
            mean, variance = self.running_statistics()
            xp.subtract(x, mean[:, None], out=self._y)
        else:
            mean = x.mean(axis=(0, 2))
            xp.subtract(x, mean[:, None], out=self._y)
            xp.multiply(self._y, self._y, out=y)
            variance = y.mean(axis=(0, 2))
            self.update_running_statistics(mean, variance, x.size // self.channels)
        self._deviation = xp.sqrt(variance + self.eps)[:, None]
        # Layers after this one may overwrite the top in place; backward needs y.
        self._y /= self._deviation
        y[...] = self._y

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx = top[0].diff.reshape(self._extents), bottom[0].diff.reshape(self._extents)
        if self.use_global_stats:
            self.xp.divide(dy, self._deviation, out=dx)
        else:
            _standardized_backward(self.xp, dy, self._y, (0, 2), dx)
            dx /= self._deviation

    def running_statistics(self) -> tuple[Array, Array]:
        """Return the running mean and variance (C), zeros before the first update."""
        mean, variance, weight = (blob.data for blob in self.blobs)
        factor = (weight != 0) / self.xp.where(weight == 0, 1, weight)
        return mean * factor, variance * factor

    def update_running_statistics(self, mean: Array, variance: Array, count: int) -> None:
        """Add one batch's mean and biased variance (C), taken over ``count`` numbers each."""
        means, variances, weight = (blob.data for blob in self.blobs)
        unbiased = count / (count - 1) if count > 1 else 1.0
        for sums, new in ((means, mean), (variances, variance * unbiased), (weight, 1)):
            sums *= self.fraction
            sums += new


@register("MVN")
class MVN(Layer):
    """y = (x - mean) / (deviation + eps): every plane brought to mean 0 and variance 1.

    Mean and (biased) deviation per sample and channel, or per sample with ``across_channels``.
    Backward: dx = (dy - mean(dy) - mean(dy y) y) / (deviation + eps), or dy - mean(dy) with
    ``normalize_variance: false``.

    Bottoms: x, up to 4 axes. Tops: y, always 4 axes (missing ones are 1).
    Reference: Caffe's MVNLayer.

    Example:
        layer { name: "mvn" type: "MVN" bottom: "data" top: "normalized"
            mvn_param { across_channels: true } }
    """

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.mvn_param
        self.normalize_variance = param.normalize_variance
        self.across_channels = param.across_channels
        self.eps = param.eps

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = tuple(bottom[0].legacy_shape(axis) for axis in range(4))
        planes = shape[0] if self.across_channels else shape[0] * shape[1]
        self._extents = (planes, bottom[0].count // max(1, planes))
        top[0].reshape(shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp = self.xp
        x, y = bottom[0].data.reshape(self._extents), top[0].data.reshape(self._extents)
        centred = x - x.mean(axis=1, keepdims=True)
        if self.normalize_variance:
            variance = (centred * centred).mean(axis=1, keepdims=True)
            self._deviation = xp.sqrt(variance) + self.eps
            centred /= self._deviation
            self._y = centred
        y[...] = centred

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx = top[0].diff.reshape(self._extents), bottom[0].diff.reshape(self._extents)
        if self.normalize_variance:
            _standardized_backward(self.xp, dy, self._y, (1,), dx)
            dx /= self._deviation
        else:
            self.xp.subtract(dy, dy.mean(axis=1, keepdims=True), out=dx)


@register("LRN")
class LRN(Layer):
    """y = x * s^-beta, s = k + alpha * mean of x^2 over the neighbourhood.

    ACROSS_CHANNELS: the neighbourhood is ``local_size`` channels at the same pixel.
    WITHIN_CHANNEL: local_size x local_size pixels of the same channel, and k is 1 whatever the
    prototxt says. What lies outside counts as 0, and the mean is always over the full size.

    Backward: dx = dy s^-beta - 2 alpha beta x * mean of (dy y / s) over the neighbourhood.

    Bottoms: x (N, C, H, W). Tops: y, the same shape.
    Reference: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural
    Networks", NIPS 2012; Caffe's LRNLayer.

    Example:
        layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
            lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }

    Attributes:
        size, alpha, beta, k: of the formula.
        region: ``LRNParameter.ACROSS_CHANNELS`` or ``WITHIN_CHANNEL``.
    """

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.lrn_param
        self.region = param.norm_region
        self.size = param.local_size
        self.alpha = param.alpha
        self.beta = param.beta
        self.k = param.k if self.region == LRNParameter.ACROSS_CHANNELS else 1.0
        if self.size % 2 == 0:
            raise self.error(f"local_size must be odd, got {self.size}")
        self._x = SavedInput()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        top[0].reshape(shape)
        axes = (1,) if self.region == LRNParameter.ACROSS_CHANNELS else (2, 3)
        pad = self.size // 2
        self._windows = {
            axis: window_offsets(shape[axis], shape[axis], self.size, pad=pad) for axis in axes
        }

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = self._x.save(bottom[0], top[0])
        self._s = self._neighbourhood_mean(x * x)
        self._s *= self.alpha
        self._s += self.k
        self.xp.multiply(x, self._s**-self.beta, out=top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        x, dy = self._x.load(bottom[0]), top[0].diff
        direct = dy * self._s**-self.beta
        # y is not read from the top, which a later layer may have overwritten: dy y = direct x.
        shared = self._neighbourhood_mean(direct * x / self._s)
        shared *= x
        shared *= 2 * self.alpha * self.beta
        self.xp.subtract(direct, shared, out=bottom[0].diff)

    def _neighbourhood_mean(self, values: Array) -> Array:
        for axis, offsets in self._windows.items():
            sums = self.xp.zeros_like(values)
            before = (slice(None),) * axis
            for offset in offsets:
                grid, image = (*before, offset.grid), (*before, offset.image)
                sums[grid] += values[image]
            values = sums
        values /= self.size ** len(self._windows)
        return values
