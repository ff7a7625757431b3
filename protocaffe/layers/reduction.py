"""Many numbers made one."""

from __future__ import annotations

import math

from protocaffe.blob import Blob
from protocaffe.layers.base import Layer, register
from protocaffe.proto.caffe_pb2 import ReductionParameter


@register("Reduction")
class Reduction(Layer):
    """y = coeff * the SUM, ASUM (absolute values), SUMSQ (squares) or MEAN of the tail axes.

    Bottoms: x, at least one axis. Tops: y, the axes before ``axis`` (0).
    Reference: Caffe's ReductionLayer.

    Example:
        layer { name: "norm" type: "Reduction" bottom: "features" top: "norm"
            reduction_param { operation: SUMSQ axis: 1 } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.reduction_param
        self.operation = param.operation
        self.coeff = param.coeff

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        axis = self.canonical_axis(self.param.reduction_param.axis, bottom[0])
        self._extents = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        top[0].reshape(shape[:axis])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = bottom[0].data.reshape(self._extents)
        if self.operation == ReductionParameter.ASUM:
            x = abs(x)
        elif self.operation == ReductionParameter.SUMSQ:
            x = x * x
        top[0].data[...] = (x.sum(axis=1) * self._factor()).reshape(top[0].shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            x, dx = (each.reshape(self._extents) for each in (bottom[0].data, bottom[0].diff))
            dx[...] = top[0].diff.reshape(-1, 1) * self._factor()
            if self.operation == ReductionParameter.ASUM:
                dx *= self.xp.sign(x)
            elif self.operation == ReductionParameter.SUMSQ:
                dx *= 2 * x

    def _factor(self) -> float:
        is_mean = self.operation == ReductionParameter.MEAN
        return self.coeff / self._extents[1] if is_mean else self.coeff
