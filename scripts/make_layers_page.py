"""Write docs/layers.md, the page about every layer type, from the classes (`make docs`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from protocaffe.layers import layer_types
from protocaffe.layers.base import layer_class
from protocaffe.layers.describe import (
    Description,
    Settings,
    describe,
    describe_message,
    inner_messages,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "layers.md"
INTRODUCTION = """\
# Layers

Every layer type, with its blobs, its settings and an example. `protocaffe layers` lists them and
`protocaffe layers Pooling` shows one. This page is made from the classes by `make docs`.

In shapes N is the batch, C the channels, H and W height and width; x and y are bottom and top, dx
and dy their gradients. Numbers in parentheses behind a setting are its default.
"""
COMMON = ("LayerParameter", "ParamSpec", "NetStateRule")
"""Messages that belong to every layer."""


def page() -> str:
    """Return the page's text."""
    layers = [describe(name) for name in layer_types() if _is_built_in(name)]
    inner = inner_messages([settings for layer in layers for settings in layer.settings])
    links = ", ".join(f"[{layer.type}](#{layer.type.lower()})" for layer in layers)
    lines = [INTRODUCTION, links, ""]
    for layer in layers:
        lines += _section(layer)
    lines += ["## Settings of every layer", ""]
    for name in (*COMMON, *inner):
        settings = describe_message(name)
        lines += [f"### {name}", "", _escape(settings.comment), "", *_table(_common(settings)), ""]
    return "\n".join(lines)


def _is_built_in(name: str) -> bool:
    return layer_class(name).__module__.startswith("protocaffe.")


def _common(settings: Settings) -> Settings:
    """Leave out of LayerParameter what belongs to some types, or to saved models."""
    if settings.message != "LayerParameter":
        return settings
    kept = [
        field
        for field in settings.fields
        if not field.name.endswith("_param") and field.name not in ("phase", "blobs")
    ]
    return Settings(settings.message, settings.name, settings.comment, kept)


def _section(layer: Description) -> Iterator[str]:
    yield f"## {layer.type}"
    for paragraph in (layer.summary, *layer.text):
        yield ""
        yield _escape(paragraph)
    yield ""
    for label, fact in layer.facts.items():
        yield f"- **{label}:** {_escape(fact)}"
    for settings in layer.settings:
        yield from ("", f"`{settings.name}`:", "")
        yield from _table(settings)
    yield from ("", "```", layer.example, "```", "")


def _table(settings: Settings) -> Iterator[str]:
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    for field in settings.fields:
        kind = f"[{field.type}](#{field.type.lower()})" if field.message else f"`{field.type}`"
        default = f"`{field.default}`" if field.default else ""
        label = "" if field.label == "optional" else f"{field.label} "
        cells = (f"`{field.name}`", label + kind, default, _escape(field.comment))
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    """Turn a docstring's text into Markdown: only code is marked up."""
    parts = text.split("``")
    parts[::2] = [re.sub(r"([\\*_<\[\]`])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
