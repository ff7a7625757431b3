"""The fully connected layer."""

from __future__ import annotations

import math

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.parallel import add_product, matmul


@register("InnerProduct")
class InnerProduct(Layer):
    """y = x W^T + bias over everything from ``axis`` on, flattened.

    Bottoms: x, any shape; the axes before ``axis`` (1) are the batch, the others hold K numbers.
    Tops: y, the batch axes and num_output.
    Parameters: W (num_output, K), or (K, num_output) with ``transpose``; bias (num_output).
    Reference: Caffe's InnerProductLayer.

    Example:
        layer { name: "fc8" type: "InnerProduct" bottom: "pool5" top: "fc8"
            inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.inner_product_param
        self.num_output = param.num_output
        self.bias_term = param.bias_term
        self.transpose = param.transpose
        if self.num_output < 1:
            raise self.error("num_output must be at least 1")
        self.axis = self.canonical_axis(param.axis, bottom[0])
        self.num_input = math.prod(bottom[0].shape[self.axis :])
        shape = (self.num_output, self.num_input)
        self.add_blob(shape[::-1] if self.transpose else shape, param.weight_filler)
        if self.bias_term:
            self.add_blob((self.num_output,), param.bias_filler)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if math.prod(shape[self.axis :]) != self.num_input:
            raise self.error(
                f"was set up for {self.num_input} inputs from axis {self.axis} on; "
                f"the bottom now has shape {shape}"
            )
        top[0].reshape(*shape[: self.axis], self.num_output)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        y = self._rows(top[0].data, self.num_output)
        x = self._rows(bottom[0].data, self.num_input)
        matmul(self.xp, x, self._weights().T, out=y)
        if self.bias_term:
            y += self.blobs[1].data

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        dy = self._rows(top[0].diff, self.num_output)
        if self.param_propagate_down[0]:
            x = self._rows(bottom[0].data, self.num_input)
            a, b = (x, dy) if self.transpose else (dy, x)
            add_product(self.xp, a.T, b, out=self.blobs[0].diff)
        if self.bias_term and self.param_propagate_down[1]:
            self.blobs[1].diff[...] += dy.sum(axis=0)
        if propagate_down[0]:
            dx = self._rows(bottom[0].diff, self.num_input)
            matmul(self.xp, dy, self._weights(), out=dx)

    def multiply_adds(self, bottom: list[Blob], top: list[Blob]) -> int:
        return top[0].count * self.num_input

    def _weights(self) -> Array:
        """View the weights as (num_output, K)."""
        weights = self.blobs[0].data
        return weights.T if self.transpose else weights

    def _rows(self, array: Array, length: int) -> Array:
        return array.reshape(-1, length)
