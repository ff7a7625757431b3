"""Convolution as oneDNN primitives, with bias, ReLU and folded normalisation fused in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.epilogue import epilogues
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
    gradient_layouts,
    weight_layouts,
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
    shapes = (bottom.shape, node.tops[0].shape)
    wants = Wants(
        data=node.needs_backward and node.propagate_down[0],
        weights=node.needs_backward and any(layer.param_propagate_down),
    )
    vector = Layout.plain(plan.runtime, (layer.blobs[0].shape[0],))
    for epilogue in epilogues(plan, node):
        bias = vector if geometry.bias_term or epilogue.chain is not None else None
        passes = fast_passes(plan, layer, shapes, wants, bias, epilogue.attributes(plan))
        if passes is not None and epilogue.fits(plan, passes.dst):
            bind_passes(plan, node, passes, epilogue)
            return True
    return False


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
    group, blob = layer.geometry.group, layer.blobs[0]
    weights = blob.shape if group == 1 else (group, blob.shape[0] // group, *blob.shape[1:])
    if not weights_fit(blob, weights):
        return None
    second_best = None
    for dtype in dict.fromkeys((plan.dtype, dnn.F32)):
        for src, dst in _image_and_grid_layouts(plan.runtime, *shapes, dtype):
            for layout in weight_layouts(plan, blob, weights, dtype):
                passes = _passes(plan, layer, (src, layout, bias, dst), wants, attributes)
                if passes is not None and passes.are_fast:
                    return passes
                second_best = second_best or passes
    return second_best


def _image_and_grid_layouts(
    runtime: Runtime, image: tuple[int, ...], grid: tuple[int, ...], dtype: int
) -> Iterator[tuple[Layout, Layout]]:
    """Layouts of bottom and top to try, the one that is best in whole nets first.

    Blocked channels throughout beat what oneDNN picks layer by layer, because no reorders
    come between; images (few channels) must stay plain, blocked ones fall to slow code.
    """
    many = [channels for channels in (image[1], grid[1]) if channels >= FEW_CHANNELS]
    wasteful = many and all(-(-channels // BLOCK) * BLOCK > WASTE * channels for channels in many)
    best = Layout.channels_last if wasteful else Layout.blocked
    make = Layout.plain if image[1] < FEW_CHANNELS else best
    yield make(runtime, image, dtype), best(runtime, grid, dtype)
    yield Layout.any(runtime, image, dtype), Layout.any(runtime, grid, dtype)
    yield Layout.plain(runtime, image, dtype), Layout.plain(runtime, grid, dtype)


FEW_CHANNELS = 8
BLOCK = 16
WASTE = 1.25
"""From how much padding on (as LeNet's 20 and 50 channels need) blocks lose to channels-last."""


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
    if forward is None or forward.is_reference:
        return None
    src = forward.layout(dnn.QUERY_SRC, src.shape, src.dtype)
    weights = forward.layout(dnn.QUERY_WEIGHTS, weights.shape, weights.dtype)
    dst = forward.layout(dnn.QUERY_DST, dst.shape, dst.dtype)
    passes = Passes(src, weights, bias, dst, forward, None, None)
    # Forward and the gradients like their weights in different orders; where the forward's is
    # refused, the primitive gets its own and the weights (or their gradient) are reordered.
    choices = (weights, Layout.any(runtime, weights.shape, weights.dtype))
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
            [
                (dnn.CONVOLUTION_DIRECT, src, layout, bias, dst, *tail)
                for layout in gradient_layouts(plan, layer.blobs[0], weights)
            ],
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
