"""BatchNorm, Scale and ReLU in place as one primitive, as residual nets have them everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, keeps_input, workspace
from protocaffe.engines.onednn.primitives import Layout, NativeArray, Primitive
from protocaffe.engines.onednn.statistics import (
    Normalization,
    channel_array,
    is_per_channel,
    kept,
    normalizations,
    scale_backward,
)
from protocaffe.layers import Layer
from protocaffe.layers.normalization import BatchNorm
from protocaffe.layers.scale import Scale

PLAIN = ("ReLU", 0)
"""Type and negative slope of the one activation that oneDNN puts behind a normalisation."""


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
    if not plan.fuses:
        return None
    top = node.tops[0]
    scale: LayerNode[Any] | None = plan.next_reader(node, top)
    if (
        type(node.layer) is not BatchNorm
        or scale is None
        or type(scale.layer) is not Scale
        or scale.tops[0] is not top
        or not is_per_channel(scale)
        or any((*node.layer.loss_weights, *scale.layer.loss_weights))
        or scale.needs_backward != node.needs_backward
    ):
        return None
    return Chain(node, scale, plan.fusable_relu(scale))


def bind_chain(plan: OneDnnPlan, chain: Chain) -> bool:
    """The whole chain as one primitive each way; its ReLU only where the slope is 0."""
    relu = chain.relu
    if relu is not None and (relu.layer.type, relu.layer.param.relu_param.negative_slope) != PLAIN:
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
    made = normalizations(runtime, layout, layer.eps, flags, wanted, training)
    if made is None:
        return False
    vector = Layout.plain(runtime, (channels,))
    parameters = [plan.parameter(blob, vector) for blob in scale.layer.blobs]
    source = plan.source(norm, bottom, layout)
    target = plan.top(chain.last, 0, layout)
    if norm.needs_backward:
        source = kept(plan, norm, source, target)
    shared: dict[int, NativeArray | None] = {
        dnn.ARG_SRC: source,
        dnn.ARG_MEAN: channel_array(runtime, channels),
        dnn.ARG_VARIANCE: channel_array(runtime, channels),
        dnn.ARG_SCALE: parameters[0],
        dnn.ARG_WORKSPACE: workspace(plan, made[0]) if training else None,
    }
    arrays = {**shared, dnn.ARG_DST: target}
    arrays |= dict(zip((dnn.ARG_SCALE, dnn.ARG_SHIFT), parameters, strict=False))
    run = Normalization(layer, Primitive(made[0], arrays), arrays, bottom.count // channels)
    plan.add_forward(norm, run, (bottom, *scale.layer.blobs), norm.tops)
    if made[1] is not None:
        plan.bind_backward(norm, partial(scale_backward, plan, chain.scale, norm, made[1], shared))
    later = [node for node in (scale, relu) if node is not None]
    for node in later:
        plan.fuse(node, backward=True)
    plan.joined.append({norm.index, *(node.index for node in later)})
    return True


def _needs_input(plan: OneDnnPlan, node: LayerNode[BatchNorm]) -> bool:
    return node.needs_backward and find_chain(plan, node) is not None


keeps_input[BatchNorm] = _needs_input
