"""InnerProduct on the device: cuBLAS, with gradients added where they belong."""

from __future__ import annotations

from protocaffe.blob import Blob
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.inner_product import InnerProduct


@override(InnerProduct)
class CudaInnerProduct(Override[InnerProduct]):
    """One matrix product per array that is computed."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        layer, weights = self.layer, self.layer.blobs[0].data
        x = bottom[0].data.reshape(-1, layer.num_input)
        y = top[0].data.reshape(-1, layer.num_output)
        self.device.gemm(x, weights if layer.transpose else weights.T, y)
        if layer.bias_term:
            y += layer.blobs[1].data

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        layer = self.layer
        dy = top[0].diff.reshape(-1, layer.num_output)
        if layer.param_propagate_down[0]:
            x, diff = bottom[0].data.reshape(-1, layer.num_input), layer.blobs[0].diff
            a, b = (x.T, dy) if layer.transpose else (dy.T, x)
            self.device.gemm(a, b, diff, add=True)
        if layer.bias_term and layer.param_propagate_down[1]:
            diff = layer.blobs[1].diff
            diff += dy.sum(axis=0)
        if propagate_down[0]:
            weights, dx = layer.blobs[0].data, bottom[0].diff.reshape(-1, layer.num_input)
            self.device.gemm(dy, weights.T if layer.transpose else weights, dx)
