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
    default. With ``scale_train: false``, TRAIN: y = x * mask, TEST: y = x * (1 - ratio); with
    ``sample_weights_test`` TEST is as TRAIN.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Srivastava et al., "Dropout", JMLR 2014; Caffe's DropoutLayer.

    Example:
        layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6"
            dropout_param { dropout_ratio: 0.5 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.dropout_param
        self.ratio = param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise self.error(f"dropout_ratio must be at least 0 and below 1, got {self.ratio:g}")
        self.drops = self.phase == caffe_pb2.TRAIN or param.sample_weights_test
        self.scale = 1.0 if self.drops else 1 - self.ratio
        if param.scale_train:
            self.scale /= 1 - self.ratio

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self.drops:
            self._factor = self._draw(bottom[0].shape)
            self.xp.multiply(bottom[0].data, self._factor, out=top[0].data)
        elif self.scale != 1 or top[0] is not bottom[0]:
            self.xp.multiply(bottom[0].data, self.dtype.type(self.scale), out=top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        if self.drops:
            self.xp.multiply(top[0].diff, self._factor, out=bottom[0].diff)
        elif self.scale != 1 or top[0] is not bottom[0]:
            self.xp.multiply(top[0].diff, self.dtype.type(self.scale), out=bottom[0].diff)

    def _draw(self, shape: tuple[int, ...]) -> Array:
        """Return the mask times what makes up for the elements dropped."""
        kept = self.rng.random(shape, np.float32) >= self.ratio
        factor: Array = self.xp.asarray(kept * self.dtype.type(self.scale))
        return factor
