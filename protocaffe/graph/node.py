"""One layer of a net's graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf import text_format

from protocaffe.errors import NetError
from protocaffe.proto.caffe_pb2 import LayerParameter

Refuse = Callable[[NetError], None]
"""What is done about a mistake: mostly it is raised, but who wants to see all of them goes on."""


def refuse(error: NetError) -> None:
    """Raise the error."""
    raise error


@dataclass
class Node:
    """A layer and the names of the blobs it reads and writes.

    Attributes:
        param: the layer's message, a copy that belongs to the graph.
        bottoms: what it reads.
        tops: what it writes.
        where: ``file:line`` of the layer, or an empty string.
        written_bottoms: what the prototxt calls ``bottoms``, where Split layers rename them.
    """

    param: LayerParameter
    bottoms: list[str]
    tops: list[str]
    where: str
    written_bottoms: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.written_bottoms = tuple(self.bottoms)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.param.name

    @property
    def rules(self) -> str:
        """In which nets it is, as it stands in the file: ``include { phase: TRAIN }``."""
        rules = LayerParameter(include=self.param.include, exclude=self.param.exclude)
        return text_format.MessageToString(rules, as_one_line=True)

    def writes_in_place(self, top: int) -> bool:
        """Whether the top is the same blob as the bottom of that index."""
        return top < len(self.bottoms) and self.tops[top] == self.bottoms[top]

    def error(self, message: str) -> NetError:
        """Return an error that names this layer and where it stands."""
        place = f"{self.where}: " if self.where else ""
        return NetError(f"{place}layer '{self.name}' ({self.param.type}): {message}")

    def __str__(self) -> str:
        return f"layer '{self.name}'" + (f" ({self.where})" if self.where else "")
