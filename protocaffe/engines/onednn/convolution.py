"""Convolution as oneDNN primitives, with bias, ReLU and folded normalisation fused in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan, kernel
from protocaffe.engines.onednn.primitives import (
    Attributes,
    Layout,
    Operation,
    Runtime,
    dims,
    operation,
)
from protocaffe.engines.onednn.weighted import (
    Passes,
    bind_passes,
    find_epilogue,
    settled_layout,
    weights_fit,
)
from protocaffe.layers.convolution import (
    Convolution,
    ConvolutionBase,
    ConvolutionDepthwise,
    DepthwiseConvolution,
)


@kernel(DepthwiseConvolution)
@kernel(ConvolutionDepthwise)
@kernel(Convolution)
def convolution(plan: OneDnnPlan, node: LayerNode[Convolution]) -> bool:
    """2-D convolution of one bottom; others run the layer's own code."""
    bottom = node.bottoms[0]
    layer, geometry = node.layer, node.layer.geometry
    if len(node.bottoms) != 1 or bottom.num_axes != 4 or geometry.channel_axis != 1:
        return False
    epilogue = find_epilogue(plan, node)
    bias = Layout.plain(plan.runtime, layer.blobs[1].shape) if geometry.bias_term else None
    shapes = (bottom.shape, node.tops[0].shape)
    wants = Wants(
        data=node.needs_backward and node.propagate_down[0],
        weights=node.needs_backward and any(layer.param_propagate_down),
    )
    passes = fast_passes(plan, layer, shapes, wants, bias, epilogue.attributes)
    if passes is None:
        return False
    bind_passes(plan, node, passes, epilogue)
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
    if not weights_fit(blob, shape):
        return
    settled = settled_layout(blob, shape)
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
