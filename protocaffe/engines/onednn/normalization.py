"""BatchNorm and Scale, each alone; together they are a chain (see ``chain.py``)."""

from __future__ import annotations

from functools import partial

import numpy as np

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.chain import bind_chain, find_chain
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, kernel
from protocaffe.engines.onednn.primitives import Layout, NativeArray, Operation, Primitive
from protocaffe.engines.onednn.statistics import (
    Normalization,
    channel_array,
    is_per_channel,
    kept,
    normalizations,
    scale_backward,
)
from protocaffe.layers.normalization import BatchNorm
from protocaffe.layers.scale import Scale

TINY = 1e-30
"""Added to a variance of 1 it changes nothing; to the 0 in a block's padding, it keeps out inf."""


@kernel(BatchNorm)
def batch_norm(plan: OneDnnPlan, node: LayerNode[BatchNorm]) -> bool:
    """Normalisation by the batch's or the running statistics.

    Backward needs only the result y, so in place costs no copy: with y for the source, mean 0
    and variance 1, oneDNN's gradient is ``dy - mean(dy) - y * mean(dy * y)``, and 1/sqrt(v+eps)
    is handed in as a scale.
    """
    if node.bottoms[0].num_axes != 4:
        return False
    chain = find_chain(plan, node)
    if chain is not None and bind_chain(plan, chain):
        return True
    layer, bottom = node.layer, node.bottoms[0]
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    flags = dnn.BN_USE_GLOBAL_STATS if layer.use_global_stats else 0
    training = not layer.use_global_stats
    wanted = node.needs_backward and node.propagate_down[0]
    forward = normalizations(runtime, layout, layer.eps, flags, None, training)
    gradient = normalizations(
        runtime, layout, TINY, flags | dnn.BN_USE_SCALE, dnn.BACKWARD, training
    )
    if forward is None or (wanted and gradient is None):
        return False
    source = plan.source(node, bottom, layout)
    result = plan.top(node, 0, layout, keep=wanted)
    arrays = {
        dnn.ARG_SRC: source,
        dnn.ARG_DST: result,
        dnn.ARG_MEAN: channel_array(runtime, channels),
        dnn.ARG_VARIANCE: channel_array(runtime, channels),
    }
    run = Normalization(layer, Primitive(forward[0], arrays), arrays, bottom.count // channels)
    plan.add_forward(node, run, (bottom,), node.tops)
    if wanted and gradient is not None and gradient[1] is not None:
        kept_result = plan.kept_result(node, result)
        plan.bind_backward(
            node, partial(_batch_norm_backward, plan, node, gradient[1], kept_result, run)
        )
    return True


def _batch_norm_backward(
    plan: OneDnnPlan,
    node: LayerNode[BatchNorm],
    made: Operation,
    result: NativeArray,
    forward: Normalization,
) -> None:
    runtime, channels = plan.runtime, node.bottoms[0].channels
    inverse_deviation = channel_array(runtime, channels)
    values, eps = inverse_deviation.values, node.layer.eps

    def invert_deviation() -> None:
        np.add(forward.variance, eps, out=values)
        np.sqrt(values, out=values)
        np.reciprocal(values, out=values)

    operands = {
        dnn.ARG_SRC: result,
        dnn.ARG_MEAN: channel_array(runtime, channels),
        dnn.ARG_VARIANCE: channel_array(runtime, channels, 1.0),
        dnn.ARG_SCALE: inverse_deviation,
        dnn.ARG_DIFF_SCALE: channel_array(runtime, channels),  # computed, of no use
        dnn.ARG_DIFF_DST: plan.gradient_in(node, node.tops[0], result.layout),
    }
    plan.add_backward(node, invert_deviation)
    plan.add_bottom_gradient(
        node,
        lambda into: Primitive(made, {**operands, dnn.ARG_DIFF_SRC: into}),
        result.layout,
        data=node.tops,
    )


keeps_input[Scale] = lambda plan, node: node.needs_backward


@kernel(Scale)
def scale(plan: OneDnnPlan, node: LayerNode[Scale]) -> bool:
    """A learned factor (and bias) per channel: normalisation with mean 0 and variance 1."""
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    if not is_per_channel(node):
        return False
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    flags = dnn.BN_USE_GLOBAL_STATS | dnn.BN_USE_SCALE
    flags |= dnn.BN_USE_SHIFT if layer.bias_term else 0
    made = normalizations(
        runtime, layout, TINY, flags, dnn.BACKWARD if node.needs_backward else None
    )
    if made is None:
        return False
    vector = Layout.plain(runtime, (channels,))
    parameters = [plan.parameter(blob, vector) for blob in layer.blobs]
    shared = {
        dnn.ARG_MEAN: channel_array(runtime, channels),
        dnn.ARG_VARIANCE: channel_array(runtime, channels, 1.0),
        **dict(zip((dnn.ARG_SCALE, dnn.ARG_SHIFT), parameters, strict=False)),
    }
    source = plan.source(node, bottom, layout)
    target = plan.top(node, 0, layout)
    if node.needs_backward:
        source = kept(plan, node, source, target)
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target, **shared}
    plan.add_forward(node, Primitive(made[0], arrays), (bottom, *layer.blobs), (top,))
    if made[1] is not None:
        shared.pop(dnn.ARG_SHIFT, None)
        operands = {dnn.ARG_SRC: source, **shared}
        plan.bind_backward(node, partial(scale_backward, plan, node, node, made[1], operands))
    return True
