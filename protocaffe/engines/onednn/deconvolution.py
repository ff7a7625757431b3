"""Deconvolution: a convolution's passes in other roles."""

from __future__ import annotations

from protocaffe.engines.base import LayerNode, Work
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.convolution import Wants, fast_passes
from protocaffe.engines.onednn.plan import OneDnnPlan, kernel
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    operation,
)
from protocaffe.engines.onednn.weighted import Passes, weights_in
from protocaffe.layers.convolution import Deconvolution


@kernel(Deconvolution)
def deconvolution(plan: OneDnnPlan, node: LayerNode[Deconvolution]) -> bool:
    """2-D deconvolution of one bottom; others run the layer's own code.

    The top is the image and the bottom the grid of a convolution with the same weights:
    forward is that convolution's data gradient, the bottom's gradient its forward pass.
    """
    bottom, top, blobs = node.bottoms[0], node.tops[0], node.layer.blobs
    if len(node.bottoms) != 1 or bottom.num_axes != 4 or node.layer.geometry.channel_axis != 1:
        return False
    learns = node.needs_backward and node.layer.param_propagate_down[0]
    passes = fast_passes(plan, node.layer, (top.shape, bottom.shape), Wants(True, learns))
    if passes is None or passes.backward_data is None:
        return False
    grid = plan.source(node, bottom, passes.dst)
    shape, dtype = passes.weights.shape, passes.weights.dtype
    wanted = passes.backward_data.layout(dnn.QUERY_WEIGHTS, shape, dtype)
    master = wanted if dtype == dnn.F32 else passes.master
    weights = weights_in(plan, node, blobs[0], wanted, master)
    operands = {dnn.ARG_DIFF_DST: grid, dnn.ARG_WEIGHTS: weights}
    image = plan.top(node, 0, passes.src)
    forward = Primitive(passes.backward_data, {**operands, dnn.ARG_DIFF_SRC: image})
    plan.add_forward(node, forward, (bottom, *blobs), (top,))
    if len(blobs) > 1:
        plan.add_forward(node, _bias(plan, node, image), (top, blobs[1]), (top,))
    if node.needs_backward:
        plan.bind_backward(node, lambda: _backward(plan, node, passes, grid))
    return True


def _bias(plan: OneDnnPlan, node: LayerNode[Deconvolution], image: NativeArray) -> Work:
    """Add the bias to every pixel of its channel."""
    bias = node.layer.blobs[1]
    vector = plan.parameter(bias, Layout.plain(plan.runtime, bias.shape))
    channels = NativeArray(Layout.plain(plan.runtime, (1, bias.count, 1, 1)), vector.values)
    made = operation(
        plan.runtime,
        "binary",
        *(dnn.BINARY_ADD, image.layout, channels.layout, image.layout, None),
    )
    if made is None:
        raise node.layer.error("oneDNN cannot add a bias in this layout")
    arrays = {dnn.ARG_SRC: image, dnn.ARG_SRC_1: channels, dnn.ARG_DST: image}
    return Primitive(made, arrays)


def _backward(
    plan: OneDnnPlan, node: LayerNode[Deconvolution], passes: Passes, grid: NativeArray
) -> None:
    layer = node.layer
    gradient = plan.gradient_in(node, node.tops[0], passes.src)
    if passes.backward_weights is not None:
        _weight_gradient(plan, node, passes.backward_weights, gradient, grid, passes.weights)
    if len(layer.blobs) > 1 and layer.param_propagate_down[1]:
        plan.settle_gradient(node, node.tops[0])
        plan.backward[node.index].append(lambda: _add_bias_gradient(node))
    if node.propagate_down[0]:
        weights = weights_in(plan, node, layer.blobs[0], passes.weights, passes.master)
        operands = {dnn.ARG_SRC: gradient, dnn.ARG_WEIGHTS: weights}
        plan.add_bottom_gradient(
            node,
            lambda into: Primitive(passes.forward, {**operands, dnn.ARG_DST: into}),
            passes.dst,
            data=layer.blobs[:1],
        )


def _weight_gradient(
    plan: OneDnnPlan,
    node: LayerNode[Deconvolution],
    made: Operation,
    gradient: NativeArray,
    grid: NativeArray,
    weights: Layout,
) -> None:
    operands = {dnn.ARG_SRC: gradient, dnn.ARG_DIFF_DST: grid}
    plan.add_parameter_gradients(
        node,
        lambda into: Primitive(made, {**operands, dnn.ARG_DIFF_WEIGHTS: into[0]}),
        node.layer.blobs[:1],
        [made.layout(dnn.QUERY_DIFF_WEIGHTS, weights.shape)],
        node.bottoms,
    )


def _add_bias_gradient(node: LayerNode[Deconvolution]) -> None:
    top = node.tops[0]
    gradient = top.diff_storage.host_read().reshape(top.shape)
    node.layer.blobs[1].diff[...] += gradient.sum(axis=(0, 2, 3))
