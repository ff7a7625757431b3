"""What a net costs: shapes, parameters, multiply-adds, memory and receptive fields, by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from protocaffe.blob import Blob, Storage
from protocaffe.graph import Node, merge_state
from protocaffe.layers import Layer
from protocaffe.layers.convolution import Convolution, Deconvolution, Im2col
from protocaffe.layers.detection import PriorBox
from protocaffe.layers.inner_product import InnerProduct
from protocaffe.layers.normalization import LRN
from protocaffe.layers.permutation import Permute, Reorg
from protocaffe.layers.pooling import Pooling
from protocaffe.layers.resize import Interp, Unpool, Upsample
from protocaffe.layers.roi import RegionPooling
from protocaffe.layers.shape import Crop, Flatten, Reshape
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_net
from protocaffe.proto.upgrade import upgrade_net
from protocaffe.scaffold import Scaffold, build_scaffold

BYTES = 4
"""Per number: blobs are float32."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer of the prototxt.

    Attributes:
        name: its name.
        type: its type.
        where: ``file:line``, or an empty string.
        bottoms: names of the blobs it reads.
        tops: names of the blobs it writes.
        shapes: the shape of every top.
        parameters: how many numbers of its own it has in its parameter blobs.
        shared_parameters: how many it shares with layers before it.
        multiply_adds: products with learned weights that a forward pass adds up, for the whole
            batch; element-wise work does not count.
        memory: bytes of the tops' data; 0 where it uses its bottoms' memory.
        receptive_field: per axis of the image, how many pixels of the input a value of the first
            top depends on, padding included; None where that has no meaning. Sums over whole
            planes for normalisation do not count.
    """

    name: str
    type: str
    where: str
    bottoms: list[str]
    tops: list[str]
    shapes: list[tuple[int, ...]]
    parameters: int
    shared_parameters: int
    multiply_adds: int
    memory: int
    receptive_field: tuple[int, ...] | None


@dataclass(frozen=True)
class Summary:
    """A net in one state.

    Attributes:
        name: the net's name.
        phase: ``TRAIN`` or ``TEST``.
        level: the state's level.
        stages: the state's stages.
        inputs: the shapes of the blobs that bring data, by name.
        outputs: the shapes of the blobs that nobody reads, by name.
        layers: those of the prototxt, in order; Split layers, which cost nothing, are left out.
        assumptions: what was assumed because data are missing, one sentence each.
    """

    name: str
    phase: str
    level: int
    stages: list[str]
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    layers: list[LayerSummary]
    assumptions: list[str]

    @property
    def batch(self) -> int:
        """How many images a pass takes: the first extent of the first input, 1 without one."""
        shape = next(iter(self.inputs.values()), ())
        return max(1, shape[0]) if shape else 1

    @property
    def parameters(self) -> int:
        """How many numbers the net learns or keeps, shared ones once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass of the batch."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def parameter_memory(self) -> int:
        """Bytes of the parameters; a ``.caffemodel`` is about as large."""
        return BYTES * self.parameters

    @property
    def memory(self) -> int:
        """Bytes of all blobs' data for the batch; training needs as much again for the diffs."""
        return sum(layer.memory for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, totals too, as values for JSON."""
        totals = ("batch", "parameters", "multiply_adds", "parameter_memory", "memory")
        return {**asdict(self), "totals": {name: getattr(self, name) for name in totals}}


def summarize(
    source: str | Path | caffe_pb2.NetParameter,
    phase: int = caffe_pb2.TEST,
    *,
    level: int = 0,
    stages: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Summary:
    """Count what a net costs, without allocating its parameters or blobs.

    Args:
        source: path of a net prototxt, or a ``NetParameter``.
        phase: ``TRAIN`` or ``TEST``.
        level: the state's level.
        stages: the state's stages.
        shapes: shapes of inputs and data, by blob, instead of those of prototxt and databases.

    Raises:
        ProtocaffeError: the net cannot be built, or needs data that are missing and no shape
            for them is known.
    """
    if isinstance(source, caffe_pb2.NetParameter):
        net, where = caffe_pb2.NetParameter(), None
        net.CopyFrom(source)
        upgrade_net(net, net.name)
    else:
        net, where = read_net(source)
    state = merge_state(net, phase, level, stages)
    with closing(build_scaffold(net, state, where, shapes)) as scaffold:
        return _summary(scaffold)


def _summary(scaffold: Scaffold) -> Summary:
    graph, assembly = scaffold.graph, scaffold.assembly
    nodes = [node for node in graph.nodes if not node.bottoms]
    state = graph.state
    return Summary(
        name=graph.name,
        phase=caffe_pb2.Phase.Name(state.phase),
        level=state.level,
        stages=[stage for stage in state.stage if stage],
        inputs={top: assembly.blobs[top].shape for node in nodes for top in node.tops},
        outputs={name: assembly.blobs[name].shape for name in graph.outputs},
        layers=_layers(scaffold),
        assumptions=scaffold.assumptions,
    )


def _layers(scaffold: Scaffold) -> list[LayerSummary]:
    assembly = scaffold.assembly
    names = _Names()
    fields = _ReceptiveFields()
    seen: set[Storage] = set()
    owned = {id(param.blob) for param in assembly.learnable}
    result = []
    for node, layer, bottoms, tops, top_names in zip(
        scaffold.graph.nodes,
        assembly.layers,
        assembly.bottoms,
        assembly.tops,
        assembly.top_names,
        strict=True,
    ):
        field = fields.add(layer, bottoms, tops)
        seen.update(blob.data_storage for blob in (*bottoms, *layer.blobs))
        if names.is_split(node):
            continue
        new = {top.data_storage for top in tops} - seen
        own = sum(blob.count for blob in layer.blobs if id(blob) in owned)
        result.append(
            LayerSummary(
                name=node.name,
                type=node.param.type,
                where=node.where,
                bottoms=[names.written(bottom) for bottom in node.bottoms],
                tops=list(top_names),
                shapes=[top.shape for top in tops],
                parameters=own,
                shared_parameters=sum(blob.count for blob in layer.blobs) - own,
                multiply_adds=layer.multiply_adds(bottoms, tops),
                memory=BYTES * sum(storage.count for storage in new),
                receptive_field=field,
            )
        )
    return result


class _Names:
    """Knows what the blobs are called in the prototxt, where Split layers rename them."""

    def __init__(self) -> None:
        self._original: dict[str, str] = {}

    def is_split(self, node: Node) -> bool:
        """Tell whether a layer was inserted, and remember its names if so."""
        if node.param.type != "Split" or not node.name.endswith("_split"):
            return False
        self._original.update((top, self.written(node.bottoms[0])) for top in node.tops)
        return True

    def written(self, blob: str) -> str:
        """Return a blob's name in the prototxt."""
        return self._original.get(blob, blob)


@dataclass(frozen=True)
class _Field:
    """What a value sees of the input, per image axis.

    Attributes:
        size: how many input pixels.
        jump: by how many of them neighbours differ.
        extents: how many values there were when the axes were last those of an image: Flatten
            and its like take the axes away, but each value still sees its own part.
    """

    size: tuple[Fraction, ...]
    jump: tuple[Fraction, ...]
    extents: tuple[int, ...]

    def seen_through(self, window: Sequence[int], stride: Sequence[Fraction]) -> _Field:
        """Return the field of a value that looks at ``window`` values of this field."""
        size = (s + (w - 1) * j for s, w, j in zip(self.size, window, self.jump, strict=True))
        jump = (j * step for j, step in zip(self.jump, stride, strict=True))
        return _Field(tuple(size), tuple(jump), self.extents)


class _ReceptiveFields:
    """The receptive field of every blob, worked out layer by layer."""

    def __init__(self) -> None:
        self._fields: dict[Blob, _Field] = {}

    def add(self, layer: Layer, bottoms: list[Blob], tops: list[Blob]) -> tuple[int, ...] | None:
        """Return the first top's field; None if there is none."""
        field = self._field(layer, bottoms, tops)
        if field is None:
            return None
        self._fields.update((top, field) for top in tops)
        return tuple(math.ceil(size) for size in field.size)

    def _field(self, layer: Layer, bottoms: list[Blob], tops: list[Blob]) -> _Field | None:
        if not bottoms:
            extents = tops[0].shape[2:]
            ones = (Fraction(1),) * len(extents)
            return _Field(ones, ones, extents) if ones else None
        sources = bottoms[:1] if isinstance(layer, (Crop, RegionPooling)) else bottoms
        below = [self._fields[blob] for blob in sources if blob in self._fields]
        if (
            isinstance(layer, PriorBox)
            or not below
            or not tops
            or len({len(each.size) for each in below}) > 1
        ):
            return None
        field = max(below, key=lambda field: field.size)
        window = _window(layer, field, bottoms[0], tops[0])
        if window and len(window[0]) != len(field.size):
            return None
        field = field.seen_through(*window) if window else field
        if isinstance(layer, REARRANGING) or tops[0].num_axes != len(field.size) + 2:
            return field
        return replace(field, extents=tops[0].shape[2:])


REARRANGING = (Flatten, Reshape, Permute)
"""Layers that give other axes to values, and change none."""


def _window(
    layer: Layer, field: _Field, bottom: Blob, top: Blob
) -> tuple[Sequence[int], Sequence[Fraction]] | None:
    """Return how many values per axis a top value looks at, and the steps between windows."""
    axes = len(field.extents)
    if isinstance(layer, (Convolution, Im2col, Deconvolution)):
        return _convolution_window(layer)
    if isinstance(layer, Pooling):
        return layer.geometry.kernel, [Fraction(s) for s in layer.geometry.stride]
    if isinstance(layer, LRN) and layer.region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
        return (layer.size, layer.size), (Fraction(1), Fraction(1))
    if isinstance(layer, (Upsample, Unpool, Reorg, Interp)):
        extents = zip(bottom.shape[2:], top.shape[2:], strict=True)
        return _resizing_window([*extents], smooth=isinstance(layer, Interp))
    mixing = bottom.num_axes == axes + 2 != top.num_axes and not isinstance(layer, REARRANGING)
    if mixing or isinstance(layer, (InnerProduct, RegionPooling)):
        return field.extents, [Fraction(1)] * axes
    return None


def _convolution_window(
    layer: Convolution | Im2col | Deconvolution,
) -> tuple[Sequence[int], Sequence[Fraction]]:
    geometry = layer.geometry
    sizes = [(k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    if not isinstance(layer, Deconvolution):
        return sizes, [Fraction(s) for s in geometry.stride]
    windows = [-(-size // s) for size, s in zip(sizes, geometry.stride, strict=True)]
    return windows, [Fraction(1, s) for s in geometry.stride]


def _resizing_window(
    extents: Sequence[tuple[int, int]], smooth: bool
) -> tuple[Sequence[int], Sequence[Fraction]]:
    """Return that of a layer which makes one extent of another, per axis.

    Args:
        extents: the bottom's and the top's.
        smooth: whether values lie between two of the bottom's, corner on corner.
    """
    if smooth:
        steps = [Fraction(max(b - 1, 1), max(t - 1, 1)) for b, t in extents]
        return [1 if b in (1, t) else 2 for b, t in extents], steps
    steps = [Fraction(b // t) if b > t else Fraction(1, -(-t // b)) for b, t in extents]
    return [1] * len(steps), steps
