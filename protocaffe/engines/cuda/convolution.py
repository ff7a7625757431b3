"""Convolution and Deconvolution by cuDNN; what it cannot do is left to the layers' own code."""

from __future__ import annotations

from typing import Any

from protocaffe.blob import Array, Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.dnn import Convolutions, Geometry
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
        passes = device.dnn.convolutions(_geometry(node))
        assert passes is not None  # fits() has asked
        self.passes: Convolutions = passes

    @classmethod
    def fits(cls, device: Device, node: LayerNode[ConvolutionBase]) -> bool:
        layer = node.layer
        if layer.geometry.channel_axis != 1 or node.bottoms[0].num_axes not in (4, 5):
            return False
        return device.dnn.convolutions(_geometry(node)) is not None

    def add_weight_diff(self, image: Array, grid: Array) -> None:
        """Add to the weights' diff; cuDNN overwrites."""
        diff = self.layer.blobs[0].diff
        gradient = self.xp.empty_like(diff)
        self.passes.weight_gradient(image, grid, gradient)
        diff += gradient

    def add_bias(self, top: Array) -> None:
        """Add the bias to all numbers of a channel."""
        if self.layer.geometry.bias_term:
            rows = top.reshape(*top.shape[:2], -1)
            rows += self.layer.blobs[1].data[:, None]

    def add_bias_diff(self, top_diff: Array) -> None:
        """Add to the bias's diff."""
        if self.layer.geometry.bias_term and self.layer.param_propagate_down[1]:
            diff = self.layer.blobs[1].diff
            diff += top_diff.reshape(*top_diff.shape[:2], -1).sum(axis=(0, 2))


@override(Convolution, ConvolutionDepthwise, DepthwiseConvolution)
class CudaConvolution(CudaConvolutionBase):
    """The grid from the image."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            self.passes.correlate(x.data, self.layer.blobs[0].data, y.data)
            self.add_bias(y.data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self.add_bias_diff(y.diff)
            if self.layer.param_propagate_down[0]:
                self.add_weight_diff(image=x.data, grid=y.diff)
            if wanted:
                self.passes.spread(y.diff, self.layer.blobs[0].data, x.diff)


@override(Deconvolution)
class CudaDeconvolution(CudaConvolutionBase):
    """The image from the grid."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            self.passes.spread(x.data, self.layer.blobs[0].data, y.data)
            self.add_bias(y.data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self.add_bias_diff(y.diff)
            if self.layer.param_propagate_down[0]:
                self.add_weight_diff(image=y.diff, grid=x.data)
            if wanted:
                self.passes.correlate(y.diff, self.layer.blobs[0].data, x.diff)
