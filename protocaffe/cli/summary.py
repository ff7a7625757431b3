"""Show what a net costs: shape, parameters, multiply-adds and memory of every layer.

protocaffe summary NET reads the prototxt alone; it allocates nothing, whatever the size of the
net. Multiply-adds are products with learned weights (Convolution, Deconvolution, InnerProduct,
LSTM, RNN) in one forward pass, which papers call FLOPs; element-wise work does not count. Memory
is what the tops take, 4 bytes a number, 0 for a layer that works in place; training takes as much
again for gradients. The receptive field is how many pixels of the input a value depends on.
Where a database is missing, its shape is taken from the transformation's settings or from --shape.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocaffe.cli.common import LEVEL, PHASE, SHAPE, STAGE, log_warnings_only, shapes, stages
from protocaffe.cli.flags import Flag
from protocaffe.proto import caffe_pb2
from protocaffe.summary import LayerSummary, Summary, summarize

FLAGS = [
    Flag("net", "the net prototxt", required=True, positional=True),
    PHASE,
    LEVEL,
    STAGE,
    SHAPE,
    Flag("json", "print JSON instead of a table", default=False),
]

WIDE = 250
"""Columns for a reader that is no terminal: nothing is cut."""
SHORTEST = 8
"""Letters of a layer's name that are shown at least."""


def run(flags: Namespace) -> int:
    """Print the summary."""
    log_warnings_only()
    summary = summarize(
        flags.net,
        caffe_pb2.Phase.Value(flags.phase),
        level=flags.level,
        stages=stages(flags.stage),
        shapes=shapes(flags.shape),
    )
    if flags.json:
        print(json.dumps(summary.as_dict(), indent=2))
        return 0
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(_fitting_table(summary, console))
    for line in _totals(summary):
        console.print(line, soft_wrap=False)
    return 0


def _fitting_table(summary: Summary, console: Console) -> Table:
    """Return the table with names that are cut if the console is too narrow for it."""
    table = _table(summary, WIDE)
    wide = console.options.update(width=WIDE)
    excess = console.measure(table, options=wide).maximum - console.width
    if excess <= 0:
        return table
    longest = max(len(layer.name) for layer in summary.layers)
    return _table(summary, max(SHORTEST, longest - excess))


def _table(summary: Summary, name_width: int) -> Table:
    title = f"{summary.name or 'net'} ({summary.phase})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    # Only these two may be cut: rich narrows the columns that could wrap first.
    table.add_column("Layer", overflow="ellipsis", min_width=SHORTEST)
    table.add_column("Type", overflow="ellipsis", min_width=5)
    table.add_column("Output", no_wrap=True)
    for header in ("Params", "M-adds", "Memory", "Field"):
        table.add_column(header, justify="right", no_wrap=True)
    heaviest = max((layer.multiply_adds for layer in summary.layers), default=0)
    for layer in summary.layers:
        style = "dim" if not layer.memory and layer.tops else None
        table.add_row(
            _cut(layer.name, name_width),
            layer.type,
            "\n".join(_outputs(layer)),
            _parameters(layer),
            _weigh(layer.multiply_adds, heaviest),
            _bytes(layer.memory) if layer.memory else "",
            _extents(layer.receptive_field or ()),
            style=style,
        )
    return table


def _cut(name: str, width: int) -> str:
    """Leave out the middle of a long name: ends tell layers of a block apart."""
    if len(name) <= width:
        return name
    start = (width - 1) // 3
    return f"{name[:start]}…{name[start + 1 - width :]}"


def _outputs(layer: LayerSummary) -> Iterator[str]:
    for shape in layer.shapes:
        yield "x".join(map(str, shape)) or "1 number"


def _parameters(layer: LayerSummary) -> str:
    if layer.shared_parameters:
        return f"{layer.parameters:,} (+{layer.shared_parameters:,} shared)"
    return f"{layer.parameters:,}" if layer.parameters else ""


def _weigh(multiply_adds: int, heaviest: int) -> Text:
    """Return the count, bold if it is at least half of the heaviest layer's."""
    text = scaled(multiply_adds) if multiply_adds else ""
    return Text(text, style="bold" if multiply_adds and 2 * multiply_adds >= heaviest else "")


def _totals(summary: Summary) -> Iterator[Text]:
    batch, work = summary.batch, summary.multiply_adds
    per_image = f", {scaled(work // batch)} per image of {batch}" if batch > 1 else ""
    rows = {
        "Parameters": f"{summary.parameters:,} ({_bytes(summary.parameter_memory)})",
        "Mult-adds": f"{scaled(work)} per forward pass{per_image}",
        "Memory": f"{_bytes(summary.memory)} of blobs, and as much again to train",
    }
    for label, text in rows.items():
        yield Text.assemble((f"{label:<11}", "bold"), text)
    for note in summary.assumptions:
        yield Text(f"note: {note}", style="yellow")


def _extents(extents: tuple[int, ...]) -> str:
    """Return 11 for a square, else 11x7."""
    return "x".join(map(str, extents[:1] if len(set(extents)) == 1 else extents))


def _bytes(count: int) -> str:
    return f"{scaled(count)}B"


def scaled(count: int) -> str:
    """Return three to four digits and a power of 1000: 105.4 M."""
    value, unit = float(count), ""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.95 or unit == "T":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit else f"{count} "
