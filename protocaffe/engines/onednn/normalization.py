"""BatchNorm and Scale as oneDNN's batch normalisation."""

from __future__ import annotations

import numpy as np

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, kernel
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    Runtime,
    operation,
    reorder,
)
from protocaffe.layers import Layer
from protocaffe.layers.normalization import BatchNorm
from protocaffe.layers.scale import Scale

TINY = 1e-30
"""Added to a variance of 1 it changes nothing; to the 0 in a block's padding, it keeps out inf."""


def _channel_array(runtime: Runtime, channels: int, value: float = 0.0) -> NativeArray:
    array = NativeArray(Layout.plain(runtime, (channels,)))
    array.values.fill(value)
    return array


def _pair(
    runtime: Runtime, layout: Layout, eps: float, flags: int, backward_kind: int | None
) -> tuple[Operation, Operation | None] | None:
    """Return forward and (if wanted) backward, or None where only slow code has them."""
    training = backward_kind is not None and not flags & dnn.BN_USE_GLOBAL_STATS
    prop_kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    forward = operation(
        runtime, "batch_normalization_forward", prop_kind, layout, layout, eps, flags, None
    )
    if forward is None or forward.is_reference:
        return None
    if backward_kind is None:
        return forward, None
    backward = operation(
        runtime,
        "batch_normalization_backward",
        *(backward_kind, layout, layout, layout, eps, flags, forward, None),
    )
    if backward is None or backward.is_reference:
        return None
    return forward, backward


@kernel(BatchNorm)
def batch_norm(plan: OneDnnPlan, node: LayerNode[BatchNorm]) -> bool:
    """Normalisation by the batch's or the running statistics.

    Backward needs only the result y, so in place costs no copy: with y for the source, mean 0
    and variance 1, oneDNN's gradient is ``dy - mean(dy) - y * mean(dy * y)``, and 1/sqrt(v+eps)
    is handed in as a scale.
    """
    if node.bottoms[0].num_axes != 4:
        return False
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    global_stats = layer.use_global_stats
    stats_flag = dnn.BN_USE_GLOBAL_STATS if global_stats else 0
    wanted = node.needs_backward and node.propagate_down[0]
    forward = _pair(
        runtime, layout, layer.eps, stats_flag, dnn.BACKWARD_DATA if not global_stats else None
    )
    gradient = _pair(runtime, layout, TINY, stats_flag | dnn.BN_USE_SCALE, dnn.BACKWARD)
    if forward is None or (wanted and gradient is None):
        return False
    mean, variance = (_channel_array(runtime, channels) for _ in range(2))
    inverse_deviation = _channel_array(runtime, channels)
    source = plan.source(node, bottom, layout)
    result = plan.top(node, 0, layout, keep=wanted)
    arrays = {
        dnn.ARG_SRC: source,
        dnn.ARG_DST: result,
        dnn.ARG_MEAN: mean,
        dnn.ARG_VARIANCE: variance,
    }
    primitive = Primitive(forward[0], arrays)

    def run() -> None:
        if global_stats:
            mean.values[:], variance.values[:] = layer.running_statistics()
        primitive()
        if not global_stats:
            layer.update_running_statistics(mean.values, variance.values, bottom.count // channels)
        np.add(variance.values, layer.eps, out=inverse_deviation.values)
        np.sqrt(inverse_deviation.values, out=inverse_deviation.values)
        np.reciprocal(inverse_deviation.values, out=inverse_deviation.values)

    plan.add_forward(node, run, (bottom,), (top,))
    if wanted and gradient is not None and gradient[1] is not None:
        backward = gradient[1]
        operands = {
            dnn.ARG_SRC: result,
            dnn.ARG_MEAN: _channel_array(runtime, channels),
            dnn.ARG_VARIANCE: _channel_array(runtime, channels, 1.0),
            dnn.ARG_SCALE: inverse_deviation,
            dnn.ARG_DIFF_SCALE: _channel_array(runtime, channels),  # computed, of no use
            dnn.ARG_DIFF_DST: plan.diff(top),
        }
        plan.add_bottom_gradient(
            node,
            lambda into: Primitive(backward, {**operands, dnn.ARG_DIFF_SRC: into}),
            layout,
            data=(top,),
        )
    return True


keeps_input.add(Scale)


@kernel(Scale)
def scale(plan: OneDnnPlan, node: LayerNode[Scale]) -> bool:
    """A learned factor (and bias) per channel: normalisation with mean 0 and variance 1."""
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    per_channel = len(node.bottoms) == 1 and layer.axis == 1 and layer.num_axes == 1
    if not per_channel or bottom.num_axes != 4:
        return False
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    flags = dnn.BN_USE_GLOBAL_STATS | dnn.BN_USE_SCALE
    flags |= dnn.BN_USE_SHIFT if layer.bias_term else 0
    made = _pair(runtime, layout, TINY, flags, dnn.BACKWARD if node.needs_backward else None)
    if made is None:
        return False
    vector = Layout.plain(runtime, (channels,))
    parameters = [plan.parameter(blob, vector) for blob in layer.blobs]
    shared = {
        dnn.ARG_MEAN: _channel_array(runtime, channels),
        dnn.ARG_VARIANCE: _channel_array(runtime, channels, 1.0),
        **dict(zip((dnn.ARG_SCALE, dnn.ARG_SHIFT), parameters, strict=False)),
    }
    source = plan.source(node, bottom, layout)
    target = plan.top(node, 0, layout)
    if source is target and node.needs_backward:
        source = NativeArray(layout)
        plan.add_forward(node, reorder(target, source), (bottom,), ())
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target, **shared}
    plan.add_forward(node, Primitive(made[0], arrays), (bottom, *layer.blobs), (top,))
    if made[1] is not None:
        shared.pop(dnn.ARG_SHIFT, None)
        _scale_backward(plan, node, made[1], {dnn.ARG_SRC: source, **shared})
    return True


def _scale_backward(
    plan: OneDnnPlan, node: LayerNode[Layer], made: Operation, operands: dict[int, NativeArray]
) -> None:
    """One primitive gives the bottom's diff and the parameters' diffs together."""
    gradient, into = plan.diff(node.tops[0]), plan.diff(node.bottoms[0])
    if not node.propagate_down[0]:
        into = NativeArray(into.layout)
    operands = {**operands, dnn.ARG_DIFF_DST: gradient, dnn.ARG_DIFF_SRC: into}
    roles = (dnn.ARG_DIFF_SCALE, dnn.ARG_DIFF_SHIFT)
    blobs = node.layer.blobs
    plan.add_parameter_gradients(
        node,
        lambda diffs: Primitive(made, {**operands, **dict(zip(roles, diffs, strict=False))}),
        blobs,
        [Layout.plain(plan.runtime, blob.shape) for blob in blobs],
        node.bottoms,
        writes=node.bottoms[:1] if node.propagate_down[0] else (),
    )
