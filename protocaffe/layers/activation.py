"""Element-wise layers: one number in, one number out, the shape stays."""

from __future__ import annotations

from protocaffe.blob import Blob
from protocaffe.layers.base import Layer, register


class Neuron(Layer):
    """An element-wise layer: one bottom, one top of the same shape."""

    bottoms = (1, 1)
    tops = (1, 1)
    in_place = True

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(bottom[0].shape)


@register("ReLU")
class ReLU(Neuron):
    """y = max(x, 0) + negative_slope * min(x, 0).

    Backward: dx = dy where x > 0, else negative_slope * dy (so the slope's side at x = 0).
    In place, y stands for x, which has the same sign while negative_slope >= 0.

    Bottoms: x, any shape. Tops: y, the same shape.
    Reference: Nair & Hinton, "Rectified Linear Units Improve Restricted Boltzmann
    Machines", ICML 2010; Caffe's ReLULayer.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.negative_slope = self.dtype.type(self.param.relu_param.negative_slope)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = bottom[0].data, top[0].data
        if self.negative_slope == 0:
            self.xp.maximum(x, 0, out=y)
        else:
            y[...] = self.xp.where(x > 0, x, self.negative_slope * x)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            positive = bottom[0].data > 0
            slope = self.xp.where(positive, self.dtype.type(1), self.negative_slope)
            self.xp.multiply(top[0].diff, slope, out=bottom[0].diff)
