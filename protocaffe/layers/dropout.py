"""Dropout."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.activation import Neuron
from protocaffe.layers.base import register
from protocaffe.proto import caffe_pb2


@register("Dropout")
class Dropout(Neuron):
    """TRAIN: y = x * mask / (1 - ratio), each mask element 1 with probability 1 - ratio, else 0.

    TEST: y = x. Backward multiplies by the same mask and factor. ``dropout_ratio`` is 0.5 by
    default.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Srivastava et al., "Dropout", JMLR 2014; Caffe's DropoutLayer.

    Example:
        layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6"
            dropout_param { dropout_ratio: 0.5 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise self.error(f"dropout_ratio must be at least 0 and below 1, got {self.ratio:g}")
        self.drops = self.phase == caffe_pb2.TRAIN

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self.drops:
            self._factor = self._draw(bottom[0].shape)
            self.xp.multiply(bottom[0].data, self._factor, out=top[0].data)
        elif top[0] is not bottom[0]:
            top[0].data[...] = bottom[0].data

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        if self.drops:
            self.xp.multiply(top[0].diff, self._factor, out=bottom[0].diff)
        elif top[0] is not bottom[0]:
            bottom[0].diff[...] = top[0].diff

    def _draw(self, shape: tuple[int, ...]) -> Array:
        """Return the mask divided by the share of elements kept."""
        kept = self.rng.random(shape, np.float32) >= self.ratio
        factor: Array = self.xp.asarray(kept * self.dtype.type(1 / (1 - self.ratio)))
        return factor
