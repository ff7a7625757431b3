"""Normalisations with a scale and a shift of their own: one primitive each way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, kernel
from protocaffe.engines.onednn.primitives import Layout, NativeArray, Operation, Primitive
from protocaffe.engines.onednn.statistics import Normalization, channel_array, kept, normalizations
from protocaffe.layers.bn import BN, SegNetBN, SyncBN
from protocaffe.layers.normalization import ScaledBatchNorm


def scaled_batch_norm(plan: OneDnnPlan, node: LayerNode[ScaledBatchNorm]) -> bool:
    """Normalisation by the batch's or the running statistics, scaled and shifted."""
    layer, bottom = node.layer, node.bottoms[0]
    if bottom.num_axes != 4:
        return False
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    flags = dnn.BN_USE_SCALE | dnn.BN_USE_SHIFT
    flags |= dnn.BN_USE_GLOBAL_STATS if layer.use_global_stats else 0
    wanted = dnn.BACKWARD if node.needs_backward else None
    training = node.needs_backward or not layer.use_global_stats
    made = normalizations(runtime, layout, layer.eps, flags, wanted, training)
    if made is None:
        return False
    vector = Layout.plain(runtime, (channels,))
    source, target = plan.source(node, bottom, layout), plan.top(node, 0, layout)
    operands = {
        dnn.ARG_SRC: kept(plan, node, source, target) if node.needs_backward else source,
        dnn.ARG_MEAN: channel_array(runtime, channels),
        dnn.ARG_VARIANCE: channel_array(runtime, channels),
        dnn.ARG_SCALE: plan.parameter(layer.scale, vector),
    }
    shift = plan.parameter(layer.bias, vector)
    arrays = {**operands, dnn.ARG_SHIFT: shift, dnn.ARG_DST: target}
    run = Normalization(layer, Primitive(made[0], arrays), arrays, bottom.count // channels)
    plan.add_forward(node, run, (bottom, layer.scale, layer.bias), node.tops)
    if made[1] is not None:
        plan.bind_backward(node, partial(_backward, plan, node, made[1], operands))
    return True


def _backward(
    plan: OneDnnPlan,
    node: LayerNode[ScaledBatchNorm],
    made: Operation,
    operands: dict[int, NativeArray],
) -> None:
    """One primitive gives the bottom's diff and those of scale and shift together."""
    layer, bottom = node.layer, node.bottoms[0]
    into = plan.diff(bottom)
    gradient = plan.gradient_in(node, node.tops[0], into.layout)
    if not node.propagate_down[0]:
        into = plan.memory(into.layout)
    read = {**operands, dnn.ARG_DIFF_DST: gradient, dnn.ARG_DIFF_SRC: into}
    parameters = (layer.scale, layer.bias)

    def make(diffs: Sequence[NativeArray]) -> Primitive:
        roles = {dnn.ARG_DIFF_SCALE: diffs[0], dnn.ARG_DIFF_SHIFT: diffs[1]}
        return Primitive(made, {**read, **roles})

    plan.add_parameter_gradients(
        node,
        make,
        parameters,
        [Layout.plain(plan.runtime, (blob.count,)) for blob in parameters],
        () if bottom is node.tops[0] else node.bottoms,
        writes=node.bottoms if node.propagate_down[0] else (),
    )


for kind in (ScaledBatchNorm, BN, SyncBN, SegNetBN):
    kernel(kind)(scaled_batch_norm)
    keeps_input[kind] = lambda plan, node: node.needs_backward
