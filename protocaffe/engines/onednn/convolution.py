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
from protocaffe.layers.convolution import Convolution, ConvolutionBase
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
    weights = weights_in(plan, node, blobs[0], passes.weights)
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


def weights_in(plan: OneDnnPlan, node: LayerNode[Layer], blob: Blob, layout: Layout) -> NativeArray:
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


@kernel(Convolution)
def convolution(plan: OneDnnPlan, node: LayerNode[Convolution]) -> bool:
    """2-D convolution of one bottom; others run the layer's own code."""
    bottom = node.bottoms[0]
    layer, geometry = node.layer, node.layer.geometry
    if len(node.bottoms) != 1 or bottom.num_axes != 4 or geometry.channel_axis != 1:
        return False
    epilogue = _epilogue(plan, node)
    bias = Layout.plain(plan.runtime, layer.blobs[1].shape) if geometry.bias_term else None
    shapes = (bottom.shape, node.tops[0].shape)
    wants = Wants(
        data=node.needs_backward and node.propagate_down[0],
        weights=node.needs_backward and any(layer.param_propagate_down),
    )
    passes = fast_passes(plan, layer, shapes, wants, bias, epilogue.attributes)
    if passes is None:
        return False
    _bind(plan, node, passes, epilogue)
    return True


@dataclass
class Wants:
    """Which gradients are to be computed."""

    data: bool
    weights: bool


def fast_passes(
    plan: OneDnnPlan,
    layer: ConvolutionBase,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    wants: Wants,
    bias: Layout | None = None,
    attributes: Attributes | None = None,
) -> Passes | None:
    """Return the three passes in the first layouts in which none is slow, or None.

    Args:
        plan: for the library.
        layer: its geometry and weights.
        shapes: of the image and of the grid of window positions over it.
        wants: which gradients.
        bias: the bias' layout, None for no bias.
        attributes: what the forward pass does to its result.
    """
    for src, dst in _image_and_grid_layouts(plan.runtime, *shapes):
        for weights in _weight_layouts(plan, layer):
            passes = _passes(plan, layer, (src, weights, bias, dst), wants, attributes)
            if passes is not None and passes.is_fast:
                return passes
    return None


def _image_and_grid_layouts(
    runtime: Runtime, image: tuple[int, ...], grid: tuple[int, ...]
) -> Iterator[tuple[Layout, Layout]]:
    """Layouts of bottom and top to try, the one that is best in whole nets first.

    Blocked channels throughout beat what oneDNN picks layer by layer, because no reorders
    come between; images (few channels) must stay plain, blocked ones fall to slow code.
    """
    make = Layout.plain if image[1] < FEW_CHANNELS else Layout.blocked
    yield make(runtime, image), Layout.blocked(runtime, grid)
    yield Layout.any(runtime, image), Layout.any(runtime, grid)
    yield Layout.plain(runtime, image), Layout.plain(runtime, grid)


FEW_CHANNELS = 8


def _weight_layouts(plan: OneDnnPlan, layer: ConvolutionBase) -> Iterator[Layout]:
    group, blob = layer.geometry.group, layer.blobs[0]
    shape = blob.shape
    if group > 1:
        shape = (group, shape[0] // group, *shape[1:])
    settled = _settled(blob, shape)
    if settled is not None:
        yield settled
    yield Layout.any(plan.runtime, shape)


def _passes(
    plan: OneDnnPlan,
    layer: ConvolutionBase,
    layouts: tuple[Layout, Layout, Layout | None, Layout],
    wants: Wants,
    attributes: Attributes | None,
) -> Passes | None:
    runtime, geometry = plan.runtime, layer.geometry
    src, weights, bias, dst = layouts
    window = [
        dims(geometry.stride),
        dims([d - 1 for d in geometry.dilation]),
        dims(geometry.pad),
        dims(geometry.pad),
    ]
    head = (dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT)
    forward = operation(runtime, "convolution_forward", *head, *layouts, *window, attributes)
    if forward is None:
        return None
    src = forward.layout(dnn.QUERY_SRC, src.shape)
    weights = forward.layout(dnn.QUERY_WEIGHTS, weights.shape)
    dst = forward.layout(dnn.QUERY_DST, dst.shape)
    passes = Passes(src, weights, bias, dst, forward, None, None)
    # Forward and the gradients like their weights in different orders; where the forward's is
    # refused, the primitive gets its own and the weights (or their gradient) are reordered.
    choices = (weights, Layout.any(runtime, weights.shape))
    tail = (*window, forward, None)
    if wants.data:
        passes.backward_data = _first_fast(
            runtime,
            "convolution_backward_data",
            [(dnn.CONVOLUTION_DIRECT, src, layout, dst, *tail) for layout in choices],
        )
    if wants.weights:
        passes.backward_weights = _first_fast(
            runtime,
            "convolution_backward_weights",
            [(dnn.CONVOLUTION_DIRECT, src, layout, bias, dst, *tail) for layout in choices],
        )
    complete = (passes.backward_data is not None) >= wants.data and (
        passes.backward_weights is not None
    ) >= wants.weights
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
    if node.needs_backward and node.propagate_down[0]:
        passes.backward_data = operation(
            runtime, "inner_product_backward_data", src, weights, dst, forward, None
        )
    if node.needs_backward and any(layer.param_propagate_down):
        passes.backward_weights = operation(
            runtime, "inner_product_backward_weights", src, weights, bias, dst, forward, None
        )
    _bind(plan, node, passes, epilogue)
    return True
