"""How layers that slide windows over images become ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.layers.convolution import (
    Convolution,
    ConvolutionDepthwise,
    ConvolutionGeometry,
    Deconvolution,
    DepthwiseConvolution,
    Im2col,
)
from protocaffe.layers.detection import PriorBox
from protocaffe.layers.normalization import LRN
from protocaffe.layers.planes import PoolingGeometry
from protocaffe.layers.pooling import SPP, Pooling
from protocaffe.layers.resize import Interp, Unpool, Upsample
from protocaffe.proto.caffe_pb2 import LRNParameter, PoolingParameter


@converts(Convolution, Deconvolution, ConvolutionDepthwise, DepthwiseConvolution)
def convolution(graph: OnnxGraph, step: Step) -> list[str]:
    """Conv or ConvTranspose; ONNX has the same output extents, groups and weight layouts."""
    geometry = step.layer.geometry
    kind = "ConvTranspose" if step.layer.transposed else "Conv"
    spatial = tuple(geometry.kernel) or (1,)
    weights = step.parameters[0]
    names = [graph.constant(weights.reshape(*weights.shape[:2], *spatial), "weight")]
    names += [graph.constant(bias, "bias") for bias in step.parameters[1:]]
    tops = []
    for x, bottom, top in zip(step.x, step.bottoms, step.tops, strict=True):
        flat = _as_images(graph, x, bottom.shape, geometry)
        y = graph.op(kind, flat, *names, **_windows(geometry))
        tops.append(y if flat == x else graph.reshape(y, graph.shape(top)))
    return tops


@converts(Im2col)
def im2col(graph: OnnxGraph, step: Step) -> list[str]:
    """A convolution per channel with one filter for every place in the window."""
    geometry = step.layer.geometry
    channels = step.bottoms[0].shape[geometry.channel_axis]
    kernel = tuple(geometry.kernel) or (1,)
    one_hot = np.eye(math.prod(kernel), dtype=np.float32).reshape(-1, 1, *kernel)
    weights = graph.constant(np.tile(one_hot, (channels, *(1,) * (1 + len(kernel)))), "windows")
    flat = _as_images(graph, step.x[0], step.bottoms[0].shape, geometry)
    y = graph.op("Conv", flat, weights, **{**_windows(geometry), "group": channels})
    return [y if flat == step.x[0] else graph.reshape(y, graph.shape(step.tops[0]))]


def _windows(geometry: ConvolutionGeometry) -> dict[str, int | list[int]]:
    """Return the attributes; without spatial axes, those of windows of one pixel."""
    return {
        "kernel_shape": list(geometry.kernel) or [1],
        "strides": list(geometry.stride) or [1],
        "pads": [*geometry.pad, *geometry.pad] or [0, 0],
        "dilations": list(geometry.dilation) or [1],
        "group": geometry.group,
    }


def _as_images(
    graph: OnnxGraph, x: str, shape: Sequence[int], geometry: ConvolutionGeometry
) -> str:
    """Bring a value to (N, C, *spatial), which it has where the channels stand at axis 1."""
    axis = geometry.channel_axis
    if axis == 1 and geometry.kernel:
        return x
    return graph.reshape(x, [-1, shape[axis], *(shape[axis + 1 :] or (1,))])


@converts(Pooling)
def pooling(graph: OnnxGraph, step: Step) -> list[str]:
    """MaxPool or AveragePool, the second top from MaxPool's indices."""
    geometry = step.layer.geometry
    _check_windows(step, geometry)
    if geometry.method == PoolingParameter.STOCHASTIC:
        raise step.layer.error("cannot be exported with pool: STOCHASTIC; ONNX has no such pooling")
    if geometry.method == PoolingParameter.AVE:
        return [_average(graph, step.x[0], geometry)]
    if len(step.tops) == 1:
        return [_maximum(graph, step.x[0], geometry)[0]]
    y, index = _maximum(graph, step.x[0], geometry, indices=True)
    # ONNX counts through the whole array, Caffe within the plane.
    area = graph.integers([math.prod(geometry.input)], "area")
    return [y, graph.op("Cast", graph.op("Mod", index, area), to=FLOAT)]


@converts(SPP)
def spatial_pyramid(graph: OnnxGraph, step: Step) -> list[str]:
    """A pooling per level, flattened side by side."""
    parts = []
    for level in step.layer.levels:
        _check_windows(step, level.geometry)
        average = level.geometry.method == PoolingParameter.AVE
        x = step.x[0]
        y = _average(graph, x, level.geometry) if average else _maximum(graph, x, level.geometry)[0]
        parts.append(y)
    if len(parts) == 1:
        return parts
    return [graph.op("Concat", *(graph.op("Flatten", y, axis=1) for y in parts), axis=1)]


FLOAT, INT64 = 1, 7
"""``TensorProto.FLOAT`` and ``INT64``."""


def _maximum(
    graph: OnnxGraph, x: str, geometry: PoolingGeometry, indices: bool = False
) -> list[str]:
    if geometry.kernel == geometry.input and not any(geometry.pad) and not indices:
        return [graph.op("GlobalMaxPool", x)]
    return graph.ops("MaxPool", x, outputs=1 + indices, **_pooled(geometry))


def _average(graph: OnnxGraph, x: str, geometry: PoolingGeometry) -> str:
    """Average as Caffe does: padding counts, what lies beyond the padding does not."""
    if geometry.kernel == geometry.input and not any(geometry.pad):
        return graph.op("GlobalAveragePool", x)
    y = graph.op("AveragePool", x, count_include_pad=1, **_pooled(geometry))
    areas = geometry.areas
    full = math.prod(geometry.kernel)
    return y if (areas == full).all() else graph.op("Mul", y, graph.constant(full / areas, "areas"))


def _pooled(geometry: PoolingGeometry) -> dict[str, list[int]]:
    """Return the attributes; pads at the end are what makes ONNX's floor give Caffe's extents."""
    ends = [
        max(0, (output - 1) * stride + kernel - extent - pad)
        for extent, output, kernel, stride, pad in geometry.axes
    ]
    return {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.stride),
        "pads": [*geometry.pad, *ends],
    }


def _check_windows(step: Step, geometry: PoolingGeometry) -> None:
    for starts, extent in zip(geometry.starts, geometry.input, strict=True):
        if starts[-1] >= extent:
            raise step.layer.error(
                f"its last window lies wholly outside the image (stride {geometry.stride}, kernel "
                f"{geometry.kernel}), which ONNX has no value for; use round_mode: FLOOR"
            )


@converts(LRN)
def local_response(graph: OnnxGraph, step: Step) -> list[str]:
    """LRN across channels; within a channel, an average of squares."""
    layer, x = step.layer, step.x[0]
    if layer.region == LRNParameter.ACROSS_CHANNELS:
        settings = {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": layer.k}
        return [graph.op("LRN", x, **settings)]
    mean = graph.op(
        "AveragePool",
        graph.op("Mul", x, x),
        kernel_shape=[layer.size, layer.size],
        pads=[layer.size // 2] * 4,
        count_include_pad=1,
    )
    scale = graph.shifted(graph.scaled(mean, layer.alpha), layer.k)
    return [graph.op("Mul", x, graph.op("Pow", scale, graph.constant(-layer.beta)))]


@converts(Interp)
def interpolation(graph: OnnxGraph, step: Step) -> list[str]:
    """Two products with the matrices that resize columns and rows; Resize rounds otherwise."""
    layer, x = step.layer, step.x[0]
    rows, columns = layer.crop[2:]
    if (rows.stop - rows.start, columns.stop - columns.start) != step.bottoms[0].shape[2:]:
        limits = ([rows.start, columns.start], [rows.stop, columns.stop], [2, 3])
        x = graph.op("Slice", x, *(graph.integers(each, "part") for each in limits))
    tall = graph.op("MatMul", graph.constant(layer.rows, "rows"), x)
    return [graph.op("MatMul", tall, graph.constant(layer.columns.T, "columns"))]


@converts(Upsample)
def upsample(graph: OnnxGraph, step: Step) -> list[str]:
    """Resize to the nearest pixel."""
    scales = graph.constant([1, 1, step.layer.scale, step.layer.scale], "scales")
    nearest = {"mode": "nearest", "nearest_mode": "floor"}
    attributes = {**nearest, "coordinate_transformation_mode": "asymmetric"}
    return [graph.op("Resize", step.x[0], "", scales, **attributes)]


@converts(Unpool)
def unpool(graph: OnnxGraph, step: Step) -> list[str]:
    """Every number to its place among zeros."""
    top = step.tops[0]
    planes = [*graph.shape(step.bottoms[0])[:2], -1]
    if planes[0] == -1:
        planes[0] = 0  # as the bottom has it
    x, places = (graph.reshape(each, planes) for each in step.x)
    images = graph.op("Slice", graph.op("Shape", x), *(graph.integers([i]) for i in (0, 1)))
    plane = graph.integers([top.shape[1], math.prod(top.shape[2:])], "plane")
    shape = graph.op("Concat", images, plane, axis=0)
    zeros = graph.op("Expand", graph.constant([[[0.0]]], "zeros"), shape)
    index = graph.op("Cast", places, to=INT64)
    y = graph.op("ScatterElements", zeros, index, x, axis=2)
    return [graph.reshape(y, graph.shape(top))]


@converts(PriorBox)
def prior_box(graph: OnnxGraph, step: Step) -> list[str]:
    """A constant: the boxes follow from shapes."""
    return [graph.constant(step.layer.values, "boxes")]
