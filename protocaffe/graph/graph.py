"""From a net's message to the graph that is built: rules, splits, checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from protocaffe.errors import NetError
from protocaffe.graph.filter import why_left_out
from protocaffe.graph.node import Node, Refuse, refuse
from protocaffe.graph.splits import insert_splits, trace_versions
from protocaffe.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, Phase
from protocaffe.proto.text import Source


@dataclass
class Graph:
    """The layers of a net in a given state, in the order in which they run.

    The tops that loss layers get without naming them are not part of it.

    Attributes:
        name: the net's name.
        param: the net's message after filtering, splits included; ``nodes[i].param`` is its
            ``layer[i]``. Every layer has its phase.
        nodes: the layers.
        state: phase, level and stages.
        filtered: for each layer left out, why.
    """

    name: str
    param: NetParameter
    nodes: list[Node]
    state: NetState
    filtered: list[str]

    @property
    def blob_names(self) -> list[str]:
        """All blobs in the order in which they are first written."""
        return list(dict.fromkeys(top for node in self.nodes for top in node.tops))

    @property
    def inputs(self) -> list[str]:
        """The tops of the Input layers, in order."""
        return [top for node in self.nodes if node.param.type == "Input" for top in node.tops]

    @property
    def outputs(self) -> list[str]:
        """The blobs nobody reads, in byte order of their names."""
        unread: set[str] = set()
        for node in self.nodes:
            unread.difference_update(node.bottoms)
            unread.update(node.tops)
        return sorted(unread, key=str.encode)


def build_graph(
    net: NetParameter,
    state: NetState,
    source: Source | None = None,
    refuse: Refuse = refuse,
) -> Graph:
    """Filter the net's layers by their rules, insert splits, and check that all fits together.

    Args:
        net: of the current format; it is not changed.
        state: the final state; the net's own one is not looked at (see :func:`merge_state`).
        source: where the layers stand, for messages.
        refuse: is called with every mistake and raises it by default; if it returns, the graph
            has layers that read blobs nobody writes, and the like.

    Raises:
        NetError: no layer is left, rules contradict each other, a bottom is unknown or not yet
            written, a top has several sources, or ``loss_weight`` or ``propagate_down`` does
            not have one entry per blob.
    """
    kept, left_out = apply_rules(net, state, source, refuse)
    if not kept:
        raise _empty(net, state, source)
    for node in kept:
        _check_counts(node, refuse)
    nodes = insert_splits(trace_versions(kept, left_out, refuse), kept)
    param = _assemble(net, state, nodes)
    return Graph(net.name, param, nodes, param.state, [reason for _, reason in left_out])


def apply_rules(
    net: NetParameter, state: NetState, source: Source | None = None, refuse: Refuse = refuse
) -> tuple[list[Node], list[tuple[Node, str]]]:
    """Return the layers that are in the net in a state, and those that are not with the reason."""
    kept: list[Node] = []
    left_out: list[tuple[Node, str]] = []
    for node in _nodes(net, source):
        reason = why_left_out(node, state, refuse)
        if reason:
            left_out.append((node, reason))
        else:
            kept.append(node)
    return kept, left_out


def merge_state(
    net: NetParameter, phase: Phase | int, level: int = 0, stages: Iterable[str] = ()
) -> NetState:
    """Return the state in which a net file is opened.

    Phase and level replace those in the file; the stages are added to the file's own.
    """
    return NetState(phase=Phase.Name(phase), level=level, stage=[*net.state.stage, *stages])


def _nodes(net: NetParameter, source: Source | None) -> list[Node]:
    seen: Counter[str] = Counter()
    nodes = []
    for layer in net.layer:
        where = source.where(layer.name, seen[layer.name]) if source else ""
        seen[layer.name] += 1
        param = LayerParameter()
        param.CopyFrom(layer)
        nodes.append(Node(param, list(param.bottom), list(param.top), where))
    return nodes


def _check_counts(node: Node, refuse: Refuse) -> None:
    weights, tops = len(node.param.loss_weight), len(node.tops)
    # A loss layer without a top gets one that is not written in the file.
    if weights and tops and weights != tops:
        refuse(
            node.error(
                f"loss_weight has to be given once for each top or not at all; "
                f"got {weights} for {tops} top(s)"
            )
        )
    flags, bottoms = len(node.param.propagate_down), len(node.bottoms)
    if flags not in (0, bottoms):
        refuse(
            node.error(
                f"propagate_down has to be given once for each bottom or not at all; "
                f"got {flags} for {bottoms} bottom(s)"
            )
        )


def _empty(net: NetParameter, state: NetState, source: Source | None) -> NetError:
    place = f"{source.path}: " if source else ""
    if not net.layer:
        return NetError(f"{place}the net has no layers")
    stages = ", ".join(state.stage) or "none"
    return NetError(
        f"{place}the net has no layers in phase {Phase.Name(state.phase)}, level {state.level}, "
        f"stages: {stages}; all {len(net.layer)} are left out by their rules"
    )


def _assemble(net: NetParameter, state: NetState, nodes: list[Node]) -> NetParameter:
    """Return the message of the net with these layers, and make the nodes' messages part of it."""
    fields = {f.name: value for f, value in net.ListFields() if f.name not in ("layer", "state")}
    param = NetParameter(**fields, state=state)
    for node in nodes:
        node.param.bottom[:] = node.bottoms
        if not node.param.HasField("phase"):
            node.param.phase = state.phase
        param.layer.append(node.param)
        node.param = param.layer[-1]
    return param
