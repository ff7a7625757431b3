"""What is wrong with a net in one state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from protocaffe.assembly import Assembly, backward_facts
from protocaffe.check.problems import Problems
from protocaffe.errors import NetError, ProtocaffeError
from protocaffe.graph import Graph, Node, build_graph
from protocaffe.graph.backward import decide_backward
from protocaffe.layers import create_layer
from protocaffe.layers.base import layer_class
from protocaffe.layers.describe import settings_fields
from protocaffe.layers.fillers import check_type
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import FillerParameter, NetParameter, NetState
from protocaffe.proto.text import Source
from protocaffe.scaffold import DATA_LAYERS, missing_files, stand_in

MEASURES = ("Accuracy", "Silence", "HDF5Output")
"""Layers besides losses whose work is wanted for its own sake."""

OLD_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")
"""Fields of data layers of old files, which upgrades move to ``transform_param``."""

WEIGHTED = ("Convolution", "Deconvolution", "InnerProduct", "Embed")


def check_net(net: NetParameter, state: NetState, source: Source, problems: Problems) -> None:
    """Find all that is wrong with a net in a state.

    Args:
        net: of the current format.
        state: phase, level and stages.
        source: where the layers stand.
        problems: what is found is added here.
    """
    try:
        graph = build_graph(net, state, source, problems.error)
    except NetError as error:
        problems.error(error)
        return
    assembly = _assemble(graph, problems)
    nodes = [node for node in graph.nodes if not _is_split(node)]
    for node in nodes:
        for warning in (*_unused_settings(node), *_data_warnings(node, state)):
            problems.warning(node.error(warning))
    _check_names(nodes, problems)
    if any(_is_loss(node) for node in nodes):
        if _is_wired(graph):
            _check_unread(graph, problems)
        if state.phase == caffe_pb2.TRAIN:
            _check_fillers(nodes, problems)
            _check_gradients(graph, assembly, problems)


def _assemble(graph: Graph, problems: Problems) -> Assembly:
    """Infer the shapes of as many layers as possible."""
    assembly = Assembly(dry=True)
    try:
        for node in graph.nodes:
            _add(assembly, node, problems)
    finally:
        for layer in assembly.layers:
            layer.close()
    return assembly


def _add(assembly: Assembly, node: Node, problems: Problems) -> None:
    """Add a layer; one that fails, or whose bottoms are unknown, leaves its tops unknown."""
    missing = missing_files(node.param)
    for field, path in missing:
        problems.error(node.error(f"{field}: no such file or folder: '{path}' ({RELATIVE})"))
    try:
        if missing:
            substitute = stand_in(node)
            if substitute is not None:
                assembly.add(substitute)
        elif all(bottom in assembly.blobs for bottom in node.bottoms):
            assembly.add(node)
        else:
            create_layer(node.param, node.where, dry=True)
            _check_filler_types(node)
    except ProtocaffeError as error:
        problems.error(error)


def _check_filler_types(node: Node) -> None:
    for descriptor, settings in node.param.ListFields():
        if descriptor.name.endswith("_param") and not descriptor.is_repeated:
            for _, value in settings.ListFields():
                if isinstance(value, FillerParameter):
                    check_type(value, node.error)


RELATIVE = "paths are relative to where you are"


def _is_split(node: Node) -> bool:
    return node.param.type == "Split" and node.name.endswith("_split")


def _is_loss(node: Node) -> bool:
    """Tell whether a layer adds to what is minimized."""
    by_itself = _is_known(node) and layer_class(node.param.type).is_loss
    return any(node.param.loss_weight) or (by_itself and not node.param.loss_weight)


def _is_known(node: Node) -> bool:
    try:
        layer_class(node.param.type)
    except NetError:
        return False
    return True


def _unused_settings(node: Node) -> Iterator[str]:
    """Yield what is set for layers of other types."""
    if not _is_known(node):
        return
    used = settings_fields(node.param.type)
    for field, _ in node.param.ListFields():
        if field.name.endswith("_param") and field.name not in used:
            yield f"{field.name} has no effect on a layer of this type"


def _data_warnings(node: Node, state: NetState) -> Iterator[str]:
    param = node.param
    if param.type not in DATA_LAYERS:
        return
    name = DATA_LAYERS[param.type]
    settings = getattr(param, name)
    for field in OLD_TRANSFORM if param.type in ("Data", "ImageData") else ():
        if settings.HasField(field):
            yield f"{field} in {name} has no effect; move it to transform_param"
    if param.type == "Data" and settings.HasField("rand_skip"):
        yield f"rand_skip in {name} has no effect"
    if param.type == "WindowData" and param.transform_param.HasField("scale"):
        yield f"scale in transform_param has no effect; move it to {name}"
    if param.transform_param.mirror and state.phase == caffe_pb2.TEST:
        yield "mirror: true mirrors at random in phase TEST, too, so results will vary"


def _check_names(nodes: Sequence[Node], problems: Problems) -> None:
    counts = Counter(node.name for node in nodes)
    for node in nodes:
        if counts[node.name] > 1:
            problems.warning(
                node.error(
                    f"{counts[node.name]} layers have this name, so weights that are loaded go to "
                    f"one of them only"
                )
            )


def _is_wired(graph: Graph) -> bool:
    """Tell whether somebody writes every blob that is read; else nobody may read what is meant."""
    tops = {top for node in graph.nodes for top in node.tops}
    return tops.issuperset(bottom for node in graph.nodes for bottom in node.bottoms)


def _check_unread(graph: Graph, problems: Problems) -> None:
    """Find blobs that nobody reads, and the layers that work for these alone."""
    idle = _idle_layers(graph)
    writers = {top: node for node in graph.nodes for top in node.tops}
    for top in graph.outputs:
        node = writers[top]
        if _is_wanted(node) or _is_split(node):
            continue
        message = f"nobody reads blob '{top}'"
        below = _idle_below(node, idle) if node in idle else []
        if below:
            message += f", so these layers work for nothing, too: {', '.join(below)}"
        problems.warning(node.error(f"{message} (a Silence layer says that this is meant)"))


def _idle_layers(graph: Graph) -> list[Node]:
    """Return the layers whose work leads to no loss and to no measure."""
    idle: list[Node] = []
    useful: set[str] = set()
    for node in reversed(graph.nodes):
        if _is_wanted(node) or useful.intersection(node.tops):
            useful.update(node.bottoms)
        else:
            idle.insert(0, node)
    return idle


def _idle_below(node: Node, idle: Sequence[Node]) -> list[str]:
    """Return the names of the idle layers that a layer's bottoms come from."""
    needed = set(node.bottoms)
    names: list[str] = []
    for other in reversed(idle[: idle.index(node)]):
        if needed.intersection(other.tops):
            needed.update(other.bottoms)
            if not _is_split(other):
                names.insert(0, other.name)
    return names


def _is_wanted(node: Node) -> bool:
    if not _is_known(node):
        return True
    is_loss = layer_class(node.param.type).is_loss
    return is_loss or any(node.param.loss_weight) or node.param.type in MEASURES


def _check_gradients(graph: Graph, assembly: Assembly, problems: Problems) -> None:
    """Find layers that would be asked for a gradient which they do not have."""
    if len(assembly.layers) < len(graph.nodes):
        return
    facts = backward_facts(graph.nodes, assembly.layers, assembly.top_names)
    decide_backward(facts)
    for layer, fact in zip(assembly.layers, facts, strict=True):
        for index, wanted in enumerate(fact.wanted if fact.needs_backward else ()):
            if wanted and not layer.allow_force_backward(index):
                problems.error(
                    layer.error(
                        f"has no gradient for bottom {index} ('{layer.written_bottoms[index]}'), "
                        f"but something below it learns; set propagate_down: false for it"
                    )
                )


def _check_fillers(nodes: Sequence[Node], problems: Problems) -> None:
    """Find weights that would be trained from zeros."""
    for node in nodes:
        if node.param.type not in WEIGHTED:
            continue
        settings = getattr(node.param, settings_fields(node.param.type)[0])
        learns = not node.param.param or node.param.param[0].lr_mult
        if learns and not settings.HasField("weight_filler"):
            problems.warning(
                node.error(
                    "has no weight_filler: unless weights are loaded, it starts from zeros and "
                    "hardly learns"
                )
            )
