"""Convolution and Deconvolution by cuDNN; what it cannot do is left to the layers' own code."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.dnn import (
    BIAS,
    GRID,
    IMAGE,
    WEIGHTS,
    Geometry,
    Graph,
    Operation,
    Pass,
)
from protocaffe.engines.cuda.forms import ChannelsLast, Form
from protocaffe.engines.cuda.overrides import Override, override, telling_slope
from protocaffe.engines.cuda.sums import add_channel_sums, rectify_and_add_sums
from protocaffe.layers.convolution import (
    Convolution,
    ConvolutionBase,
    ConvolutionDepthwise,
    Deconvolution,
    DepthwiseConvolution,
)
from protocaffe.log import log


class CudaConvolutionBase(Override[ConvolutionBase]):
    """What both share: between image and grid (see ConvolutionBase) cuDNN computes each way.

    Attributes:
        source: which of a convolution's arrays the bottom is.
        result: which one the top is.
    """

    source: ClassVar[int]
    result: ClassVar[int]

    def __init__(self, device: Device, node: LayerNode[ConvolutionBase]) -> None:
        super().__init__(device, node)
        self._geometry = _geometry(node)
        shapes = self._geometry.shapes
        self._forms = {number: device.channels_last(shape) for number, shape in shapes.items()}
        self._tunes = node.needs_backward
        self._slope: float | None = None
        self._no_bias: Any = None
        gradients = {each: Operation(self._geometry, each) for each in self._gradients(node)}
        self._backward = {
            number: Pass(device.dnn, _known(device, [operation]), self._tunes)
            for number, operation in gradients.items()
        }

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[ConvolutionBase]) -> Form:
        return device.channels_last(node.tops[0].shape)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[ConvolutionBase]) -> bool:
        layer = node.layer
        if layer.geometry.channel_axis != 1 or node.bottoms[0].num_axes not in (4, 5):
            return False
        geometry = _geometry(node)
        for number in (cls.result, *cls._gradients(node)):
            operation = Operation(geometry, number)
            if device.dnn.graph(operation) is None:
                reason = device.dnn.reasons[operation].partition("\n")[0]
                log.warning(
                    "cuDNN cannot run layer '%s' (%s): it runs by own code", layer.name, reason
                )
                return False
        return True

    @classmethod
    def _gradients(cls, node: LayerNode[ConvolutionBase]) -> list[int]:
        """Which gradients backward computes by cuDNN."""
        weights = node.needs_backward and node.layer.param_propagate_down[0]
        return [WEIGHTS] * weights + [cls.source] * any(node.propagate_down)

    def absorb(self, node: LayerNode[Any]) -> bool:
        slope = telling_slope(node.layer)
        if self._slope is not None or slope is None:
            return False
        self._slope = slope
        # cuDNN has far more plans for a bias and ReLU than for ReLU alone.
        if not self.layer.geometry.bias_term:
            self._no_bias = self.xp.zeros(self.layer.geometry.num_output, np.float32)
        return True

    def prepare(self) -> None:
        """Say how many plans were timed in the passes before."""
        self.device.dnn.report()

    # -- forward -------------------------------------------------------------------------

    @cached_property
    def _forward(self) -> Pass:
        """The pass with bias and ReLU by cuDNN, or without and then a kernel."""
        dnn, operations = self.device.dnn, [Operation(self._geometry, self.result)]
        adds = self.layer.geometry.bias_term or self._no_bias is not None
        # For a ReLU with a slope cuDNN has only plans that it compiles first, if any.
        if self.result == GRID and adds and not self._slope:
            fused = Operation(self._geometry, GRID, bias=True, relu=self._slope is not None)
            operations.insert(0 if dnn.fuses_fast else 1, fused)
        return Pass(dnn, _known(self.device, operations), self._tunes)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        weights = self._weights()
        for x, y in zip(bottom, top, strict=True):
            arrays = {
                self.source: self.data(x, self._forms[self.source]),
                WEIGHTS: weights,
                self.result: self.data(y, self._forms[self.result]),
            }
            self._forward.run(partial(self._compute, arrays))

    def _compute(self, arrays: dict[int, Any], graph: Graph) -> None:
        """Compute a top from its bottom; bias and ReLU belong to it."""
        bias = self._bias()
        if graph.operation.bias:
            form = ChannelsLast(1, 1, bias.size) if self.device.precision.is_half else None
            graph.run({**arrays, BIAS: self._packed(bias, form)})
            return
        graph.run(arrays)
        if bias is not None:
            y, shape = arrays[self.result], self._geometry.shapes[self.result]
            inner = 1 if self._forms[self.result] else math.prod(shape[2:])
            slope = 1.0 if self._slope is None else self._slope
            self.device.run_wide("add_bias_relu", y.size, y, bias, slope, bias.size, inner, y.size)

    def _weights(self) -> Any:
        """The weights as cuDNN wants them."""
        return self._packed(self.layer.blobs[0].data, self._forms[WEIGHTS])

    def _bias(self) -> Any:
        """What is added to each channel; None for nothing."""
        return self.layer.blobs[1].data if self.layer.geometry.bias_term else self._no_bias

    def _packed(self, param: Array, form: Form) -> Any:
        if form is None:
            return param
        packed = self.device.empty(form)
        self.device.pack(param, packed, form)
        return packed

    # -- backward ------------------------------------------------------------------------

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        weights = self._weights() if any(propagate_down) else None
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            gradient, form = self._gradient(y), self._forms[self.source]
            if WEIGHTS in self._backward:
                self._add_weight_diff({self.source: self.data(x, form), self.result: gradient})
            if wanted:
                arrays = {self.result: gradient, WEIGHTS: weights, self.source: self.diff(x, form)}
                self._backward[self.source].run(partial(Graph.run, arrays=arrays))

    def _add_weight_diff(self, arrays: dict[int, Any]) -> None:
        """Add to the weights' diff; cuDNN overwrites."""
        diff, form = self.layer.blobs[0].diff, self._forms[WEIGHTS]
        gradient = self.xp.empty_like(diff) if form is None else self.device.empty(form)
        self._backward[WEIGHTS].run(partial(Graph.run, arrays={**arrays, WEIGHTS: gradient}))
        if form is None:
            diff += gradient
        else:
            self.device.unpack(gradient, diff, form, self.unscale(form), add=True)

    def _gradient(self, top: Blob) -> Any:
        """Return dy, behind the ReLU, and add up that of the bias."""
        device, form, shape = self.device, self._forms[self.result], top.shape
        dy, has_bias = self.diff(top, form), self.layer.geometry.bias_term
        factor = self.unscale(form)
        if has_bias and self.layer.param_propagate_down[1]:
            sums = (shape, form, self.layer.blobs[1].diff, factor)
            if self._slope is None:
                add_channel_sums(device, dy, *sums)
            else:
                rectify_and_add_sums(device, self.data(top, form), dy, self._slope, *sums)
        elif self._slope is not None:
            y = self.data(top, form)
            device.run_wide("relu_backward", y.size, y, dy, dy, self._slope, y.size)
        return dy


def _geometry(node: LayerNode[Any]) -> Geometry:
    """The convolution in which a Deconvolution's top is the image, too."""
    layer, ends = node.layer, (node.bottoms[0].shape, node.tops[0].shape)
    image, grid = reversed(ends) if layer.transposed else ends
    geometry = layer.geometry
    extents = (geometry.pad, geometry.stride, geometry.dilation)
    return Geometry(image, layer.blobs[0].shape, grid, *extents)


def _known(device: Device, operations: list[Operation]) -> list[Graph]:
    """The graphs of those operations that cuDNN has."""
    graphs = (device.dnn.graph(operation) for operation in operations)
    return [graph for graph in graphs if graph is not None]


@override(Convolution, ConvolutionDepthwise, DepthwiseConvolution)
class CudaConvolution(CudaConvolutionBase):
    """The grid from the image."""

    source = IMAGE
    result = GRID


@override(Deconvolution)
class CudaDeconvolution(CudaConvolutionBase):
    """The image from the grid."""

    source = GRID
    result = IMAGE
