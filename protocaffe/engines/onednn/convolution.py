"""Convolution and InnerProduct as oneDNN primitives, with bias and ReLU fused in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.normalization import Chain, find_chain
from protocaffe.engines.onednn.plan import OneDnnPlan, kernel
from protocaffe.engines.onednn.primitives import (
    Attributes,
    Layout,
    NativeArray,
    Operation,
    Primitive,
    Runtime,
    dims,
    operation,
    reorder,
)
from protocaffe.layers import Layer
from protocaffe.layers.convolution import Convolution
from protocaffe.layers.inner_product import InnerProduct


@dataclass
class Passes:
    """The three operations of a layer with weights, their layouts settled."""

    src: Layout
    weights: Layout
    bias: Layout | None
    dst: Layout
    forward: Operation
    backward_data: Operation | None
    backward_weights: Operation | None

    @property
    def is_fast(self) -> bool:
        """Whether none of them falls back to oneDNN's reference code."""
        made = (self.forward, self.backward_data, self.backward_weights)
        return not any(each is not None and each.is_reference for each in made)


@dataclass
class Epilogue:
    """What a primitive does to its result before storing it.

    Attributes:
        attributes: the primitive's post-operations.
        relu: the layer that is one of them; its backward is left to do.
        folded: the normalisation that is one of them, where no backward runs.
    """

    attributes: Attributes | None = None
    relu: LayerNode[Layer] | None = None
    folded: FoldedChain | None = None


def _epilogue(plan: OneDnnPlan, node: LayerNode[Layer]) -> Epilogue:
    """Find the in-place layers behind a layer that its kernel can take over."""
    chain = None if node.needs_backward else _foldable_chain(plan, node)
    relu = plan.fusable_relu(node) if chain is None else chain.relu
    if chain is None and relu is None:
        return Epilogue()
    attributes, folded = Attributes(plan.runtime), None
    if chain is not None:
        folded = FoldedChain(plan, chain)
        layout = folded.factor.layout
        attributes.binary(dnn.BINARY_MUL, layout).binary(dnn.BINARY_ADD, layout)
    if relu is not None:
        attributes.relu(relu.layer.param.relu_param.negative_slope)
    return Epilogue(attributes, relu, folded)


def _foldable_chain(plan: OneDnnPlan, node: LayerNode[Layer]) -> Chain | None:
    """The chain of BatchNorm and Scale with running statistics that overwrites the result."""
    top = node.tops[0]
    norm: LayerNode[Any] | None = plan.next_reader(node, top)
    if norm is None or norm.tops[0] is not top or any(node.layer.loss_weights):
        return None
    chain = find_chain(plan, norm)
    folds = chain is not None and norm.layer.use_global_stats and not norm.needs_backward
    return chain if folds else None


class FoldedChain:
    """A normalisation as one factor and one shift per channel, worked out before each forward."""

    def __init__(self, plan: OneDnnPlan, chain: Chain) -> None:
        self.chain = chain
        channels = chain.norm.bottoms[0].channels
        layout = Layout.plain(plan.runtime, (1, channels, 1, 1))
        self.factor, self.shift = NativeArray(layout), NativeArray(layout)

    def __call__(self) -> None:
        """Work out factor and shift from the parameters as they are now."""
        norm, blobs = self.chain.norm.layer, self.chain.scale.layer.blobs
        mean, variance = norm.running_statistics()
        factor, shift = self.factor.values, self.shift.values
        np.divide(blobs[0].data_storage.host_read(), np.sqrt(variance + norm.eps), out=factor)
        np.multiply(mean, -factor, out=shift)
        if len(blobs) > 1:
            shift += blobs[1].data_storage.host_read()


def _bind(plan: OneDnnPlan, node: LayerNode[Layer], passes: Passes, epilogue: Epilogue) -> None:
    """Add the forward and backward work of a layer with weights to the plan."""
    bottom, top, blobs = node.bottoms[0], node.tops[0], node.layer.blobs
    source = plan.source(node, bottom, passes.src)
    weights = _weights(plan, node, blobs[0], passes.weights)
    bias = None if passes.bias is None else plan.parameter(blobs[1], passes.bias)
    last = _fuse(plan, node, epilogue)
    arrays = {
        dnn.ARG_SRC: source,
        dnn.ARG_WEIGHTS: weights,
        dnn.ARG_BIAS: bias,
        dnn.ARG_DST: plan.top(last, 0, passes.dst),
    }
    folded = epilogue.folded
    if folded is not None:
        arrays[dnn.ARG_POST_OP | dnn.ARG_SRC_1] = folded.factor
        arrays[dnn.ARG_POST_OP * 2 | dnn.ARG_SRC_1] = folded.shift
        plan.add_forward(node, folded, (), ())
    plan.add_forward(node, Primitive(passes.forward, arrays), (bottom, *blobs), (top,))
    if not node.needs_backward:
        return
    gradient = plan.gradient_in(node, top, passes.dst)
    backward_data, backward_weights = passes.backward_data, passes.backward_weights
    if backward_weights is not None:
        _bind_backward_weights(plan, node, passes, backward_weights, source, gradient)
    if backward_data is not None:
        wanted = backward_data.layout(dnn.QUERY_WEIGHTS, passes.weights.shape)
        if wanted != weights.layout:
            copy = NativeArray(wanted)
            plan.add_backward(node, reorder(weights, copy), data=blobs[:1])
            weights = copy
        operands = {dnn.ARG_WEIGHTS: weights, dnn.ARG_DIFF_DST: gradient}
        plan.add_bottom_gradient(
            node,
            lambda into: Primitive(backward_data, {**operands, dnn.ARG_DIFF_SRC: into}),
            passes.src,
            data=blobs[:1],
        )


def _fuse(plan: OneDnnPlan, node: LayerNode[Layer], epilogue: Epilogue) -> LayerNode[Layer]:
    """Tell the plan which layers the epilogue does; return the one whose result is stored."""
    last = node
    if epilogue.folded is not None:
        chain = epilogue.folded.chain
        for each in (chain.norm, chain.scale):
            plan.fuse(each, backward=True)
        last = chain.scale
    if epilogue.relu is not None:
        plan.fuse(epilogue.relu)
        last = epilogue.relu
    return last


def _bind_backward_weights(
    plan: OneDnnPlan,
    node: LayerNode[Layer],
    passes: Passes,
    made: Operation,
    source: NativeArray,
    gradient: NativeArray,
) -> None:
    blobs = node.layer.blobs
    bias = [] if passes.bias is None else [passes.bias]
    roles = (dnn.ARG_DIFF_WEIGHTS, dnn.ARG_DIFF_BIAS)
    operands = {dnn.ARG_SRC: source, dnn.ARG_DIFF_DST: gradient}
    plan.add_parameter_gradients(
        node,
        lambda into: Primitive(made, {**operands, **dict(zip(roles, into, strict=False))}),
        blobs,
        [made.layout(dnn.QUERY_DIFF_WEIGHTS, passes.weights.shape), *bias],
        node.bottoms,
    )


def _weights(plan: OneDnnPlan, node: LayerNode[Layer], blob: Blob, layout: Layout) -> NativeArray:
    """Return the weights in the layout the operation chose, copied if another net settled one."""
    native = plan.parameter(blob, layout)
    if native.layout == layout:
        return native
    copy = NativeArray(layout)
    plan.add_forward(node, reorder(native, copy), (blob,), ())
    return copy


def _settled(blob: Blob, shape: tuple[int, ...]) -> Layout | None:
    """The layout that the weights already have from another plan, if it is of this shape."""
    native = blob.data_storage.native
    if isinstance(native, NativeArray) and native.layout.shape == shape:
        return native.layout
    return None


def _wants(node: LayerNode[Layer]) -> tuple[bool, bool]:
    """Whether the bottom's gradient and any parameter's gradient are to be computed."""
    data = node.needs_backward and node.propagate_down[0]
    return data, node.needs_backward and any(node.layer.param_propagate_down)


@kernel(Convolution)
def convolution(plan: OneDnnPlan, node: LayerNode[Convolution]) -> bool:
    """2-D convolution of one bottom; others run the layer's own code."""
    bottom = node.bottoms[0]
    geometry = node.layer.geometry
    if len(node.bottoms) != 1 or bottom.num_axes != 4 or geometry.channel_axis != 1:
        return False
    epilogue = _epilogue(plan, node)
    for src, dst in _convolution_layouts(plan, node):
        for weights in _weight_layouts(plan, node):
            passes = _convolution_passes(plan, node, src, weights, dst, epilogue.attributes)
            if passes is not None and passes.is_fast:
                _bind(plan, node, passes, epilogue)
                return True
    return False


def _convolution_layouts(
    plan: OneDnnPlan, node: LayerNode[Convolution]
) -> Iterator[tuple[Layout, Layout]]:
    """Layouts of bottom and top to try, the one that is best in whole nets first.

    Blocked channels throughout beat what oneDNN picks layer by layer, because no reorders
    come between; images (few channels) must stay plain, blocked ones fall to slow code.
    """
    shapes = (node.bottoms[0].shape, node.tops[0].shape)
    runtime = plan.runtime
    make = Layout.plain if shapes[0][1] < FEW_CHANNELS else Layout.blocked
    yield make(runtime, shapes[0]), Layout.blocked(runtime, shapes[1])
    yield Layout.any(runtime, shapes[0]), Layout.any(runtime, shapes[1])
    yield Layout.plain(runtime, shapes[0]), Layout.plain(runtime, shapes[1])


FEW_CHANNELS = 8


def _weight_shape(node: LayerNode[Convolution]) -> tuple[int, ...]:
    geometry, shape = node.layer.geometry, node.layer.blobs[0].shape
    if geometry.group == 1:
        return shape
    return (geometry.group, shape[0] // geometry.group, *shape[1:])


def _weight_layouts(plan: OneDnnPlan, node: LayerNode[Convolution]) -> Iterator[Layout]:
    shape = _weight_shape(node)
    settled = _settled(node.layer.blobs[0], shape)
    if settled is not None:
        yield settled
    yield Layout.any(plan.runtime, shape)


def _convolution_passes(
    plan: OneDnnPlan,
    node: LayerNode[Convolution],
    src: Layout,
    weights: Layout,
    dst: Layout,
    attributes: Attributes | None,
) -> Passes | None:
    runtime, geometry = plan.runtime, node.layer.geometry
    bias = Layout.plain(runtime, node.layer.blobs[1].shape) if geometry.bias_term else None
    window = [
        dims(geometry.stride),
        dims([d - 1 for d in geometry.dilation]),
        dims(geometry.pad),
        dims(geometry.pad),
    ]
    forward = operation(
        runtime,
        "convolution_forward",
        *(dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT, src, weights, bias, dst),
        *(*window, attributes),
    )
    if forward is None:
        return None
    src = forward.layout(dnn.QUERY_SRC, src.shape)
    weights = forward.layout(dnn.QUERY_WEIGHTS, weights.shape)
    dst = forward.layout(dnn.QUERY_DST, dst.shape)
    passes = Passes(src, weights, bias, dst, forward, None, None)
    want_data, want_weights = _wants(node)
    hint = (dnn.CONVOLUTION_DIRECT,)
    # Forward and the gradients like their weights in different orders; where the forward's is
    # refused, the primitive gets its own and the weights (or their gradient) are reordered.
    choices = (weights, Layout.any(runtime, weights.shape))
    if want_data:
        passes.backward_data = _first_fast(
            runtime,
            "convolution_backward_data",
            [(*hint, src, layout, dst, *window, forward, None) for layout in choices],
        )
    if want_weights:
        passes.backward_weights = _first_fast(
            runtime,
            "convolution_backward_weights",
            [(*hint, src, layout, bias, dst, *window, forward, None) for layout in choices],
        )
    complete = (passes.backward_data is not None) == want_data and (
        passes.backward_weights is not None
    ) == want_weights
    return passes if complete else None


def _first_fast(
    runtime: Runtime, kind: str, choices: Sequence[tuple[Any, ...]]
) -> Operation | None:
    """Return the first choice that is not reference code, or None."""
    for arguments in choices:
        made = operation(runtime, kind, *arguments)
        if made is not None and not made.is_reference:
            return made
    return None


@kernel(InnerProduct)
def inner_product(plan: OneDnnPlan, node: LayerNode[InnerProduct]) -> bool:
    """Inner product over the flattened bottom, in two dimensions.

    The bottom is reordered to plain 2-D even where it comes blocked: given the 4-D blob,
    oneDNN wants other weight layouts forward than backward, and reordering the weights every
    iteration costs far more than the small activation.
    """
    layer, blobs = node.layer, node.layer.blobs
    if layer.transpose:
        return False
    runtime = plan.runtime
    outputs, inputs = blobs[0].shape
    rows = node.bottoms[0].count // inputs
    src, dst = (Layout.plain(runtime, (rows, columns)) for columns in (inputs, outputs))
    bias = Layout.plain(runtime, (outputs,)) if len(blobs) > 1 else None
    epilogue = _epilogue(plan, node)
    settled = _settled(blobs[0], (outputs, inputs))
    weights = settled or Layout.any(runtime, (outputs, inputs))
    forward = operation(
        runtime,
        "inner_product_forward",
        *(dnn.FORWARD_TRAINING, src, weights, bias, dst, epilogue.attributes),
    )
    if forward is None:
        raise layer.error("oneDNN has no implementation of this inner product")
    weights = forward.layout(dnn.QUERY_WEIGHTS, (outputs, inputs))
    passes = Passes(src, weights, bias, dst, forward, None, None)
    want_data, want_weights = _wants(node)
    if want_data:
        passes.backward_data = operation(
            runtime, "inner_product_backward_data", src, weights, dst, forward, None
        )
    if want_weights:
        passes.backward_weights = operation(
            runtime, "inner_product_backward_weights", src, weights, bias, dst, forward, None
        )
    _bind(plan, node, passes, epilogue)
    return True
