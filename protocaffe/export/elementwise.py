"""How layers that work number by number become ONNX operators."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array
from protocaffe.export.fold import own_scale
from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.export.image import FLOAT
from protocaffe.layers.activation import (
    BNLL,
    ELU,
    AbsVal,
    Clip,
    Exp,
    Log,
    Power,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Swish,
    TanH,
    Threshold,
)
from protocaffe.layers.bn import BN, SegNetBN, SyncBN
from protocaffe.layers.eltwise import Eltwise
from protocaffe.layers.normalization import MVN, BatchNorm, Normalize, ScaledBatchNorm
from protocaffe.layers.scale import Axpy, Bias, Scale
from protocaffe.layers.softmax import Softmax
from protocaffe.proto.caffe_pb2 import EltwiseParameter


@converts(AbsVal, BNLL, Sigmoid, TanH)
def function(graph: OnnxGraph, step: Step) -> list[str]:
    """The functions that ONNX has, too."""
    kinds = {AbsVal: "Abs", BNLL: "Softplus", Sigmoid: "Sigmoid", TanH: "Tanh"}
    return [graph.op(kinds[type(step.layer)], step.x[0])]


@converts(ReLU)
def relu(graph: OnnxGraph, step: Step) -> list[str]:
    """Relu or LeakyRelu."""
    slope = float(step.layer.negative_slope)
    if slope == 0:
        return [graph.op("Relu", step.x[0])]
    return [graph.op("LeakyRelu", step.x[0], alpha=slope)]


@converts(PReLU)
def prelu(graph: OnnxGraph, step: Step) -> list[str]:
    """PRelu with the slopes along axis 1."""
    after = step.bottoms[0].num_axes - 2
    slope = graph.constant(step.parameters[0].reshape(-1, *(1,) * after), "slope")
    return [graph.op("PRelu", step.x[0], slope)]


@converts(ELU)
def elu(graph: OnnxGraph, step: Step) -> list[str]:
    """Elu."""
    return [graph.op("Elu", step.x[0], alpha=step.layer.alpha)]


@converts(Clip)
def clip(graph: OnnxGraph, step: Step) -> list[str]:
    """Min, then Max: Clip means something else where min exceeds max."""
    low, high = graph.constant(step.layer.min, "min"), graph.constant(step.layer.max, "max")
    if step.layer.min <= step.layer.max:
        return [graph.op("Clip", step.x[0], low, high)]
    return [graph.op("Max", graph.op("Min", step.x[0], high), low)]


@converts(ReLU6)
def relu6(graph: OnnxGraph, step: Step) -> list[str]:
    """Clip."""
    return [graph.op("Clip", step.x[0], graph.constant(0, "min"), graph.constant(6, "max"))]


@converts(Swish)
def swish(graph: OnnxGraph, step: Step) -> list[str]:
    """x sigmoid(beta x)."""
    gate = graph.op("Sigmoid", graph.scaled(step.x[0], step.layer.beta))
    return [graph.op("Mul", step.x[0], gate)]


@converts(Threshold)
def threshold(graph: OnnxGraph, step: Step) -> list[str]:
    """Greater, as 0 and 1."""
    greater = graph.op("Greater", step.x[0], graph.constant(step.layer.threshold, "threshold"))
    return [graph.op("Cast", greater, to=FLOAT)]


@converts(Exp)
def exponential(graph: OnnxGraph, step: Step) -> list[str]:
    """e^(shift + scale x), the base already in shift and scale."""
    inner = graph.shifted(graph.scaled(step.x[0], step.layer.scale), step.layer.shift)
    return [graph.op("Exp", inner)]


@converts(Log)
def logarithm(graph: OnnxGraph, step: Step) -> list[str]:
    """log(shift + scale x) / log(base)."""
    layer = step.layer
    logs = graph.op("Log", graph.shifted(graph.scaled(step.x[0], layer.scale), layer.shift))
    return [graph.scaled(logs, 1 / layer.log_base)]


@converts(Power)
def power(graph: OnnxGraph, step: Step) -> list[str]:
    """(shift + scale x)^power; a constant does not look at x, which may be infinite."""
    layer, x = step.layer, step.x[0]
    if layer.power == 0 or layer.scale == 0:
        with np.errstate(all="ignore"):
            y = layer.function(np.zeros(1, np.float32))
        value = graph.constant(np.asarray(y).reshape(()), "value")
        return [graph.op("Expand", value, graph.op("Shape", x))]
    inner = graph.shifted(graph.scaled(x, layer.scale), layer.shift)
    if layer.power == 1:
        return [inner]
    return [graph.op("Pow", inner, graph.constant(layer.power, "power"))]


@converts(Softmax)
def softmax(graph: OnnxGraph, step: Step) -> list[str]:
    """Softmax."""
    return [graph.op("Softmax", step.x[0], axis=step.layer.axis)]


@converts(Eltwise)
def eltwise(graph: OnnxGraph, step: Step) -> list[str]:
    """Sum, Mul or Max."""
    operation = step.layer.operation
    if operation == EltwiseParameter.MAX:
        return [graph.op("Max", *step.x)]
    if operation == EltwiseParameter.PROD:
        y = step.x[0]
        for x in step.x[1:]:
            y = graph.op("Mul", y, x)
        return [y]
    terms = [graph.scaled(x, c) for x, c in zip(step.x, step.layer.coeffs, strict=True)]
    return [graph.op("Add", *terms) if len(terms) == 2 else graph.op("Sum", *terms)]


@converts(Scale, Bias)
def spread(graph: OnnxGraph, step: Step) -> list[str]:
    """Mul and Add of an operand that is a parameter or a bottom."""
    layer, y = step.layer, step.x[0]
    operands = [_spread_parameter(graph, step, each) for each in step.parameters]
    if len(step.x) > 1:
        operands.insert(0, _spread_bottom(graph, step))
    kinds = ["Add"] if isinstance(layer, Bias) else ["Mul", "Add"]
    for kind, operand in zip(kinds, operands, strict=False):
        y = graph.op(kind, y, operand)
    return [y]


def _axes_after(step: Step) -> int:
    """Return how many axes of bottom 0 follow those that the operand covers."""
    layer = step.layer
    covered = layer.operand(step.bottoms).num_axes
    return step.bottoms[0].num_axes - layer.axis - covered if covered else 0


def _spread_parameter(graph: OnnxGraph, step: Step, values: Array) -> str:
    operand = step.layer.operand(step.bottoms)
    after = (1,) * _axes_after(step)
    return graph.constant(values.reshape((*operand.shape, *after)), "operand")


def _spread_bottom(graph: OnnxGraph, step: Step) -> str:
    rank, after = step.bottoms[1].num_axes, _axes_after(step)
    if not after:
        return step.x[1]
    axes = graph.integers(range(rank, rank + after), "axes")
    return graph.op("Unsqueeze", step.x[1], axes)


@converts(BatchNorm, ScaledBatchNorm, BN, SyncBN, SegNetBN)
def batch_norm(graph: OnnxGraph, step: Step) -> list[str]:
    """BatchNormalization with the running statistics, or the batch's own spelt out."""
    layer, y = step.layer, step.x[0]
    if layer.use_global_stats:
        mean, variance = layer.running_statistics()
        scale, bias = own_scale(layer)
        operands = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
        names = [graph.constant(each, hint) for hint, each in operands.items()]
        return [graph.op("BatchNormalization", y, *names, epsilon=layer.eps)]
    rank = step.bottoms[0].num_axes
    centred, variances = _centred(graph, y, [0, *range(2, rank)])
    y = graph.op("Div", centred, graph.op("Sqrt", graph.shifted(variances, layer.eps)))
    if isinstance(layer, ScaledBatchNorm):
        per_channel = (each.reshape(-1, *(1,) * (rank - 2)) for each in own_scale(layer))
        scale_name, bias_name = (graph.constant(each, "operand") for each in per_channel)
        y = graph.op("Add", graph.op("Mul", y, scale_name), bias_name)
    return [y]


@converts(Normalize)
def normalize(graph: OnnxGraph, step: Step) -> list[str]:
    """x over the root of the sum of squares, times the scale."""
    layer, x, rank = step.layer, step.x[0], step.bottoms[0].num_axes
    axes = list(range(1, rank if len(layer.axes) > 1 else 2))
    squares = graph.op("ReduceSumSquare", x, axes=axes, keepdims=1)
    norm = graph.op("Sqrt", graph.shifted(squares, layer.eps))
    scale = graph.constant(step.parameters[0].reshape(-1, *(1,) * (rank - 2)), "scale")
    return [graph.op("Div", graph.op("Mul", x, scale), norm)]


@converts(Axpy)
def axpy(graph: OnnxGraph, step: Step) -> list[str]:
    """Mul by the gate, one number per channel, and Add."""
    rank, axes = step.bottoms[0].num_axes, step.bottoms[1].num_axes
    gate = step.x[0]
    if rank < axes:
        gate = graph.op("Unsqueeze", gate, graph.integers(range(rank, axes), "axes"))
    elif rank > axes:
        gate = graph.op("Squeeze", gate, graph.integers(range(axes, rank), "axes"))
    return [graph.op("Add", graph.op("Mul", step.x[1], gate), step.x[2])]


@converts(MVN)
def mean_variance(graph: OnnxGraph, step: Step) -> list[str]:
    """Mean and deviation spelt out: Caffe adds eps after the root."""
    layer, x = step.layer, step.x[0]
    if step.bottoms[0].num_axes != 4:
        x = graph.reshape(x, graph.shape(step.tops[0]))
    centred, variance = _centred(graph, x, [1, 2, 3] if layer.across_channels else [2, 3])
    if not layer.normalize_variance:
        return [centred]
    return [graph.op("Div", centred, graph.shifted(graph.op("Sqrt", variance), layer.eps))]


def _centred(graph: OnnxGraph, x: str, axes: list[int]) -> tuple[str, str]:
    """Return x minus its mean over the axes, and its variance."""
    centred = graph.op("Sub", x, graph.op("ReduceMean", x, axes=axes, keepdims=1))
    squares = graph.op("Mul", centred, centred)
    return centred, graph.op("ReduceMean", squares, axes=axes, keepdims=1)
