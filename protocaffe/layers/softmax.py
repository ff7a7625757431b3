"""Softmax, alone and under the losses that take scores."""

from __future__ import annotations

import math
from typing import Any

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register


def softmax(xp: Any, scores: Array, out: Array, axis: int) -> None:
    """Set out to exp(scores) / sum of exp(scores) along the axis, without overflow."""
    xp.subtract(scores, scores.max(axis=axis, keepdims=True), out=out)
    xp.exp(out, out=out)
    out /= out.sum(axis=axis, keepdims=True)


def outer_axis_inner(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Return the counts before, at and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@register("Softmax")
class Softmax(Layer):
    """y = exp(x) / sum of exp(x) along ``axis`` (1).

    Backward: dx = y (dy - sum of dy y along the axis).

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Caffe's SoftmaxLayer.

    Example:
        layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
    """

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.axis = self.canonical_axis(self.param.softmax_param.axis, bottom[0])
        top[0].reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        softmax(self.xp, bottom[0].data, top[0].data, self.axis)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            y, dy, dx = top[0].data, top[0].diff, bottom[0].diff
            mean = (dy * y).sum(axis=self.axis, keepdims=True)
            self.xp.subtract(dy, mean, out=dx)
            dx *= y
