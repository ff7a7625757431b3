"""BatchNorm and Scale as oneDNN's batch normalisation, alone or as one with a ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, kernel, workspace
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


@dataclass
class Chain:
    """BatchNorm, Scale and perhaps ReLU, the later ones in place: nobody sees between them."""

    norm: LayerNode[BatchNorm]
    scale: LayerNode[Scale]
    relu: LayerNode[Layer] | None

    @property
    def last(self) -> LayerNode[Layer]:
        """The layer whose result the blob holds in the end."""
        return self.relu or self.scale


def find_chain(plan: OneDnnPlan, node: LayerNode[Any]) -> Chain | None:
    """Return the chain that starts with a BatchNorm, if a Scale per channel follows in place."""
    top = node.tops[0]
    scale: LayerNode[Any] | None = plan.next_reader(node, top)
    if (
        type(node.layer) is not BatchNorm
        or scale is None
        or type(scale.layer) is not Scale
        or scale.tops[0] is not top
        or not _is_per_channel(scale)
        or any((*node.layer.loss_weights, *scale.layer.loss_weights))
        or scale.needs_backward != node.needs_backward
    ):
        return None
    return Chain(node, scale, plan.fusable_relu(scale))


def _is_per_channel(node: LayerNode[Scale]) -> bool:
    layer = node.layer
    one = len(node.bottoms) == 1 and layer.axis == 1 and layer.num_axes == 1
    return one and node.bottoms[0].num_axes == 4


def _pair(
    runtime: Runtime,
    layout: Layout,
    eps: float,
    flags: int,
    backward_kind: int | None,
    training: bool = False,
) -> tuple[Operation, Operation | None] | None:
    """Return forward and (if wanted) backward, or None where only slow code has them."""
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
    chain = find_chain(plan, node)
    if chain is not None and _chain(plan, chain):
        return True
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    global_stats = layer.use_global_stats
    stats_flag = dnn.BN_USE_GLOBAL_STATS if global_stats else 0
    wanted = node.needs_backward and node.propagate_down[0]
    forward = _pair(runtime, layout, layer.eps, stats_flag, None, training=not global_stats)
    gradient = _pair(
        *(runtime, layout, TINY, stats_flag | dnn.BN_USE_SCALE, dnn.BACKWARD),
        training=not global_stats,
    )
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
    normalize = Normalization(layer, primitive, arrays, bottom.count // channels)

    def run() -> None:
        normalize()
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


def _chain(plan: OneDnnPlan, chain: Chain) -> bool:
    """The whole chain as one primitive each way; its ReLU only where the slope is 0."""
    relu = chain.relu
    if relu is not None and relu.layer.param.relu_param.negative_slope != 0:
        chain.relu = relu = None
    norm, scale = chain.norm, chain.scale
    layer, bottom = norm.layer, norm.bottoms[0]
    runtime, layout, channels = plan.runtime, plan.layout(bottom), bottom.channels
    flags = dnn.BN_USE_SCALE
    flags |= dnn.BN_USE_SHIFT if scale.layer.bias_term else 0
    flags |= dnn.BN_FUSE_RELU if relu is not None else 0
    flags |= dnn.BN_USE_GLOBAL_STATS if layer.use_global_stats else 0
    wanted = dnn.BACKWARD if norm.needs_backward else None
    training = norm.needs_backward or not layer.use_global_stats
    made = _pair(runtime, layout, layer.eps, flags, wanted, training)
    if made is None:
        return False
    vector = Layout.plain(runtime, (channels,))
    parameters = [plan.parameter(blob, vector) for blob in scale.layer.blobs]
    source = plan.source(norm, bottom, layout)
    target = plan.top(chain.last, 0, layout)
    if norm.needs_backward:
        source = _kept(plan, norm, source, target)
    shared: dict[int, NativeArray | None] = {
        dnn.ARG_SRC: source,
        dnn.ARG_MEAN: _channel_array(runtime, channels),
        dnn.ARG_VARIANCE: _channel_array(runtime, channels),
        dnn.ARG_SCALE: parameters[0],
        dnn.ARG_WORKSPACE: workspace(made[0]) if training else None,
    }
    arrays = {**shared, dnn.ARG_DST: target}
    arrays |= dict(zip((dnn.ARG_SCALE, dnn.ARG_SHIFT), parameters, strict=False))
    run = Normalization(layer, Primitive(made[0], arrays), arrays, bottom.count // channels)
    plan.add_forward(norm, run, (bottom, *scale.layer.blobs), norm.tops)
    if made[1] is not None:
        _scale_backward(plan, chain.scale, norm, made[1], shared)
    for node in (scale, relu):
        if node is not None:
            plan.fuse(node, backward=True)
    return True


def _kept(
    plan: OneDnnPlan, node: LayerNode[Layer], source: NativeArray, target: NativeArray
) -> NativeArray:
    """Return the source as backward needs it: a copy, if forward is about to overwrite it."""
    if source is not target:
        return source
    copy = NativeArray(source.layout)
    plan.add_forward(node, reorder(source, copy), node.bottoms, ())
    return copy


class Normalization:
    """A normalisation primitive with the running statistics before or after it."""

    def __init__(
        self,
        layer: BatchNorm,
        primitive: Primitive,
        arrays: Mapping[int, NativeArray | None],
        count: int,
    ) -> None:
        mean, variance = arrays[dnn.ARG_MEAN], arrays[dnn.ARG_VARIANCE]
        assert mean is not None
        assert variance is not None
        self.mean, self.variance = mean.values, variance.values
        self._layer = layer
        self._primitive = primitive
        self._count = count

    def __call__(self) -> None:
        """Normalise the batch."""
        if self._layer.use_global_stats:
            self.mean[:], self.variance[:] = self._layer.running_statistics()
        self._primitive()
        if not self._layer.use_global_stats:
            self._layer.update_running_statistics(self.mean, self.variance, self._count)


def _needs_input(plan: OneDnnPlan, node: LayerNode[BatchNorm]) -> bool:
    return node.needs_backward and find_chain(plan, node) is not None


keeps_input[BatchNorm] = _needs_input
keeps_input[Scale] = lambda plan, node: node.needs_backward


@kernel(Scale)
def scale(plan: OneDnnPlan, node: LayerNode[Scale]) -> bool:
    """A learned factor (and bias) per channel: normalisation with mean 0 and variance 1."""
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    if not _is_per_channel(node):
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
    if node.needs_backward:
        source = _kept(plan, node, source, target)
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target, **shared}
    plan.add_forward(node, Primitive(made[0], arrays), (bottom, *layer.blobs), (top,))
    if made[1] is not None:
        shared.pop(dnn.ARG_SHIFT, None)
        _scale_backward(plan, node, node, made[1], {dnn.ARG_SRC: source, **shared})
    return True


def _scale_backward(
    plan: OneDnnPlan,
    node: LayerNode[Scale],
    first: LayerNode[Layer],
    made: Operation,
    operands: Mapping[int, NativeArray | None],
) -> None:
    """One primitive gives the bottom's diff and the parameters' diffs together.

    Args:
        plan: where to add it.
        node: the Scale.
        first: the layer whose bottom gets the diff: the Scale, or the BatchNorm of its chain.
        made: the primitive.
        operands: what it reads besides the top's diff.
    """
    gradient, into = plan.diff(node.tops[0]), plan.diff(first.bottoms[0])
    if not first.propagate_down[0]:
        into = NativeArray(into.layout)
    operands = {**operands, dnn.ARG_DIFF_DST: gradient, dnn.ARG_DIFF_SRC: into}
    roles = (dnn.ARG_DIFF_SCALE, dnn.ARG_DIFF_SHIFT)
    blobs = node.layer.blobs
    plan.add_parameter_gradients(
        node,
        lambda diffs: Primitive(made, {**operands, **dict(zip(roles, diffs, strict=False))}),
        blobs,
        [Layout.plain(plan.runtime, blob.shape) for blob in blobs],
        first.bottoms,
        writes=first.bottoms[:1] if first.propagate_down[0] else (),
    )
