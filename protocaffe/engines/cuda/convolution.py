"""Convolution and Deconvolution by cuDNN; what it cannot do is left to the layers' own code."""

from __future__ import annotations

import math
from typing import Any

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.dnn import Convolutions, Geometry
from protocaffe.engines.cuda.forms import Form
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.convolution import (
    Convolution,
    ConvolutionBase,
    ConvolutionDepthwise,
    Deconvolution,
    DepthwiseConvolution,
)


def _geometry(node: LayerNode[Any]) -> Geometry:
    """The convolution in which a Deconvolution's top is the image, too."""
    layer, ends = node.layer, (node.bottoms[0].shape, node.tops[0].shape)
    image, grid = reversed(ends) if layer.transposed else ends
    geometry = layer.geometry
    extents = (geometry.pad, geometry.stride, geometry.dilation)
    return Geometry(image, layer.blobs[0].shape, grid, *extents)


class CudaConvolutionBase(Override[ConvolutionBase]):
    """What both share: three passes between image and grid (see ConvolutionBase), and the bias."""

    def __init__(self, device: Device, node: LayerNode[ConvolutionBase]) -> None:
        super().__init__(device, node)
        geometry = _geometry(node)
        passes = device.dnn.convolutions(geometry)
        assert passes is not None  # fits() has asked
        self.passes: Convolutions = passes
        shapes = (geometry.image, geometry.weights, geometry.grid)
        self.image, self.kernel, self.grid = (device.channels_last(shape) for shape in shapes)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[ConvolutionBase]) -> Form:
        return device.channels_last(node.tops[0].shape)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[ConvolutionBase]) -> bool:
        layer = node.layer
        if layer.geometry.channel_axis != 1 or node.bottoms[0].num_axes not in (4, 5):
            return False
        return device.dnn.convolutions(_geometry(node)) is not None

    def weights(self) -> Any:
        """The weights as the passes want them."""
        weights = self.layer.blobs[0].data
        if self.kernel is None:
            return weights
        packed = self.device.empty(self.kernel)
        self.device.pack(weights, packed, self.kernel)
        return packed

    def add_weight_diff(self, image: Any, grid: Any) -> None:
        """Add to the weights' diff; cuDNN overwrites."""
        diff = self.layer.blobs[0].diff
        if self.kernel is None:
            gradient = self.xp.empty_like(diff)
            self.passes.weight_gradient(image, grid, gradient)
            diff += gradient
            return
        gradient = self.device.empty(self.kernel)
        self.passes.weight_gradient(image, grid, gradient)
        factor = 1 / self.device.precision.diff_scale
        self.device.unpack(gradient, diff, self.kernel, factor, add=True)

    def add_bias(self, top: Blob, form: Form) -> None:
        """Add the bias to all numbers of a channel."""
        if self.layer.geometry.bias_term:
            y, bias = self.data(top, form), self.layer.blobs[1].data
            inner = 1 if form else math.prod(top.shape[2:])
            self.device.run("add_bias", y.size, y, bias, bias.size, inner, y.size)

    def add_bias_diff(self, top: Blob) -> None:
        """Add to the bias's diff."""
        if self.layer.geometry.bias_term and self.layer.param_propagate_down[1]:
            diff = self.layer.blobs[1].diff
            diff += top.diff.reshape(*top.shape[:2], -1).sum(axis=(0, 2))


@override(Convolution, ConvolutionDepthwise, DepthwiseConvolution)
class CudaConvolution(CudaConvolutionBase):
    """The grid from the image."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            image, grid = self.data(x, self.image), self.data(y, self.grid)
            self.passes.correlate(image, self.weights(), grid)
            self.add_bias(y, self.grid)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self.add_bias_diff(y)
            grid = self.diff(y, self.grid)
            if self.layer.param_propagate_down[0]:
                self.add_weight_diff(self.data(x, self.image), grid)
            if wanted:
                self.passes.spread(grid, self.weights(), self.diff(x, self.image))


@override(Deconvolution)
class CudaDeconvolution(CudaConvolutionBase):
    """The image from the grid."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            grid, image = self.data(x, self.grid), self.data(y, self.image)
            self.passes.spread(grid, self.weights(), image)
            self.add_bias(y, self.image)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self.add_bias_diff(y)
            image = self.diff(y, self.image)
            if self.layer.param_propagate_down[0]:
                self.add_weight_diff(image, self.data(x, self.grid))
            if wanted:
                self.passes.correlate(image, self.weights(), self.diff(x, self.grid))
