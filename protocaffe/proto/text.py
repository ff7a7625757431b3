"""Prototxt: text to messages with errors that say where and what, and messages to text."""

from __future__ import annotations

import codecs
import os
import re
from functools import cached_property
from typing import Any, TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from protocaffe.errors import FileError, TextError
from protocaffe.proto import scan
from protocaffe.proto.caffe_pb2 import NetParameter, SolverParameter
from protocaffe.proto.complaints import explain
from protocaffe.proto.files import StrPath, read_bytes
from protocaffe.proto.upgrade import upgrade_net, upgrade_solver

M = TypeVar("M", bound=Message)

LINE_WIDTH = 100
"""How long lines may get."""


class Source:
    """Knows on which line of a prototxt each layer stands.

    Args:
        path: the file, as messages should name it.
        text: its content; without it no lines are known.
    """

    def __init__(self, path: str, text: str = "") -> None:
        self.path = path
        self._text = text

    def where(self, layer_name: str, occurrence: int = 0) -> str:
        """Return ``"net.prototxt:12"``, where the layer starts, or the path alone if unknown.

        Args:
            layer_name: the layer's name.
            occurrence: which one, from 0, where several layers of the file have that name.
        """
        offsets = self._offsets.get(layer_name, [])
        if occurrence >= len(offsets):
            return self.path
        line, _ = scan.position(self._text, offsets[occurrence])
        return f"{self.path}:{line}"

    @cached_property
    def _offsets(self) -> dict[str, list[int]]:
        return scan.layer_offsets(self._text)


def parse_text(text: str, message: M, path: str = "<text>") -> M:
    """Fill the message from prototxt and return it.

    An empty text is legal and leaves the message empty.

    Raises:
        TextError: ``path:line:column: what is wrong``, the line itself with a caret, and the
            nearest valid name where one was misspelt.
    """
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise explain(error, text, message, path) from None
    if not message.IsInitialized():
        raise _missing(text, message, path)
    return message


def is_text(source: object) -> bool:
    """Whether this is prototxt itself and no path: a line break, a brace or ``field: `` in it."""
    return isinstance(source, str) and re.search(r"[\n{]|^\s*\w+:\s", source) is not None


def read_net(path: StrPath) -> tuple[NetParameter, Source]:
    """Read a net's prototxt, of any age, as a net of the current format.

    Args:
        path: the file; or a string that is prototxt itself.

    Raises:
        FileError: the file is missing or cannot be read.
        TextError: it does not parse.
        NetError: it mixes old and new formats in a way that has no meaning.
    """
    name, text = _named_text(path)
    net = parse_text(text, NetParameter(), name)
    upgrade_net(net, name)
    return net, Source(name, text)


def read_solver(path: StrPath) -> tuple[SolverParameter, Source]:
    """Read a solver's prototxt, of any age, as one of the current format.

    Args:
        path: the file; or a string that is prototxt itself.

    Raises:
        FileError: the file is missing or cannot be read.
        TextError: it does not parse.
        SolverError: it has both ``type`` and ``solver_type``.
        NetError: a net written inside it mixes formats.
    """
    name, text = _named_text(path)
    solver = parse_text(text, SolverParameter(), name)
    upgrade_solver(solver, name)
    return solver, Source(name, text)


def format_text(message: Message) -> str:
    """Return the message as prototxt, fields in the order of their numbers, as Caffe prints it."""
    text = text_format.MessageToString(message, as_utf8=True)
    return re.sub(r"(?m)^( *\w+: -?\d+)\.0$", r"\1", text)  # Caffe: lr_mult: 1, not 1.0


def format_compact(message: Message) -> str:
    """Return what :func:`format_text` returns, with small blocks on one line.

    Those are blocks inside others, such as ``pooling_param``, that have only values, or only one
    small block, and fit on a line.
    """
    lines: list[str] = []
    opened: list[int] = []
    for line in format_text(message).splitlines():
        lines.append(line)
        if line.endswith("{"):
            opened.append(len(lines) - 1)
        elif line.endswith("}"):
            start = opened.pop()
            inside = [each.strip() for each in lines[start + 1 : -1]]
            joined = " ".join([lines[start], *inside, "}"])
            small = len(inside) == 1 or not any(each.endswith("}") for each in inside)
            if opened and small and len(joined) <= LINE_WIDTH:
                lines[start:] = [joined]
    return "".join(f"{line}\n" for line in lines)


def read_text(path: StrPath) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        FileError: the file is missing, a folder, unreadable or not a text.
        TextError: some of its bytes are not UTF-8.
    """
    content = read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(f"{path}: the text is UTF-16; save the file with UTF-8 encoding")
    if b"\0" in content:
        raise FileError(f"{path}: expected a text file (prototxt), got a binary one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line, column = scan.position(before, len(before))
        raise TextError(
            f"{path}:{line}:{column}: byte 0x{content[error.start]:02x} is not UTF-8; "
            f"save the file with UTF-8 encoding"
        ) from None


def _named_text(source: StrPath) -> tuple[str, str]:
    """Return what messages call a prototxt, and its content."""
    name = os.fspath(source)
    return ("<text>", name) if is_text(name) else (name, read_text(source))


def _missing(text: str, message: Any, path: str) -> TextError:
    """Return an error for required fields such as ``layer[3].clip_param.min``."""
    fields: list[str] = message.FindInitializationErrors()
    indexed = re.match(r"(layers?)\[(\d+)\]\.", fields[0])
    if not indexed:
        return TextError(f"{path}: missing required {' and '.join(fields)}")
    layers = getattr(message, indexed[1])
    index = int(indexed[2])
    name = layers[index].name
    occurrence = sum(layer.name == name for layer in layers[:index])
    of_layer = [field[indexed.end() :] for field in fields if field.startswith(indexed[0])]
    return TextError(
        f"{Source(path, text).where(name, occurrence)}: layer '{name}': "
        f"missing required {' and '.join(of_layer)}"
    )
