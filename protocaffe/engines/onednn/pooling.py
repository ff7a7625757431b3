"""Pooling and local response normalisation as oneDNN primitives."""

from __future__ import annotations

from functools import partial

import numpy as np

from protocaffe.engines.base import LayerNode, Work
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, kernel, workspace
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    dims,
    operation,
)
from protocaffe.layers.normalization import LRN
from protocaffe.layers.pooling import Pooling
from protocaffe.proto import caffe_pb2


@kernel(Pooling)
def pooling(plan: OneDnnPlan, node: LayerNode[Pooling]) -> bool:
    """MAX and AVE pooling with Caffe's rounding; a mask top runs the layer's own code."""
    bottom, top = node.bottoms[0], node.tops[0]
    stochastic = node.layer.method == caffe_pb2.PoolingParameter.STOCHASTIC
    if stochastic or len(node.tops) != 1 or _window_outside(node):
        return False
    algorithm, correction = _algorithm(plan, node)
    src = plan.layout(bottom)
    made = _operations(plan, node, algorithm, src)
    if made is None:
        return False
    forward, backward = made
    dst = forward.layout(dnn.QUERY_DST, top.shape, src.dtype)
    notes = workspace(plan, forward) if backward is not None else None
    source, target = plan.source(node, bottom, src), plan.top(node, 0, dst)
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target, dnn.ARG_WORKSPACE: notes}
    plan.add_forward(node, Primitive(forward, arrays), (bottom,), (top,))
    if correction is not None:
        plan.add_forward(node, _scaled(target, correction, target), (top,), (top,))
    if backward is not None and node.propagate_down[0]:
        plan.bind_backward(
            node, partial(_pooling_backward, plan, node, backward, (src, dst), notes, correction)
        )
    return True


def _pooling_backward(
    plan: OneDnnPlan,
    node: LayerNode[Pooling],
    made: Operation,
    layouts: tuple[Layout, Layout],
    notes: NativeArray | None,
    correction: NativeArray | None,
) -> None:
    src, dst = layouts
    gradient = plan.gradient_in(node, node.tops[0], dst)
    if correction is not None:
        corrected = plan.memory(dst)
        plan.add_backward(node, _scaled(gradient, correction, corrected), diffs=node.tops)
        gradient = corrected
    operands = {dnn.ARG_DIFF_DST: gradient, dnn.ARG_WORKSPACE: notes}
    plan.add_bottom_gradient(
        node, lambda into: Primitive(made, {**operands, dnn.ARG_DIFF_SRC: into}), src
    )


def _operations(
    plan: OneDnnPlan, node: LayerNode[Pooling], algorithm: int, src: Layout
) -> tuple[Operation, Operation | None] | None:
    """Return forward and (if it runs) backward, or None where only slow code has them."""
    geometry, runtime = node.layer.geometry, plan.runtime
    window = [
        dims(geometry.stride),
        dims(geometry.kernel),
        dims((0, 0)),
        dims(geometry.pad),
        dims([after for _, after in _overhang(node)]),
    ]
    shape = node.tops[0].shape
    prop_kind = dnn.FORWARD_TRAINING if node.needs_backward else dnn.FORWARD_INFERENCE
    head = (prop_kind, algorithm, src, Layout.any(runtime, shape, src.dtype))
    forward = operation(runtime, "pooling_forward", *head, *window, None)
    if forward is None or forward.is_reference:
        return None
    if not node.needs_backward:
        return forward, None
    dst = forward.layout(dnn.QUERY_DST, shape, src.dtype)
    backward = operation(runtime, "pooling_backward", algorithm, src, dst, *window, forward, None)
    return None if backward is None or backward.is_reference else (forward, backward)


def _overhang(node: LayerNode[Pooling]) -> list[tuple[int, int]]:
    """Per axis, how far the windows reach beyond the image before and after it."""
    geometry = node.layer.geometry
    sizes = node.bottoms[0].shape[2:]
    return [
        (pad, (out - 1) * stride + kernel_size - size - pad)
        for size, out, kernel_size, stride, pad in zip(
            *(sizes, geometry.output, geometry.kernel, geometry.stride, geometry.pad), strict=True
        )
    ]


def _window_outside(node: LayerNode[Pooling]) -> bool:
    """Whether some window lies wholly outside the image (Caffe's ceil rule allows it)."""
    pairs = zip(_overhang(node), node.layer.geometry.kernel, strict=True)
    return any(after >= kernel_size for (_, after), kernel_size in pairs)


def _algorithm(plan: OneDnnPlan, node: LayerNode[Pooling]) -> tuple[int, NativeArray | None]:
    """Choose oneDNN's rule, and the factors that turn its averages into Caffe's.

    Caffe's AVE divisor counts padding up to the padded border but not what the last window
    of the ceil rule has beyond it. Without padding that is oneDNN's exclude_padding; with
    padding, include_padding divides by the whole kernel and the rest is a factor per output.
    """
    geometry = node.layer.geometry
    if node.layer.method == caffe_pb2.PoolingParameter.MAX:
        return dnn.POOLING_MAX, None
    if not any(geometry.pad):
        return dnn.POOLING_AVG_EXCLUDE_PADDING, None
    factors = np.multiply.outer(
        *(
            (kernel_size / counted).astype(np.float32)
            for kernel_size, counted in zip(geometry.kernel, geometry.lengths, strict=True)
        )
    )
    if (factors == 1).all():
        return dnn.POOLING_AVG_INCLUDE_PADDING, None
    layout = Layout.plain(plan.runtime, (1, 1, *geometry.output))
    return dnn.POOLING_AVG_INCLUDE_PADDING, NativeArray(layout, np.ravel(factors))


def _scaled(source: NativeArray, factors: NativeArray, target: NativeArray) -> Work:
    made = operation(
        target.layout.runtime,
        "binary",
        *(dnn.BINARY_MUL, source.layout, factors.layout, target.layout, None),
    )
    assert made is not None, "oneDNN multiplies any two layouts"
    arrays = {dnn.ARG_SRC: source, dnn.ARG_SRC_1: factors, dnn.ARG_DST: target}
    return Primitive(made, arrays)


FAST_LRN_SIZE = 5
"""The local_size of all published nets: others are reference code, and size 1 crashes v3.2."""


@kernel(LRN)
def lrn(plan: OneDnnPlan, node: LayerNode[LRN]) -> bool:
    """Normalisation across 5 channels; other kinds run the layer's own code."""
    layer, bottom, top = node.layer, node.bottoms[0], node.tops[0]
    if layer.region != caffe_pb2.LRNParameter.ACROSS_CHANNELS or layer.size != FAST_LRN_SIZE:
        return False
    runtime = plan.runtime
    blocked = bottom.channels % 16 == 0
    layout = plan.layout(bottom)
    if blocked:
        layout = Layout.blocked(runtime, bottom.shape, plan.dtype)
    rule = (layer.size, layer.alpha, layer.beta, layer.k)
    prop_kind = dnn.FORWARD_TRAINING if node.needs_backward else dnn.FORWARD_INFERENCE
    head = (dnn.LRN_ACROSS_CHANNELS, layout, layout)
    forward = operation(runtime, "lrn_forward", prop_kind, *head, *rule, None)
    if forward is None or forward.is_reference:
        return False
    backward = None
    if node.needs_backward:
        backward = operation(runtime, "lrn_backward", *head, layout, *rule, forward, None)
        if backward is None or backward.is_reference:
            return False
    notes = workspace(plan, forward) if backward is not None else None
    source = plan.source(node, bottom, layout)
    arrays = {
        dnn.ARG_SRC: source,
        dnn.ARG_DST: plan.top(node, 0, layout),
        dnn.ARG_WORKSPACE: notes,
    }
    plan.add_forward(node, Primitive(forward, arrays), (bottom,), (top,))
    if backward is not None and node.propagate_down[0]:
        plan.bind_backward(node, partial(_lrn_backward, plan, node, backward, source, notes))
    return True


def _lrn_backward(
    plan: OneDnnPlan,
    node: LayerNode[LRN],
    made: Operation,
    source: NativeArray,
    notes: NativeArray | None,
) -> None:
    operands = {
        dnn.ARG_SRC: source,
        dnn.ARG_DIFF_DST: plan.gradient_in(node, node.tops[0], source.layout),
        dnn.ARG_WORKSPACE: notes,
    }
    plan.add_bottom_gradient(
        node,
        lambda into: Primitive(made, {**operands, dnn.ARG_DIFF_SRC: into}),
        source.layout,
        data=node.bottoms,
    )
