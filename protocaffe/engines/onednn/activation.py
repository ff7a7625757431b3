"""Activations as oneDNN primitives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, kernel
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    operation,
)
from protocaffe.engines.onednn.statistics import kept
from protocaffe.layers.activation import (
    ELU,
    Clip,
    Neuron,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Swish,
    TanH,
)
from protocaffe.layers.softmax import Softmax


@kernel(ReLU)
def relu(plan: OneDnnPlan, node: LayerNode[ReLU]) -> bool:
    """ReLU; where an earlier kernel has fused it, only its backward is left to do."""
    slope = node.layer.param.relu_param.negative_slope
    # The sign of y would not tell the sign of x if the slope were negative.
    return slope >= 0 and _neuron(plan, node, dnn.ELTWISE_RELU, dnn.ELTWISE_RELU_USE_DST, slope)


@kernel(ReLU6)
def relu6(plan: OneDnnPlan, node: LayerNode[ReLU6]) -> bool:
    """ReLU6, fused as ReLU is. Of oneDNN's two kinds of clip, this one's gradient needs only y."""
    algorithms = (dnn.ELTWISE_CLIP_V2, dnn.ELTWISE_CLIP_V2_USE_DST)
    return _neuron(plan, node, *algorithms, alpha=0.0, beta=6.0)


@kernel(ELU)
def elu(plan: OneDnnPlan, node: LayerNode[ELU]) -> bool:
    """ELU with alpha of 0 or more, for the same reason."""
    alpha = node.layer.param.elu_param.alpha
    return alpha >= 0 and _neuron(plan, node, dnn.ELTWISE_ELU, dnn.ELTWISE_ELU_USE_DST, alpha)


@kernel(TanH)
def tanh(plan: OneDnnPlan, node: LayerNode[TanH]) -> bool:
    """Hyperbolic tangent."""
    return _neuron(plan, node, dnn.ELTWISE_TANH, dnn.ELTWISE_TANH_USE_DST)


@kernel(Sigmoid)
def sigmoid(plan: OneDnnPlan, node: LayerNode[Sigmoid]) -> bool:
    """Logistic function."""
    return _neuron(plan, node, dnn.ELTWISE_LOGISTIC, dnn.ELTWISE_LOGISTIC_USE_DST)


def _neuron(
    plan: OneDnnPlan,
    node: LayerNode[Neuron],
    algorithm: int,
    gradient: int,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> bool:
    """An element-wise function whose gradient follows from its result."""
    bottom, top = node.bottoms[0], node.tops[0]
    runtime, layout = plan.runtime, plan.layout(bottom)
    forward = operation(
        runtime,
        "eltwise_forward",
        *(dnn.FORWARD_TRAINING, algorithm, layout, layout, alpha, beta, None),
    )
    if forward is None:
        return False
    source = target = plan.source(node, bottom, layout)
    if not plan.is_fused(node):
        target = plan.top(node, 0, layout)
        arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target}
        plan.add_forward(node, Primitive(forward, arrays), (bottom,), (top,))
    if node.needs_backward and node.propagate_down[0]:
        backward = operation(
            runtime,
            "eltwise_backward",
            *(gradient, layout, layout, layout, alpha, beta, forward, None),
        )
        if backward is None:
            raise node.layer.error("oneDNN has this function for the layout, not its gradient")
        plan.bind_backward(
            node, partial(_neuron_backward, plan, node, backward, {dnn.ARG_DST: target}, (top,))
        )
    return True


def _neuron_backward(
    plan: OneDnnPlan,
    node: LayerNode[Neuron],
    made: Operation,
    operands: dict[int, NativeArray],
    data: Sequence[Blob],
) -> None:
    (kept_data,) = operands.values()
    layout = kept_data.layout
    operands[dnn.ARG_DIFF_DST] = plan.gradient_in(node, node.tops[0], layout)
    plan.add_bottom_gradient(
        node,
        lambda into: Primitive(made, {**operands, dnn.ARG_DIFF_SRC: into}),
        layout,
        data=data,
    )


@kernel(Clip)
def clip(plan: OneDnnPlan, node: LayerNode[Clip]) -> bool:
    """Both limits count as inside for the gradient; oneDNN counts the lower one outside."""
    low, high = node.layer.min, node.layer.max
    number = np.float32
    below = np.nextafter(number(low), number("-inf")) if low else -np.finfo(number).tiny
    return _neuron_from_input(plan, node, dnn.ELTWISE_CLIP, (low, high), (float(below), high))


@kernel(Swish)
def swish(plan: OneDnnPlan, node: LayerNode[Swish]) -> bool:
    """x * sigmoid(beta * x)."""
    beta = (node.layer.beta, 0.0)
    return _neuron_from_input(plan, node, dnn.ELTWISE_SWISH, beta, beta)


def _neuron_from_input(
    plan: OneDnnPlan,
    node: LayerNode[Neuron],
    algorithm: int,
    forward_parameters: tuple[float, float],
    backward_parameters: tuple[float, float],
) -> bool:
    """An element-wise function whose gradient needs its input."""
    runtime, layout = plan.runtime, plan.layout(node.bottoms[0])
    forward = operation(
        runtime,
        "eltwise_forward",
        *(dnn.FORWARD_TRAINING, algorithm, layout, layout, *forward_parameters, None),
    )
    if forward is None:
        return False
    source, target = _input_and_result(plan, node, layout)
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target}
    plan.add_forward(node, Primitive(forward, arrays), node.bottoms, node.tops)
    if node.needs_backward and node.propagate_down[0]:
        backward = operation(
            runtime,
            "eltwise_backward",
            *(algorithm, layout, layout, layout, *backward_parameters, forward, None),
        )
        if backward is None:
            raise node.layer.error("oneDNN has this function for the layout, not its gradient")
        data = () if node.bottoms[0] is node.tops[0] else node.bottoms
        plan.bind_backward(
            node, partial(_neuron_backward, plan, node, backward, {dnn.ARG_SRC: source}, data)
        )
    return True


def _input_and_result(
    plan: OneDnnPlan, node: LayerNode[Neuron], layout: Layout
) -> tuple[NativeArray, NativeArray]:
    source, target = plan.source(node, node.bottoms[0], layout), plan.top(node, 0, layout)
    return (kept(plan, node, source, target) if node.needs_backward else source), target


@kernel(Softmax)
def softmax(plan: OneDnnPlan, node: LayerNode[Softmax]) -> bool:
    """Softmax where no backward runs, along an axis whose numbers lie side by side."""
    bottom = node.bottoms[0]
    layout = Layout.plain(plan.runtime, bottom.shape, plan.dtype)
    settings = (dnn.FORWARD_INFERENCE, dnn.SOFTMAX_ACCURATE, layout, layout, node.layer.axis, None)
    made = None if node.needs_backward else operation(plan.runtime, "softmax_forward", *settings)
    if made is None or made.is_reference:
        return False
    source, target = plan.source(node, bottom, layout), plan.top(node, 0, layout)
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target}
    plan.add_forward(node, Primitive(made, arrays), (bottom,), node.tops)
    return True


@kernel(PReLU)
def prelu(plan: OneDnnPlan, node: LayerNode[PReLU]) -> bool:
    """A learned slope per channel of a 4-D blob; one shared slope runs the layer's own code."""
    bottom = node.bottoms[0]
    if node.layer.channel_shared or bottom.num_axes != 4:
        return False
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    make = Layout.plain if plan.layout(bottom).is_plain else Layout.blocked
    slopes = make(runtime, (1, channels, 1, 1))
    forward = operation(
        runtime, "prelu_forward", dnn.FORWARD_TRAINING, layout, slopes, layout, None
    )
    backward = None
    if node.needs_backward and forward is not None:
        descriptors = (layout, slopes, layout, slopes, layout)
        backward = operation(runtime, "prelu_backward", *descriptors, forward, None)
    made = (forward, backward) if node.needs_backward else (forward,)
    if forward is None or any(each is None or each.is_reference for each in made):
        return False
    source, target = _input_and_result(plan, node, layout)
    vector = plan.parameter(node.layer.blobs[0], Layout.plain(runtime, (channels,)))
    operands = {dnn.ARG_SRC: source, dnn.ARG_WEIGHTS: NativeArray(slopes, vector.values)}
    work = Primitive(forward, {**operands, dnn.ARG_DST: target})
    plan.add_forward(node, work, (bottom, *node.layer.blobs), node.tops)
    if backward is not None:
        plan.bind_backward(node, partial(_prelu_backward, plan, node, backward, operands, slopes))
    return True


def _prelu_backward(
    plan: OneDnnPlan,
    node: LayerNode[PReLU],
    made: Operation,
    operands: dict[int, NativeArray],
    slopes: Layout,
) -> None:
    """One primitive gives the bottom's diff and the slopes' diff together."""
    into = plan.diff(node.bottoms[0])
    gradient = plan.gradient_in(node, node.tops[0], into.layout)
    if not node.propagate_down[0]:
        into = plan.memory(into.layout)
    operands = {**operands, dnn.ARG_DIFF_SRC: into, dnn.ARG_DIFF_DST: gradient}

    def make(diffs: list[NativeArray]) -> Primitive:
        gradient = NativeArray(slopes, diffs[0].values)
        return Primitive(made, {**operands, dnn.ARG_DIFF_WEIGHTS: gradient})

    plan.add_parameter_gradients(
        node,
        make,
        node.layer.blobs,
        [Layout.plain(plan.runtime, node.layer.blobs[0].shape)],
        () if node.bottoms[0] is node.tops[0] else node.bottoms,
        writes=node.bottoms if node.propagate_down[0] else (),
    )


for needy in (Clip, Swish, PReLU):
    keeps_input[needy] = lambda plan, node: node.needs_backward
