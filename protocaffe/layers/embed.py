"""Word embeddings and the like."""

from __future__ import annotations

from protocaffe.blob import Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import add_rows, bottom_name, whole_numbers


@register("Embed")
class Embed(Layer):
    """y = W[index] + bias: a row of weights for every index.

    Bottoms: whole numbers 0 .. input_dim - 1, any shape; they get no gradient.
    Tops: y, that shape and num_output.
    Parameters: W (input_dim, num_output), bias (num_output).
    Reference: Caffe's EmbedLayer.

    Example:
        layer { name: "embedding" type: "Embed" bottom: "words" top: "embedding"
            embed_param { input_dim: 1000 num_output: 64 weight_filler { type: "xavier" } } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.embed_param
        self.num_output, self.input_dim = param.num_output, param.input_dim
        if self.num_output < 1 or self.input_dim < 1:
            raise self.error(
                f"num_output and input_dim must be at least 1, got {self.num_output} and "
                f"{self.input_dim}"
            )
        self.bias_term = param.bias_term
        self.add_blob((self.input_dim, self.num_output), param.weight_filler)
        if self.bias_term:
            self.add_blob((self.num_output,), param.bias_filler)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(*bottom[0].shape, self.num_output)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._index, _ = whole_numbers(
            self, bottom[0].data, self.input_dim, bottom_index=0, what="index"
        )
        y = top[0].data
        y[...] = self.blobs[0].data[self._index]
        if self.bias_term:
            y += self.blobs[1].data

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            raise self.error(f"has no gradient for the index {bottom_name(self, 0)}")
        dy = top[0].diff
        if self.param_propagate_down[0]:
            rows = dy.reshape(-1, self.num_output)
            add_rows(self.xp, self.blobs[0].diff, self._index.ravel(), rows)
        if self.bias_term and self.param_propagate_down[1]:
            self.blobs[1].diff[...] += dy.reshape(-1, self.num_output).sum(axis=0)
