"""What a layer with weights does to its result by the way: normalisation, residual sum, ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.chain import Chain, find_chain
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import Attributes, Layout, NativeArray, reorder
from protocaffe.layers import Layer
from protocaffe.layers.eltwise import Eltwise
from protocaffe.proto import caffe_pb2


@dataclass
class Residual:
    """The sum of a layer's result and a shortcut, worked out where the shortcut lies."""

    node: LayerNode[Eltwise]
    branch: Blob
    shortcut: Blob


@dataclass
class Epilogue:
    """The layers behind a layer with weights that its primitive takes over.

    Attributes:
        chain: the normalisation that becomes part of the weights, where no backward runs.
        residual: the sum that is a post-operation, where no backward runs.
        relu: the layer that is the last post-operation; its backward is left to do.
    """

    chain: Chain | None = None
    residual: Residual | None = None
    relu: LayerNode[Layer] | None = None

    def attributes(self, plan: OneDnnPlan) -> Attributes | None:
        """Return the primitive's post-operations."""
        if self.residual is None and self.relu is None:
            return None
        attributes = Attributes(plan.runtime)
        if self.residual is not None:
            attributes.accumulate(1.0)
        if self.relu is not None:
            attributes.eltwise(*_function(self.relu.layer))
        return attributes

    def fits(self, plan: OneDnnPlan, layout: Layout) -> bool:
        """Whether a result in this layout can be added to the shortcut."""
        return self.residual is None or plan.layout(self.residual.shortcut) == layout

    def last(self, node: LayerNode[Layer]) -> LayerNode[Layer]:
        """Return the layer whose result is stored: the one with the weights, or one of these."""
        if self.relu is not None:
            return self.relu
        if self.residual is not None:
            return self.residual.node
        return node if self.chain is None else self.chain.scale

    def target(self, plan: OneDnnPlan, node: LayerNode[Layer], layout: Layout) -> NativeArray:
        """Tell the plan which layers are done by the way; return the memory of the result."""
        if self.chain is not None:
            plan.fuse(self.chain.norm, backward=True)
            plan.fuse(self.chain.scale, backward=True)
        if self.relu is not None:
            plan.fuse(self.relu)
        if self.residual is None:
            return plan.top(self.last(node), 0, layout)
        plan.fuse(self.residual.node, backward=True)
        plan.lose(self.residual.branch)
        return plan.take_over(self.residual.node.tops[0], self.residual.shortcut)


def find_epilogue(plan: OneDnnPlan, node: LayerNode[Layer]) -> Epilogue:
    """Find the in-place layers behind a layer that its kernel can take over."""
    chain = None if node.needs_backward else _foldable_chain(plan, node)
    if chain is not None:
        return Epilogue(chain, relu=chain.relu)
    return Epilogue(relu=plan.fusable_relu(node))


def epilogues(plan: OneDnnPlan, node: LayerNode[Layer]) -> Iterator[Epilogue]:
    """Find the in-place layers, and before that, what there is beyond a residual sum as well."""
    found = find_epilogue(plan, node)
    if found.relu is None:
        residual = _find_residual(plan, node, found.last(node))
        if residual is not None:
            yield Epilogue(found.chain, residual, plan.fusable_relu(residual.node))
    yield found


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


def _find_residual(
    plan: OneDnnPlan, first: LayerNode[Layer], last: LayerNode[Layer]
) -> Residual | None:
    """The plain sum that alone reads the result, and is the last to read its other bottom.

    Neither can be read after the pass, so the net must have been made to reuse memory.

    Args:
        plan: that of the net.
        first: the layer with weights.
        last: the layer whose result is to be added: ``first`` or one in place behind it.
    """
    branch = last.tops[0]
    node: LayerNode[Any] | None = plan.next_reader(last, branch)
    if (
        not plan.reuses_memory
        or node is None
        or type(node.layer) is not Eltwise
        or node.layer.operation != caffe_pb2.EltwiseParameter.SUM
        or list(node.layer.coeffs) != [1.0, 1.0]
        or node.needs_backward
        or any(last.layer.loss_weights)
    ):
        return None
    shortcut = node.bottoms[0 if node.bottoms[1] is branch else 1]
    alone = all(index <= last.index for index in plan.uses(branch) if index != node.index)
    ready = all(index < first.index for index in plan.uses(shortcut) if index != node.index)
    in_place = any(bottom is node.tops[0] for bottom in node.bottoms)
    fits = alone and ready and not in_place and plan.may_place(shortcut)
    return Residual(node, branch, shortcut) if fits else None


class FoldedWeights:
    """Weights and bias with a normalisation in them, worked out when any of them has changed.

    Args:
        plan: for the library.
        layer: the one with weights, the first axis of which are the channels.
        chain: the normalisation behind it.
        layout: of the weights, as the primitive reads them.
    """

    title = "folding, after changes"

    def __init__(self, plan: OneDnnPlan, layer: Layer, chain: Chain, layout: Layout) -> None:
        self.weights = NativeArray(layout)
        self.bias = NativeArray(Layout.plain(plan.runtime, (layer.blobs[0].shape[0],)))
        self._layer = layer
        self._norm, self._scale = chain.norm.layer, chain.scale.layer
        blobs = (*layer.blobs, *self._norm.blobs, *self._scale.blobs)
        self._storages = [blob.data_storage for blob in blobs]
        self._versions: list[int] = []

    def __call__(self) -> None:
        """Bring them up to date."""
        if [storage.version for storage in self._storages] != self._versions:
            self._fold()
            self._versions = [storage.version for storage in self._storages]

    def _fold(self) -> None:
        weights, *biases = (blob.data_storage.host_read() for blob in self._layer.blobs)
        scale, *shifts = (blob.data_storage.host_read() for blob in self._scale.blobs)
        mean, variance = self._norm.running_statistics()
        factor = scale / np.sqrt(variance + self._norm.eps)
        shift = -mean * factor + sum(factor * bias for bias in biases) + sum(shifts)
        layout = self.weights.layout
        folded = (weights.reshape(factor.size, -1) * factor[:, None]).ravel()
        plain = Layout.plain(layout.runtime, layout.shape)
        reorder(NativeArray(plain, folded), self.weights)()
        self.bias.values[:] = shift
