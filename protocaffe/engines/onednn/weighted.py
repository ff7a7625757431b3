"""Layers with weights: binding their three passes."""

from __future__ import annotations

from dataclasses import dataclass

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.epilogue import Epilogue, FoldedWeights
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import (
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


def bind_passes(
    plan: OneDnnPlan, node: LayerNode[Layer], passes: Passes, epilogue: Epilogue
) -> None:
    """Add the forward and backward work of a layer with weights to the plan."""
    bottom, blobs = node.bottoms[0], node.layer.blobs
    source = plan.source(node, bottom, passes.src)
    reads = [bottom, *blobs]
    weights: NativeArray
    bias: NativeArray | None
    if epilogue.chain is None:
        weights = weights_in(plan, node, blobs[0], passes.weights, passes.master)
        bias = None if passes.bias is None else plan.parameter(blobs[1], passes.bias)
    else:
        folded = FoldedWeights(plan, node.layer, epilogue.chain, passes.weights)
        weights, bias, reads = folded.weights, folded.bias, [bottom]
        plan.add_forward(node, folded, (), ())
    if epilogue.residual is not None:
        reads.append(epilogue.residual.shortcut)
    arrays = {
        dnn.ARG_SRC: source,
        dnn.ARG_WEIGHTS: weights,
        dnn.ARG_BIAS: bias,
        dnn.ARG_DST: epilogue.target(plan, node, passes.dst),
    }
    written = epilogue.last(node).tops
    plan.add_forward(node, Primitive(passes.forward, arrays), reads, written)
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
