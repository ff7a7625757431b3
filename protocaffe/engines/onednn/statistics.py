"""What BatchNorm and Scale share: both are oneDNN's batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    Runtime,
    operation,
    reorder,
)
from protocaffe.layers import Layer
from protocaffe.layers.normalization import BatchNorm
from protocaffe.layers.scale import Scale


def channel_array(runtime: Runtime, channels: int, value: float = 0.0) -> NativeArray:
    """Return one number per channel, all of this value."""
    array = NativeArray(Layout.plain(runtime, (channels,)))
    array.values.fill(value)
    return array


def is_per_channel(node: LayerNode[Scale]) -> bool:
    """Whether a Scale has one learned factor per channel of a 4-D blob."""
    layer = node.layer
    one = len(node.bottoms) == 1 and layer.axis == 1 and layer.num_axes == 1
    return one and node.bottoms[0].num_axes == 4


def normalizations(
    runtime: Runtime,
    layout: Layout,
    eps: float,
    flags: int,
    backward_kind: int | None,
    training: bool = False,
) -> tuple[Operation, Operation | None] | None:
    """Return forward and (if wanted) backward, or None where only slow code has them."""
    prop_kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    forward = operation(
        runtime, "batch_normalization_forward", prop_kind, layout, layout, eps, flags, None
    )
    if forward is None or forward.is_reference:
        return None
    if backward_kind is None:
        return forward, None
    backward = operation(
        runtime,
        "batch_normalization_backward",
        *(backward_kind, layout, layout, layout, eps, flags, forward, None),
    )
    if backward is None or backward.is_reference:
        return None
    return forward, backward


def kept(
    plan: OneDnnPlan, node: LayerNode[Layer], source: NativeArray, target: NativeArray
) -> NativeArray:
    """Return the source as backward needs it: a copy, if this or a later layer overwrites it."""
    bottom, top = node.bottoms[0], node.tops[0]
    native = bottom.data_storage.native
    # A target of its own does not save the bottom: what works in place next writes there.
    lies_in_bottom = isinstance(native, NativeArray) and source.buffer is native.buffer
    if source.buffer is not target.buffer and not (bottom is top and lies_in_bottom):
        return source
    copy = plan.memory(source.layout)
    plan.add_forward(node, reorder(source, copy), node.bottoms, ())
    return copy


class Normalization:
    """A normalisation primitive with the running statistics before or after it."""

    def __init__(
        self,
        layer: BatchNorm,
        primitive: Primitive,
        arrays: Mapping[int, NativeArray | None],
        count: int,
    ) -> None:
        mean, variance = arrays[dnn.ARG_MEAN], arrays[dnn.ARG_VARIANCE]
        assert mean is not None
        assert variance is not None
        self.mean, self.variance = mean.values, variance.values
        self.primitives = [primitive]
        self._layer = layer
        self._primitive = primitive
        self._count = count

    def __call__(self) -> None:
        """Normalise the batch."""
        if self._layer.use_global_stats:
            self.mean[:], self.variance[:] = self._layer.running_statistics()
        self._primitive()
        if not self._layer.use_global_stats:
            self._layer.update_running_statistics(self.mean, self.variance, self._count)


def scale_backward(
    plan: OneDnnPlan,
    node: LayerNode[Scale],
    first: LayerNode[Layer],
    made: Operation,
    operands: Mapping[int, NativeArray | None],
) -> None:
    """One primitive gives the bottom's diff and the parameters' diffs together.

    Args:
        plan: where to add it.
        node: the Scale.
        first: the layer whose bottom gets the diff: the Scale, or the BatchNorm of its chain.
        made: the primitive.
        operands: what it reads besides the top's diff.
    """
    into = plan.diff(first.bottoms[0])
    gradient = plan.gradient_in(node, node.tops[0], into.layout)
    if not first.propagate_down[0]:
        into = plan.memory(into.layout)
    operands = {**operands, dnn.ARG_DIFF_DST: gradient, dnn.ARG_DIFF_SRC: into}
    roles = (dnn.ARG_DIFF_SCALE, dnn.ARG_DIFF_SHIFT)
    blobs = node.layer.blobs
    plan.add_parameter_gradients(
        node,
        lambda diffs: Primitive(made, {**operands, **dict(zip(roles, diffs, strict=False))}),
        blobs,
        [Layout.plain(plan.runtime, blob.shape) for blob in blobs],
        first.bottoms,
        writes=first.bottoms[:1] if first.propagate_down[0] else (),
    )
