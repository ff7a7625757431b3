"""List the layer types, or explain one: what it computes, its blobs, its settings, an example."""

from __future__ import annotations

import shutil
import textwrap
from argparse import Namespace
from collections.abc import Iterator

from protocaffe.cli.flags import Flag
from protocaffe.layers import layer_types
from protocaffe.layers.describe import (
    Description,
    Field,
    Settings,
    describe,
    describe_message,
    inner_messages,
)

FLAGS = [Flag("type", "a layer type, such as Pooling; without it, all are listed", positional=True)]


def run(flags: Namespace) -> int:
    """Print one line per layer type, or all about one."""
    width = max(shutil.get_terminal_size().columns, 60)
    lines = _explanation(describe(flags.type), width) if flags.type else _list(width)
    print("\n".join(lines))
    return 0


def _list(width: int) -> Iterator[str]:
    types = layer_types()
    indent = max(map(len, types)) + 2
    for name in types:
        summary = textwrap.shorten(
            _plain(describe(name).summary), width - indent, placeholder=" ..."
        )
        yield f"{name:<{indent}}{summary}"


def _explanation(layer: Description, width: int) -> Iterator[str]:
    yield layer.type
    for paragraph in (layer.summary, *layer.text):
        yield ""
        yield textwrap.fill(_plain(paragraph), width)
    yield ""
    for label, fact in layer.facts.items():
        yield textwrap.fill(_plain(f"{label}: {fact}"), width, subsequent_indent="    ")
    inner = [describe_message(name) for name in inner_messages(layer.settings)]
    for settings in (*layer.settings, *inner):
        yield ""
        yield from _settings(settings, width)
    if layer.example:
        yield from ("", "Example:", "", layer.example)


def _settings(settings: Settings, width: int) -> Iterator[str]:
    yield settings.name or settings.message
    for field in settings.fields:
        yield f"  {field.name}: {_kind(field)}"
        if field.comment:
            yield textwrap.fill(
                field.comment, width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )


def _kind(field: Field) -> str:
    words = [field.type]
    if field.label != "optional":
        words.append(f"({field.label})")
    if field.default:
        words.append(f"= {field.default}")
    return " ".join(words)


def _plain(text: str) -> str:
    """Drop the marks of code in a docstring."""
    return text.replace("``", "")
