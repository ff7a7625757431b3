"""Element-wise layers: one number in, one number out, the shape stays."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.saved import SavedInput
from protocaffe.parallel import elementwise
from protocaffe.proto.caffe_pb2 import FillerParameter


class Neuron(Layer):
    """An element-wise layer: one bottom, one top of the same shape."""

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(bottom[0].shape)


class Function(Neuron):
    """A neuron layer that is a function of x alone, with a derivative.

    In place, a copy of x is kept if the derivative needs it. Infinities and NaN are results
    like others, as in Caffe.
    """

    derivative_needs_x: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._x = SavedInput()

    def function(self, x: Array) -> Any:
        """Return y: an array or a number."""
        raise NotImplementedError

    def derivative(self, x: Array, y: Array) -> Any:
        """Return dy/dx: an array or a number."""
        raise NotImplementedError

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = self._x.save(bottom[0], top[0]) if self.derivative_needs_x else bottom[0].data
        with np.errstate(all="ignore"):
            top[0].data[...] = self.function(x)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            with np.errstate(all="ignore"):
                slope = self.derivative(self._x.load(bottom[0]), top[0].data)
                self.xp.multiply(top[0].diff, slope, out=bottom[0].diff)


def _bend(xp: Any, x: Array, slope: Any, scaled: Array, out: Array) -> None:
    """Set out to x where x > 0, else to scaled, which is slope * x and may be out."""
    if xp is np and np.all(slope <= 1):
        np.maximum(x, scaled, out=out)  # the same, several times as fast as a choice by a mask
    else:
        out[...] = xp.where(x > 0, x, scaled)


@register("ReLU")
class ReLU(Neuron):
    """y = max(x, 0) + negative_slope * min(x, 0).

    Backward: dx = dy where x > 0, else negative_slope * dy (so the slope's side at x = 0).
    In place, y stands for x, which has the same sign while negative_slope >= 0.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Nair & Hinton, "Rectified Linear Units Improve Restricted Boltzmann
    Machines", ICML 2010; Caffe's ReLULayer.

    Example:
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1"
            relu_param { negative_slope: 0.1 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.negative_slope = self.dtype.type(self.param.relu_param.negative_slope)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        elementwise(self.xp, self._bend, bottom[0].data, top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            elementwise(self.xp, self._bend_backward, bottom[0].data, top[0].diff, bottom[0].diff)

    def _bend(self, x: Array, y: Array) -> None:
        if self.negative_slope == 0:
            self.xp.maximum(x, 0, out=y)
        else:
            _bend(self.xp, x, self.negative_slope, self.negative_slope * x, out=y)

    def _bend_backward(self, x: Array, dy: Array, dx: Array) -> None:
        slope = x > 0
        if self.negative_slope != 0:
            slope = self.xp.where(slope, self.dtype.type(1), self.negative_slope)
        self.xp.multiply(dy, slope, out=dx)


@register("ReLU6")
class ReLU6(Neuron):
    """y = min(max(x, 0), 6); dx = dy where 0 < x < 6, else 0.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010; ReLU6Layer of
    MobileNet-YOLO's fork of Caffe.

    Example:
        layer { name: "relu1" type: "ReLU6" bottom: "conv1" top: "conv1" }
    """

    settings = ("relu6_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self.param.relu6_param.negative_slope:
            raise self.error("takes no negative_slope; for one without a limit use ReLU")

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.xp.clip(bottom[0].data, 0, 6, out=top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            y = top[0].data  # which tells where x was between the limits, in place too
            self.xp.multiply(top[0].diff, (y > 0) & (y < 6), out=bottom[0].diff)


@register("PReLU")
class PReLU(Neuron):
    """y = max(x, 0) + slope * min(x, 0) with a learned slope per channel (axis 1).

    Backward: dx = dy where x > 0, else slope * dy; the slope gets the sum of dy * x where
    x <= 0.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameter: slope (C), or one number with ``channel_shared``; filled with 0.25.
    Reference: He et al., "Delving Deep into Rectifiers", ICCV 2015; Caffe's PReLULayer.

    Example:
        layer { name: "prelu1" type: "PReLU" bottom: "conv1" top: "conv1"
            prelu_param { filler { value: 0.25 } } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.prelu_param
        if bottom[0].num_axes < 2:
            raise self.error(f"needs a bottom (N, C, ...), got shape {bottom[0].shape}")
        self.channel_shared = param.channel_shared
        filler = FillerParameter(type="constant", value=0.25)
        self.add_blob(
            () if self.channel_shared else (bottom[0].shape[1],),
            param.filler if param.HasField("filler") else filler,
        )
        self._x = SavedInput()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        shape = bottom[0].shape
        if not self.channel_shared and shape[1:2] != self.blobs[0].shape:
            raise self.error(
                f"was set up for {self.blobs[0].count} channels; the bottom now has shape {shape}"
            )
        per_channel = (*shape[:2], math.prod(shape[2:]))
        self._extents = (1, 1, bottom[0].count) if self.channel_shared else per_channel

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._x.save(bottom[0], top[0])
        x = self._x.load(bottom[0]).reshape(self._extents)
        y = top[0].data.reshape(self._extents)
        slope = self._slope()
        self.xp.multiply(x, slope, out=y)
        _bend(self.xp, x, slope, y, out=y)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        x = self._x.load(bottom[0]).reshape(self._extents)
        dy = top[0].diff.reshape(self._extents)
        if self.param_propagate_down[0]:
            gradient = (dy * self.xp.minimum(x, 0)).sum(axis=(0, 2))
            self.blobs[0].diff[...] += gradient.reshape(self.blobs[0].shape)
        if propagate_down[0]:
            dx = bottom[0].diff.reshape(self._extents)
            self.xp.multiply(dy, self.xp.where(x > 0, 1, self._slope()), out=dx)

    def _slope(self) -> Array:
        return self.blobs[0].data.reshape(1, -1, 1)


@register("AbsVal")
class AbsVal(Function):
    """y = |x|; dx = dy * sign(x), 0 at 0.

    Bottoms: x, any shape; not in place. Tops: y, the same shape.
    Reference: Caffe's AbsValLayer.

    Example:
        layer { name: "abs" type: "AbsVal" bottom: "difference" top: "distance" }
    """

    in_place = False

    def function(self, x: Array) -> Any:
        return abs(x)

    def derivative(self, x: Array, y: Array) -> Any:
        return self.xp.sign(x)


@register("BNLL")
class BNLL(Function):
    """y = log(1 + e^x), a smooth ReLU; dx = dy * e^x / (1 + e^x).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's BNLLLayer.

    Example:
        layer { name: "bnll1" type: "BNLL" bottom: "conv1" top: "conv1" }
    """

    def function(self, x: Array) -> Any:
        logs = self.xp.log1p(self.xp.exp(-abs(x)))
        return logs + self.xp.maximum(x, 0)

    def derivative(self, x: Array, y: Array) -> Any:
        # Beyond 50 the derivative is 1 to all digits, and the exponential stays finite.
        e = self.xp.exp(self.xp.minimum(x, 50))
        return e / (e + 1)


@register("Clip")
class Clip(Function):
    """y = x cut to ``min`` .. ``max``; dx = dy where min <= x <= max, else 0.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's ClipLayer.

    Example:
        layer { name: "relu6" type: "Clip" bottom: "conv1" top: "conv1"
            clip_param { min: 0 max: 6 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.clip_param
        if not (param.HasField("min") and param.HasField("max")):
            raise self.error("both min and max must be given")
        self.min, self.max = param.min, param.max

    def function(self, x: Array) -> Any:
        return self.xp.maximum(self.min, self.xp.minimum(x, self.max))

    def derivative(self, x: Array, y: Array) -> Any:
        return (x >= self.min) & (x <= self.max)


@register("ELU")
class ELU(Function):
    """y = x for x > 0, else alpha (e^x - 1); dx = dy for x > 0, else dy (alpha + y).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Clevert et al., "Fast and Accurate Deep Network Learning by Exponential Linear
    Units", ICLR 2016; Caffe's ELULayer.

    Example:
        layer { name: "elu1" type: "ELU" bottom: "conv1" top: "conv1" elu_param { alpha: 1 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.alpha = self.param.elu_param.alpha

    def function(self, x: Array) -> Any:
        negative = self.alpha * (self.xp.exp(self.xp.minimum(x, 0)) - 1)
        return self.xp.maximum(x, 0) + negative

    def derivative(self, x: Array, y: Array) -> Any:
        slope = self.xp.asarray(y + self.alpha)  # a number alone is no array yet
        if self.alpha == 1:  # then it grows to 1 at x = 0: no choice by a mask, which is slow
            return self.xp.minimum(slope, 1, out=slope)
        return self.xp.where(x > 0, 1, slope)


@register("Exp")
class Exp(Function):
    """y = base^(shift + scale x); base -1 is e. dx = dy y scale ln(base).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's ExpLayer.

    Example:
        layer { name: "exp" type: "Exp" bottom: "log_scale" top: "scale" exp_param { base: 2 } }
    """

    derivative_needs_x = False

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.exp_param
        log_base = _log_base(self, param.base)
        self.shift = param.shift * log_base
        self.scale = param.scale * log_base

    def function(self, x: Array) -> Any:
        return self.xp.exp(self.shift + self.scale * x)

    def derivative(self, x: Array, y: Array) -> Any:
        return y * self.scale


@register("Log")
class Log(Function):
    """y = log_base(shift + scale x); base -1 is e. dx = dy scale / (ln(base) (shift + scale x)).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's LogLayer.

    Example:
        layer { name: "log" type: "Log" bottom: "prob" top: "log_prob" log_param { base: 2 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.log_param
        self.shift, self.scale = param.shift, param.scale
        self.log_base = _log_base(self, param.base)
        if self.log_base == 0:
            raise self.error("base must not be 1: there is no logarithm to base 1")

    def function(self, x: Array) -> Any:
        logs = self.xp.log(self.shift + self.scale * x)
        return logs / self.log_base

    def derivative(self, x: Array, y: Array) -> Any:
        return self.scale / self.log_base / (self.shift + self.scale * x)


def _log_base(layer: Layer, base: float) -> float:
    """Return ln(base), where base -1 stands for e."""
    if base == -1:
        return 1.0
    if base <= 0:
        raise layer.error(f"base must be positive, or -1 for e; got {base:g}")
    return math.log(base)


@register("Power")
class Power(Function):
    """y = (shift + scale x)^power; dx = dy power scale (shift + scale x)^(power - 1).

    With scale * power = 0, y is the constant shift^power and dx is 0. Except for powers 1 and 2
    the derivative is computed as power scale y / (shift + scale x), NaN where that is 0 / 0.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's PowerLayer.

    Example:
        layer { name: "scaled" type: "Power" bottom: "data" top: "scaled"
            power_param { scale: 0.0078125 shift: -1 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.power_param
        self.power, self.scale, self.shift = param.power, param.scale, param.shift

    def function(self, x: Array) -> Any:
        if self.power == 0:
            return 1.0
        inner = self.shift + self.scale * x if self.scale else self.xp.full_like(x, self.shift)
        return inner if self.power == 1 else inner**self.power

    def derivative(self, x: Array, y: Array) -> Any:
        slope = self.scale * self.power
        if slope == 0 or self.power == 1:
            return slope
        inner = self.shift + self.scale * x
        return slope * inner if self.power == 2 else slope * y / inner


@register("Sigmoid")
class Sigmoid(Function):
    """y = 1 / (1 + e^-x); dx = dy y (1 - y).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's SigmoidLayer.

    Example:
        layer { name: "gate" type: "Sigmoid" bottom: "ip1" top: "gate" }
    """

    derivative_needs_x = False

    def function(self, x: Array) -> Any:
        return _sigmoid(self, x)

    def derivative(self, x: Array, y: Array) -> Any:
        return y * (1 - y)


def _sigmoid(layer: Layer, x: Array) -> Array:
    y: Array = layer.xp.tanh(0.5 * x)
    y *= 0.5
    y += 0.5
    return y


@register("Swish")
class Swish(Function):
    """y = x sigmoid(beta x); dx = dy (beta y + sigmoid(beta x) (1 - beta y)).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Ramachandran et al., "Searching for Activation Functions", 2017; Caffe's
    SwishLayer.

    Example:
        layer { name: "swish1" type: "Swish" bottom: "conv1" top: "conv1_swish" }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.beta = self.param.swish_param.beta

    def function(self, x: Array) -> Any:
        return x * _sigmoid(self, self.beta * x)

    def derivative(self, x: Array, y: Array) -> Any:
        return self.beta * y + _sigmoid(self, self.beta * x) * (1 - self.beta * y)


@register("TanH")
class TanH(Function):
    """y = tanh(x); dx = dy (1 - y^2).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's TanHLayer.

    Example:
        layer { name: "tanh1" type: "TanH" bottom: "ip1" top: "ip1" }
    """

    derivative_needs_x = False

    def function(self, x: Array) -> Any:
        return self.xp.tanh(x)

    def derivative(self, x: Array, y: Array) -> Any:
        return 1 - y * y


@register("Threshold")
class Threshold(Neuron):
    """y = 1 where x > ``threshold`` (0), else 0. It has no gradient.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's ThresholdLayer.

    Example:
        layer { name: "mask" type: "Threshold" bottom: "prob" top: "mask"
            threshold_param { threshold: 0.5 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.threshold = self.param.threshold_param.threshold

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].data[...] = bottom[0].data > self.threshold
