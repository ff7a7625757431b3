"""Who reads what, and the Split layers where a blob has more than one use."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocaffe.errors import did_you_mean
from protocaffe.graph.node import Node, Refuse, refuse
from protocaffe.proto.caffe_pb2 import LayerParameter


@dataclass
class Version:
    """A blob as one layer wrote it; writing in place makes a new version.

    Attributes:
        writer: the layer that wrote it.
        top: its index among that layer's tops.
        loss_weight: the weight that the layer gives it explicitly, 0 without one.
        readers: the layers that read it and the indices of their bottoms, in order of use.
    """

    writer: Node
    top: int
    loss_weight: float = 0.0
    readers: list[tuple[Node, int]] = field(default_factory=list)

    @property
    def uses(self) -> int:
        """How often it is used: by its readers, and by an explicit loss weight."""
        return len(self.readers) + (self.loss_weight != 0)


def trace_versions(
    nodes: list[Node], left_out: list[tuple[Node, str]], refuse: Refuse = refuse
) -> list[list[Version]]:
    """Return for each layer the versions it writes, with their readers.

    Args:
        nodes: the layers in order.
        left_out: layers that are not in the net and why, to explain a missing blob.
        refuse: is called with every mistake.

    Raises:
        NetError: a bottom was not written before, or a top was written already.
    """
    latest: dict[str, Version] = {}
    written = []
    for i, node in enumerate(nodes):
        for j, bottom in enumerate(node.bottoms):
            if bottom not in latest:
                hint = _explain_missing(bottom, latest, nodes[i:], left_out)
                refuse(node.error(f"unknown bottom blob '{bottom}' (bottom {j}){hint}"))
                continue
            latest[bottom].readers.append((node, j))
        weights = node.param.loss_weight or [0.0] * len(node.tops)
        versions = []
        for j, (top, loss_weight) in enumerate(zip(node.tops, weights, strict=False)):
            if top in latest:
                _check_overwrite(node, j, latest[top], refuse)
            latest[top] = Version(node, j, loss_weight)
            versions.append(latest[top])
        written.append(versions)
    return written


def insert_splits(written: list[list[Version]], nodes: list[Node]) -> list[Node]:
    """Return the layers with a Split after each one that writes a version of several uses.

    The readers' bottoms are renamed to the split's tops, in order of use. An explicit loss
    weight moves to the split's first top, and its layer falls back to the default weights.
    """
    result = []
    for node, versions in zip(nodes, written, strict=True):
        result.append(node)
        result += [_split(version) for version in versions if version.uses > 1]
    return result


def _split(version: Version) -> Node:
    writer, blob = version.writer, version.writer.tops[version.top]
    name = f"{blob}_{writer.name}_{version.top}_split"
    tops = [f"{name}_{k}" for k in range(version.uses)]
    param = LayerParameter(name=name, type="Split", bottom=[blob], top=tops)
    free = iter(tops)
    if version.loss_weight:
        next(free)
        param.loss_weight.extend([version.loss_weight] + [0.0] * (len(tops) - 1))
        # As Caffe does: the weights of the layer's other tops go, too (theirs may have moved).
        writer.param.ClearField("loss_weight")
    for reader, bottom in version.readers:
        reader.bottoms[bottom] = next(free)
    return Node(param, [blob], tops, writer.where)


def _check_overwrite(node: Node, top: int, version: Version, refuse: Refuse) -> None:
    """Refuse to write a blob again, unless in place and with no other use of the old version."""
    name = node.tops[top]
    if not node.writes_in_place(top):
        problem = (
            f"top blob '{name}' is produced by multiple sources: {version.writer} writes it too; "
            f"rename it, or make bottom {top} '{name}' as well to write in place"
        )
        return refuse(node.error(problem))
    if version.uses == 1:
        return None
    others = [str(reader) for reader, _ in version.readers if reader is not node]
    if version.loss_weight:
        others.append(f"the loss_weight of {version.writer}")
    uses = " and ".join(others) or "another bottom of this layer"
    problem = (
        f"writes blob '{name}' in place, but {uses} needs the value before; "
        f"give top {top} a name of its own"
    )
    return refuse(node.error(problem))


def _explain_missing(
    blob: str, known: dict[str, Version], later: list[Node], left_out: list[tuple[Node, str]]
) -> str:
    for node in later:
        if blob in node.tops:
            return f"; {node} writes it, but layers run in the order of the file"
    for node, _ in left_out:
        if blob in node.tops:
            return f"; {node} would write it, but is not in this net because of {node.rules}"
    return did_you_mean(blob, known) or _label_hint(blob, known)


def _label_hint(blob: str, known: dict[str, Version]) -> str:
    for version in known.values() if "label" in blob else ():
        source = version.writer
        if source.param.type == "Data" and len(source.tops) == 1:
            return f'; {source} gives labels to a second top: add top: "{blob}" to it'
    return ""
