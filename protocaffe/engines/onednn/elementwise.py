"""Eltwise sums, Concat, Split and idle Dropout as oneDNN primitives."""

from __future__ import annotations

from ctypes import c_void_p
from functools import partial

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.epilogue import Epilogue
from protocaffe.engines.onednn.plan import OneDnnPlan, elementwise_layouts, kernel
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Primitive,
    operation,
    reorder,
    summation,
)
from protocaffe.layers import Layer
from protocaffe.layers.dropout import Dropout
from protocaffe.layers.eltwise import Eltwise
from protocaffe.layers.shape import Concat, Split
from protocaffe.proto import caffe_pb2


@kernel(Eltwise)
def eltwise_sum(plan: OneDnnPlan, node: LayerNode[Eltwise]) -> bool:
    """``SUM`` with any coefficients, bottoms in one layout; others run the layer's own code."""
    layer, bottoms, top = node.layer, node.bottoms, node.tops[0]
    if layer.operation != caffe_pb2.EltwiseParameter.SUM:
        return False
    layout = _common_layout(plan, node)
    sources = [plan.source(node, bottom, layout) for bottom in bottoms]
    if any(bottom is top for bottom in bottoms[1:]):
        return False  # oneDNN's sum may write over its first source only
    if list(layer.coeffs) == [1.0, 1.0]:
        forward, last = _addition(plan, node, sources)
    else:
        forward, last = _weighted_sum(sources, plan.top(node, 0, layout), layer.coeffs), node
    plan.add_forward(node, forward, bottoms, last.tops)
    if node.needs_backward:
        plan.bind_backward(node, partial(_eltwise_backward, plan, node, layout))
    return True


def _addition(
    plan: OneDnnPlan, node: LayerNode[Eltwise], sources: list[NativeArray]
) -> tuple[Primitive, LayerNode[Layer]]:
    """Two bottoms with a ReLU behind them: oneDNN's sum is slower and takes no ReLU."""
    epilogue, layout = Epilogue(relu=plan.fusable_relu(node)), sources[0].layout
    made = operation(
        plan.runtime,
        "binary",
        *(dnn.BINARY_ADD, layout, layout, layout, epilogue.attributes(plan)),
    )
    if made is None:
        raise node.layer.error("oneDNN has no implementation of this sum")
    target = epilogue.target(plan, node, layout)
    arrays = dict(zip((dnn.ARG_SRC, dnn.ARG_SRC_1, dnn.ARG_DST), (*sources, target), strict=True))
    return Primitive(made, arrays), epilogue.last(node)


def _eltwise_backward(plan: OneDnnPlan, node: LayerNode[Eltwise], layout: Layout) -> None:
    bottoms, top = node.bottoms, node.tops[0]
    gradient = plan.gradient_in(node, top, layout)
    # In place, the bottom's diff is the top's: it is scaled last, when all others have read it.
    order = sorted(range(len(bottoms)), key=lambda index: bottoms[index] is top)
    may_share = all(bottom is not top for bottom in bottoms)
    for index in order:
        bottom, coefficient = bottoms[index], node.layer.coeffs[index]
        if not node.propagate_down[index]:
            continue
        same = coefficient == 1
        if not (same and (bottom is top or (may_share and plan.share_gradient(node, bottom)))):
            copy = partial(_weighted_copy, gradient, coefficient)
            plan.add_bottom_gradient(node, copy, layout, index=index)


def _common_layout(plan: OneDnnPlan, node: LayerNode[Layer]) -> Layout:
    """The bottoms' own layout if they agree, else the first one's."""
    common = elementwise_layouts(plan, node)
    return common or Layout.plain(plan.runtime, node.bottoms[0].shape)


def _weighted_sum(
    sources: list[NativeArray], target: NativeArray, coefficients: list[float]
) -> Primitive:
    if list(coefficients) == [1.0]:
        return reorder(sources[0], target)
    return summation(sources, target, coefficients)


def _weighted_copy(source: NativeArray, coefficient: float, target: NativeArray) -> Primitive:
    return _weighted_sum([source], target, [coefficient])


@kernel(Dropout)
def dropout(plan: OneDnnPlan, node: LayerNode[Dropout]) -> bool:
    """Where nothing is dropped, in place, there is nothing to do."""
    bottom, layer = node.bottoms[0], node.layer
    if layer.drops or layer.scale != 1 or node.tops[0] is not bottom:
        return False
    layout = plan.layout(bottom)
    source, target = plan.source(node, bottom, layout), plan.top(node, 0, layout)
    if source is not target:
        plan.add_forward(node, reorder(source, target), (bottom,), (bottom,))
    return True


@kernel(Split)
def split(plan: OneDnnPlan, node: LayerNode[Split]) -> bool:
    """The tops share the bottom's data; the gradient is one n-ary sum."""
    bottom = node.bottoms[0]
    if node.needs_backward and node.propagate_down[0]:
        plan.bind_backward(node, lambda: _split_backward(plan, node, plan.layout(bottom)))
    return True


def _split_backward(plan: OneDnnPlan, node: LayerNode[Split], layout: Layout) -> None:
    gradients = [plan.gradient_in(node, top, layout) for top in node.tops]
    plan.add_bottom_gradient(node, lambda into: summation(gradients, into), layout)


@kernel(Concat)
def concat(plan: OneDnnPlan, node: LayerNode[Concat]) -> bool:
    """Concatenation along channels of 2-D or 4-D blobs."""
    bottoms, top = node.bottoms, node.tops[0]
    if len(bottoms) == 1:
        return False
    runtime = plan.runtime
    axis = node.layer.axis
    blocked = top.num_axes == 4 and axis == 1 and all(b.shape[1] % 16 == 0 for b in bottoms)
    make = Layout.blocked if blocked else Layout.plain
    layouts = [make(runtime, bottom.shape, plan.dtype) for bottom in bottoms]
    dst = make(runtime, top.shape, plan.dtype)
    handles = (c_void_p * len(layouts))(*(layout.handle for layout in layouts))
    forward = operation(runtime, "concat", dst, len(bottoms), axis, handles, None)
    if forward is None:
        return False
    target = plan.top(node, 0, dst)
    if blocked and not node.needs_backward and _lie_in(plan, node, layouts, target):
        plan.add_forward(node, Done(), bottoms, (top,))
        return True
    arrays: dict[int, NativeArray | None] = {dnn.ARG_DST: target}
    for index, (bottom, layout) in enumerate(zip(bottoms, layouts, strict=True)):
        arrays[dnn.ARG_MULTIPLE_SRC + index] = plan.source(node, bottom, layout)
    plan.add_forward(node, Primitive(forward, arrays), bottoms, (top,))
    if node.needs_backward:
        plan.bind_backward(node, lambda: _concat_backward(plan, node, axis, dst))
    return True


def _lie_in(
    plan: OneDnnPlan, node: LayerNode[Concat], layouts: list[Layout], target: NativeArray
) -> bool:
    """Have the bottoms computed right where the top of a single example has them."""
    bottoms = node.bottoms
    one_by_one = len({id(bottom.data_storage) for bottom in bottoms}) == len(bottoms)
    if not (plan.reuses_memory and one_by_one and node.tops[0].shape[0] == 1) or any(
        plan.uses(bottom)[-1] != node.index
        or not plan.may_place(bottom)
        or plan.layout(bottom) != layout
        for bottom, layout in zip(bottoms, layouts, strict=True)
    ):
        return False
    start = 0
    for bottom, layout in zip(bottoms, layouts, strict=True):
        plan.become_part(bottom, target, start)
        start += layout.size
    return True


class Done:
    """What is left to do for a Concat whose bottoms lie in its top."""

    title = "nothing: its bottoms lie in it"

    def __call__(self) -> None:
        """Do nothing."""


def _concat_backward(plan: OneDnnPlan, node: LayerNode[Layer], axis: int, layout: Layout) -> None:
    gradient = plan.gradient_in(node, node.tops[0], layout)
    offset = [0] * node.tops[0].num_axes
    for index, bottom in enumerate(node.bottoms):
        part = layout.part(offset, bottom.shape)
        offset[axis] += bottom.shape[axis]
        if part is None:
            raise node.layer.error("oneDNN cannot cut the gradient of this Concat into parts")
        if node.propagate_down[index]:
            piece = gradient.seen_as(part)
            plan.add_bottom_gradient(
                node,
                partial(reorder, piece),
                plan.layout(bottom),
                index=index,
            )
