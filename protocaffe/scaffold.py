"""A net's shapes without its memory: for looking at a net, whatever its size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from protocaffe.assembly import Assembly
from protocaffe.errors import UsageError, did_you_mean
from protocaffe.graph import Graph, Node, build_graph
from protocaffe.proto.caffe_pb2 import LayerParameter, NetParameter, NetState
from protocaffe.proto.text import Source

Shape = tuple[int, ...]

DATA_LAYERS = {
    "Data": "data_param",
    "ImageData": "image_data_param",
    "WindowData": "window_data_param",
    "HDF5Data": "hdf5_data_param",
}
"""The layer types that read files, and their field with ``source`` and ``batch_size``."""


@dataclass
class Scaffold:
    """A net that cannot run: parameters have shapes, but no memory.

    Attributes:
        graph: the structure after filtering and split insertion.
        assembly: layers and blobs.
        assumptions: one sentence per data layer whose files are missing: the shape it got.
    """

    graph: Graph
    assembly: Assembly
    assumptions: list[str]

    def close(self) -> None:
        """Let go of the layers' files."""
        for layer in self.assembly.layers:
            layer.close()


def build_scaffold(
    net: NetParameter,
    state: NetState,
    source: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Scaffold:
    """Infer all shapes of a net.

    Args:
        net: of the current format; it is not changed.
        state: phase, level and stages.
        source: where the layers stand, for messages.
        shapes: shapes of tops of Input and data layers, instead of those of prototxt or files;
            other tops of the same layer keep theirs, or get its first extent.

    Raises:
        NetError: the net does not fit together, or needs files that are missing.
        UsageError: ``shapes`` names a blob that is no top of such a layer.
    """
    graph = build_graph(net, state, source)
    wanted = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    _check_names(wanted, graph)
    scaffold = Scaffold(graph, Assembly(dry=True), [])
    try:
        for node in graph.nodes:
            chosen = stand_in(node, wanted) if wanted.keys() & set(node.tops) else None
            if chosen is None and missing_files(node.param):
                chosen = stand_in(node)
                if chosen is not None:
                    scaffold.assumptions.append(assumption(chosen))
            scaffold.assembly.add(chosen or node)
    except BaseException:
        scaffold.close()
        raise
    return scaffold


def missing_files(layer: LayerParameter) -> list[tuple[str, str]]:
    """Return the files that a layer reads at set-up and that are not there: (field, path)."""
    return [(field, path) for field, path in _files(layer) if not os.path.exists(path)]


def stand_in(node: Node, shapes: Mapping[str, Shape] | None = None) -> Node | None:
    """Return an Input layer in place of one that brings data, or None if its shape is unknown.

    Args:
        node: the layer.
        shapes: shapes of tops by name; without them, what the settings tell: ``batch_size`` and
            ``crop_size`` or ``new_height`` and ``new_width``, with 3 channels unless told
            otherwise.
    """
    known = dict(shapes or {})
    first = known.get(node.tops[0]) or _told_shape(node.param)
    if first is None and not known:
        return None
    if first is not None:
        known[node.tops[0]] = first
    batch = next(iter(known.values()))[:1]
    param = LayerParameter(name=node.name, type="Input", top=node.tops, phase=node.param.phase)
    for top in node.tops:
        param.input_param.shape.add(dim=known.get(top, batch))
    return Node(param, [], node.tops, node.where)


def assumption(node: Node) -> str:
    """Say which shape a stand-in got."""
    shape = "x".join(str(extent) for extent in node.param.input_param.shape[0].dim)
    place = f" ({node.where})" if node.where else ""
    return f"layer '{node.name}'{place}: its data are missing; assumed to be {shape}"


def _check_names(shapes: Mapping[str, Shape], graph: Graph) -> None:
    sources = [node for node in graph.nodes if not node.bottoms and not node.param.blobs]
    tops = [top for node in sources for top in node.tops]
    for name in shapes:
        if name not in tops:
            raise UsageError(
                f"cannot give blob '{name}' a shape{did_you_mean(name, tops)} "
                f"(possible for the tops of layers without bottoms: {', '.join(tops) or 'none'})"
            )


def _files(layer: LayerParameter) -> Iterator[tuple[str, str]]:
    if layer.type in DATA_LAYERS:
        name = DATA_LAYERS[layer.type]
        source = getattr(layer, name).source
        if source:
            yield f"{name}.source", source
        if layer.transform_param.mean_file:
            yield "transform_param.mean_file", layer.transform_param.mean_file
    elif layer.type == "InfogainLoss" and layer.infogain_loss_param.source:
        yield "infogain_loss_param.source", layer.infogain_loss_param.source


def _told_shape(layer: LayerParameter) -> Shape | None:
    """Return the shape that the settings of an image layer tell."""
    if layer.type == "Input":
        shapes = layer.input_param.shape
        return tuple(shapes[0].dim) if shapes else None
    if layer.type not in DATA_LAYERS or layer.type == "HDF5Data":
        return None
    batch = getattr(layer, DATA_LAYERS[layer.type]).batch_size
    transform, images = layer.transform_param, layer.image_data_param
    if transform.crop_size:
        extents = (transform.crop_size, transform.crop_size)
    elif images.new_height and images.new_width:
        extents = (images.new_height, images.new_width)
    else:
        return None
    gray = transform.force_gray or (layer.type == "ImageData" and not images.is_color)
    return (batch, 1 if gray else 3, *extents) if batch else None
