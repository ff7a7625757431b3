"""Layers that bring activations to a common scale: BatchNorm, MVN, Normalize, LRN."""

from __future__ import annotations

import math
from typing import Any

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.saved import SavedInput
from protocaffe.layers.windows import window_offsets
from protocaffe.parallel import each_chunk
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
    A Scale layer after this one has the learned scale and bias; or this layer itself, with
    ``scale_bias`` or either filler, as in NVIDIA's fork of Caffe: y = scale (x - mean) /
    sqrt(variance + eps) + bias. The running statistics are then means themselves, of biased
    variances: running = fraction * running + (1 - fraction) * new; and lr_mult and decay_mult are
    0 for them and 1 for scale and bias, whatever ``param`` says.

    Backward: dx = (dy - mean(dy) - mean(dy y) y) / sqrt(variance + eps) in batch mode,
    dy / sqrt(variance + eps) in global mode.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameters, never learned: sum of means (C), sum of variances (C), sum of weights (1); with
    ``scale_bias`` then scale (C), bias (C).
    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015; Caffe's BatchNormLayer.

    Example:
        layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
    """

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    @classmethod
    def variant(cls, param: caffe_pb2.LayerParameter) -> type[Layer]:
        own = param.batch_norm_param
        scales = own.scale_bias or own.HasField("scale_filler") or own.HasField("bias_filler")
        return ScaledBatchNorm if scales else cls

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.batch_norm_param
        self.eps = param.eps
        self.fraction = param.moving_average_fraction
        if param.HasField("use_global_stats"):
            self.use_global_stats = param.use_global_stats
        else:
            self.use_global_stats = self.phase == caffe_pb2.TEST
        self.read_channels(bottom)
        for shape in ((self.channels,), (self.channels,), (1,)):
            self.add_blob(shape)
        self._freeze_blobs()

    def read_channels(self, bottom: list[Blob]) -> None:
        """Note how many channels there are."""
        if bottom[0].num_axes < 2:
            raise self.error(f"needs a bottom (N, C, ...), got shape {bottom[0].shape}")
        self.channels = bottom[0].shape[1]

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
        x, y = bottom[0].data.reshape(self._extents), top[0].data.reshape(self._extents)
        self.normalize(x, y)

    def normalize(self, x: Array, y: Array) -> None:
        """Set y, which may be x, and ``self._y`` to what normalization makes of x."""
        xp = self.xp
        if self.use_global_stats:
            mean, variance = self.running_statistics()
        else:
            mean, variance = xp.empty((2, self.channels), x.dtype)
        self._deviation = xp.empty_like(mean)

        def work(x: Array, kept: Array, y: Array, *statistics: Array) -> None:
            mean, variance, deviation = (each[:, None, None] for each in statistics)
            if not self.use_global_stats:
                x.mean(axis=(1, 2), keepdims=True, out=mean)
            xp.subtract(x, mean, out=kept)
            if not self.use_global_stats:
                xp.multiply(kept, kept, out=y)
                y.mean(axis=(1, 2), keepdims=True, out=variance)
            xp.sqrt(variance + self.eps, out=deviation)
            kept /= deviation
            # Layers after this one may overwrite the top in place; backward needs y.
            y[...] = kept

        arrays = (each.swapaxes(0, 1) for each in (x, self._y, y))
        each_chunk(xp, work, *arrays, mean, variance, self._deviation)
        if not self.use_global_stats:
            self.update_running_statistics(mean, variance, x.size // self.channels)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dy, dx = top[0].diff.reshape(self._extents), bottom[0].diff.reshape(self._extents)
            self.normalize_backward(dy, dx)

    def normalize_backward(self, dy: Array, dx: Array) -> None:
        """Set dx for the gradient dy of ``self._y``; both may be one array."""

        def work(dy: Array, y: Array, dx: Array, deviation: Array) -> None:
            deviation = deviation[:, None, None]
            if self.use_global_stats:
                self.xp.divide(dy, deviation, out=dx)
            else:
                _standardized_backward(self.xp, dy, y, (1, 2), dx)
                dx /= deviation

        arrays = (each.swapaxes(0, 1) for each in (dy, self._y, dx))
        each_chunk(self.xp, work, *arrays, self._deviation)

    def running_statistics(self) -> tuple[Array, Array]:
        """Return the running mean and variance (C), zeros before the first update."""
        mean, variance, weight = (blob.data for blob in self.blobs[:3])
        factor = (weight != 0) / self.xp.where(weight == 0, 1, weight)
        return mean * factor, variance * factor

    def update_running_statistics(self, mean: Array, variance: Array, count: int) -> None:
        """Add one batch's mean and biased variance (C), taken over ``count`` numbers each."""
        means, variances, weight = (blob.data for blob in self.blobs)
        unbiased = count / (count - 1) if count > 1 else 1.0
        for sums, new in ((means, mean), (variances, variance * unbiased), (weight, 1)):
            sums *= self.fraction
            sums += new


LEAST_EPS = 1e-5
"""What NVIDIA's fork of Caffe raises a smaller eps to, because cuDNN takes no less."""


class ScaledBatchNorm(BatchNorm):
    """BatchNorm with a learned scale and bias of its own.

    Attributes:
        scale, bias: the learned parameters, C numbers each.
    """

    settings = ("batch_norm_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        param = self.param.batch_norm_param
        self.eps = max(self.eps, LEAST_EPS)
        one = caffe_pb2.FillerParameter(value=1)
        scale_filler = param.scale_filler if param.HasField("scale_filler") else one
        self.scale = self.add_blob((self.channels,), scale_filler)
        self.bias = self.add_blob((self.channels,), param.bias_filler)

    def _freeze_blobs(self) -> None:
        # As NVIDIA's fork does, whatever the text says: its older texts have another order.
        specs = self.param.param
        for index in range(5):
            if index == len(specs):
                specs.add()
            specs[index].lr_mult = specs[index].decay_mult = float(index > 2)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = bottom[0].data.reshape(self._extents), top[0].data.reshape(self._extents)
        self.normalize(x, y)
        self.xp.multiply(self._y, self.scale.data.reshape(-1, 1), out=y)
        y += self.bias.data.reshape(-1, 1)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        dy = top[0].diff.reshape(self._extents)
        for blob, term in ((self.scale, dy * self._y), (self.bias, dy)):
            if self.param_propagate_down[self.blobs.index(blob)]:
                blob.diff[...] += term.sum(axis=(0, 2)).reshape(blob.shape)
        if propagate_down[0]:
            dx = bottom[0].diff.reshape(self._extents)
            self.xp.multiply(dy, self.scale.data.reshape(-1, 1), out=dx)
            self.normalize_backward(dx, dx)

    def update_running_statistics(self, mean: Array, variance: Array, count: int) -> None:
        means, variances, weight = (blob.data for blob in self.blobs[:3])
        old = self.fraction if weight[0] else 0  # the first batch is taken as it is
        for running, new in ((means, mean), (variances, variance)):
            running *= old
            running += (1 - old) * new
        weight[0] = 1


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


@register("Normalize")
class Normalize(Layer):
    """y = scale * x / sqrt(sum of x^2 + eps), the sum over the channels at each position.

    With ``across_spatial`` (the default) over all numbers of an image. ``scale`` is learned, one
    for each channel, or one for all with ``channel_shared`` (the default); filled with 1.
    Backward: dx = (g - x * sum of (x g) / n^2) / n, g = scale * dy, n the root. (SSD's fork of
    Caffe leaves the scale out of that sum, which is not the gradient unless it is shared.)

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameter: scale (C), or one number.
    Reference: Liu et al., "ParseNet", 2015; NormalizeLayer of SSD's fork of Caffe.

    Example:
        layer { name: "conv4_3_norm" type: "Normalize" bottom: "conv4_3" top: "conv4_3_norm"
            norm_param { across_spatial: false channel_shared: false
                scale_filler { value: 20 } } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.norm_param
        if bottom[0].num_axes < 2:
            raise self.error(f"needs a bottom (N, C, ...), got shape {bottom[0].shape}")
        self.eps = param.eps
        self.axes = (1, 2) if param.across_spatial else (1,)
        one = caffe_pb2.FillerParameter(value=1)
        shape = () if param.channel_shared else (bottom[0].shape[1],)
        self.add_blob(shape, param.scale_filler if param.HasField("scale_filler") else one)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) < 2 or self.blobs[0].shape not in ((), (shape[1],)):
            raise self.error(
                f"was set up for {self.blobs[0].count} channels; the bottom now has shape {shape}"
            )
        top[0].reshape(shape)
        self._extents = (*shape[:2], math.prod(shape[2:]))

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = bottom[0].data.reshape(self._extents), top[0].data.reshape(self._extents)
        self.xp.multiply(x, x, out=y)
        self._norm = self.xp.sqrt(y.sum(axis=self.axes, keepdims=True) + self.dtype.type(self.eps))
        self.xp.multiply(x, self._scale(), out=y)
        y /= self._norm

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        x, dy = bottom[0].data.reshape(self._extents), top[0].diff.reshape(self._extents)
        if self.param_propagate_down[0]:
            scale = self.blobs[0]
            axes = (0, 2) if scale.shape else (0, 1, 2)
            scale.diff[...] += (dy * x / self._norm).sum(axis=axes)
        if propagate_down[0]:
            dx = bottom[0].diff.reshape(self._extents)
            g = dy * self._scale()
            shared = (x * g).sum(axis=self.axes, keepdims=True) / self._norm**2
            self.xp.subtract(g, x * shared, out=dx)
            dx /= self._norm

    def _scale(self) -> Array:
        return self.blobs[0].data.reshape(-1, 1)


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
        self._s = self.xp.empty_like(x)
        each_chunk(self.xp, self._divide, x, self._s, top[0].data)

    def _divide(self, x: Array, s: Array, y: Array) -> None:
        self.xp.multiply(self._neighbourhood_mean(x * x), self.alpha, out=s)
        s += self.k
        self.xp.multiply(x, s**-self.beta, out=y)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            x = self._x.load(bottom[0])
            each_chunk(self.xp, self._divide_backward, x, self._s, top[0].diff, bottom[0].diff)

    def _divide_backward(self, x: Array, s: Array, dy: Array, dx: Array) -> None:
        direct = dy * s**-self.beta
        # y is not read from the top, which a later layer may have overwritten: dy y = direct x.
        shared = self._neighbourhood_mean(direct * x / s)
        shared *= x
        shared *= 2 * self.alpha * self.beta
        self.xp.subtract(direct, shared, out=dx)

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
