"""Layers with weights: binding their three passes, and what is fused behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.chain import Chain, find_chain
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import (
    Attributes,
    Layout,
    NativeArray,
    Operation,
    Primitive,
    reorder,
)
from protocaffe.layers import Layer


@dataclass
class Passes:
    """The three operations of a layer with weights, their layouts settled.

    Attributes:
        src, weights, bias, dst: what forward reads and writes.
    """

    src: Layout
    weights: Layout
    bias: Layout | None
    dst: Layout
    forward: Operation
    backward_data: Operation | None
    backward_weights: Operation | None

    @property
    def master(self) -> Layout:
        """The layout of the learned weights: forward's, or as float32 what their gradient has.

        Weights of fewer bits are copies of float32 ones, made in every forward pass.
        """
        weights = self.weights
        if weights.dtype == dnn.F32:
            return weights
        if self.backward_weights is None:
            return Layout.plain(weights.runtime, weights.shape)
        return self.backward_weights.layout(dnn.QUERY_DIFF_WEIGHTS, weights.shape)

    @property
    def are_fast(self) -> bool:
        """Whether all of them have code made for their shapes, and none unrolls its windows."""
        made = (self.forward, self.backward_data, self.backward_weights)
        return not any(each is not None and "gemm:jit" in each.implementation for each in made)


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


def find_epilogue(plan: OneDnnPlan, node: LayerNode[Layer]) -> Epilogue:
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
        attributes.eltwise(*_function(relu.layer))
    return Epilogue(attributes, relu, folded)


def _function(relu: Layer) -> tuple[int, float, float]:
    """Return what a ReLU or ReLU6 is in oneDNN's words."""
    if relu.type == "ReLU6":
        return dnn.ELTWISE_CLIP_V2, 0.0, 6.0
    return dnn.ELTWISE_RELU, relu.param.relu_param.negative_slope, 0.0


def _foldable_chain(plan: OneDnnPlan, node: LayerNode[Layer]) -> Chain | None:
    """The chain of BatchNorm and Scale with running statistics that overwrites the result."""
    top = node.tops[0]
    norm: LayerNode[Any] | None = plan.next_reader(node, top)
    if norm is None or top not in norm.tops[:1] or any(node.layer.loss_weights):
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


def bind_passes(
    plan: OneDnnPlan, node: LayerNode[Layer], passes: Passes, epilogue: Epilogue
) -> None:
    """Add the forward and backward work of a layer with weights to the plan."""
    bottom, top, blobs = node.bottoms[0], node.tops[0], node.layer.blobs
    source = plan.source(node, bottom, passes.src)
    weights = weights_in(plan, node, blobs[0], passes.weights, passes.master)
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
    if node.needs_backward:
        plan.bind_backward(node, lambda: _bind_backward(plan, node, passes, source, weights))


def _bind_backward(
    plan: OneDnnPlan,
    node: LayerNode[Layer],
    passes: Passes,
    source: NativeArray,
    weights: NativeArray,
) -> None:
    blobs = node.layer.blobs
    gradient = plan.gradient_in(node, node.tops[0], passes.dst)
    backward_data, backward_weights = passes.backward_data, passes.backward_weights
    if backward_weights is not None:
        _bind_backward_weights(plan, node, passes, backward_weights, source, gradient)
    if backward_data is not None:
        wanted = backward_data.layout(dnn.QUERY_WEIGHTS, passes.weights.shape, passes.weights.dtype)
        if wanted != weights.layout:
            copy = plan.memory(wanted)
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


def weights_in(
    plan: OneDnnPlan, node: LayerNode[Layer], blob: Blob, layout: Layout, master: Layout
) -> NativeArray:
    """Return the weights as the operation reads them, copied if they themselves lie otherwise.

    Args:
        plan: where the copying is added.
        node: the layer.
        blob: its weights.
        layout: the one the operation chose.
        master: the layout the weights get if no other net has settled one.
    """
    native = plan.parameter(blob, master)
    if native.layout == layout:
        return native
    copy = NativeArray(layout)
    plan.add_forward(node, reorder(native, copy), (blob,), ())
    return copy


def weights_fit(blob: Blob, shape: tuple[int, ...]) -> bool:
    """Whether weights shared with another kind of layer can be used in this logical shape."""
    native = blob.data_storage.native
    return not isinstance(native, NativeArray) or native.layout.shape == shape


def weight_layouts(
    plan: OneDnnPlan, blob: Blob, shape: tuple[int, ...], dtype: int
) -> list[Layout]:
    """The layouts to try for weights of a logical shape: first what they have, then any."""
    native = blob.data_storage.native
    own = [native.layout] if isinstance(native, NativeArray) and dtype == dnn.F32 else []
    return [*own, Layout.any(plan.runtime, shape, dtype)]


def gradient_layouts(plan: OneDnnPlan, blob: Blob, weights: Layout) -> list[Layout]:
    """The layouts to try for the weights' gradient, which is float32 whatever they are."""
    first = [weights] if weights.dtype == dnn.F32 else []
    return [*first, *weight_layouts(plan, blob, weights.shape, dnn.F32)]
