"""Pictures of a training's progress, from its log: what ``plot_training_log`` draws."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocaffe.errors import DataError, ProtocaffeError, UsageError, did_you_mean
from protocaffe.parse_log import Row, parse_log
from protocaffe.proto.files import StrPath, replacing
from protocaffe.proto.text import read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE = "learning rate"
WIDTH, PANEL_HEIGHT = 8.0, 3.2
"""Inches."""
DPI = 120


@dataclass(frozen=True)
class Chart:
    """One of the charts that Caffe numbers.

    Attributes:
        part: ``Train`` or ``Test``.
        output: which output of the net, or the learning rate.
        seconds: whether it goes over seconds instead of iterations.
    """

    part: str
    output: str
    seconds: bool

    def __str__(self) -> str:
        return f"{self.part} {self.output} vs. {'Seconds' if self.seconds else 'Iters'}"


CHARTS = [
    Chart(part, output, seconds)
    for part, output in (
        ("Test", "accuracy"),
        ("Test", "loss"),
        ("Train", RATE),
        ("Train", "loss"),
    )
    for seconds in (False, True)
]
"""By Caffe's numbers, 0 to 7."""


@dataclass(frozen=True)
class Run:
    """The log of a training: its name in the legend, and its rows."""

    name: str
    train: list[Row]
    test: list[Row]

    def rows(self, part: str) -> list[Row]:
        """Return the rows of ``Train`` or ``Test``."""
        return self.train if part == "Train" else self.test


def read_runs(paths: Sequence[StrPath]) -> list[Run]:
    """Read logs.

    Raises:
        FileError: one is missing or cannot be read.
        DataError: one is no log of a training, or has no numbers in it.
    """
    names = _short_names(paths)
    runs = [
        Run(name, *parse_log(read_text(path).splitlines(), os.fspath(path)))
        for name, path in zip(names, paths, strict=True)
    ]
    for run, path in zip(runs, paths, strict=True):
        if not run.train and not run.test:
            raise DataError(f"{os.fspath(path)}: has no line 'net output'; nothing to plot")
    return runs


def plot_chart(runs: Sequence[Run], chart: Chart, out: StrPath) -> None:
    """Draw one value over all runs.

    Args:
        runs: from :func:`read_runs`.
        chart: what to draw.
        out: the file to write, .png, .svg or another format of matplotlib.

    Raises:
        DataError: a log does not have the value.
        ProtocaffeError: matplotlib is missing, or the file cannot be written.
    """
    for run in runs:
        _check_output(run, chart)
    figure = _figure(1)
    axes = figure.subplots()
    for number, run in enumerate(runs):
        _draw(axes, run, chart, f"C{number % 10}")
    _finish(axes, chart.output, chart.seconds)
    axes.set_title(str(chart))
    _save(figure, out)


def plot_overview(runs: Sequence[Run], out: StrPath, seconds: bool = False) -> None:
    """Draw all outputs, those of training and of testing in one panel, and the learning rate.

    Args:
        runs: from :func:`read_runs`; each has a color of its own.
        out: the file to write, .png, .svg or another format of matplotlib.
        seconds: whether to draw over seconds instead of iterations.

    Raises:
        ProtocaffeError: matplotlib is missing, or the file cannot be written.
    """
    rows = [row for run in runs for row in (*run.train, *run.test)]
    outputs = [*dict.fromkeys(name for row in rows for name in row.outputs)]
    if any(row.rate for row in rows):
        outputs.append(RATE)
    figure = _figure(len(outputs))
    panels = figure.subplots(len(outputs), 1, squeeze=False, sharex=True)[:, 0]
    for axes, output in zip(panels, outputs, strict=True):
        for number, run in enumerate(runs):
            color = f"C{number % 10}"
            if output == RATE:
                _draw(axes, run, Chart("Train", output, seconds), color)
                continue
            for part in ("Train", "Test"):
                _draw(axes, run, Chart(part, output, seconds), color, suffix=part)
        _finish(axes, output, seconds)
    for axes in panels[:-1]:
        axes.set_xlabel("")
    _save(figure, out)


def _draw(axes: Axes, run: Run, chart: Chart, color: str, suffix: str = "") -> None:
    """Draw a line, if the run has such values."""
    rows = run.rows(chart.part)
    points = [
        (row.seconds if chart.seconds else row.iteration, float(value))
        for row in rows
        if (value := _value(row, chart.output))
    ]
    if not points:
        return
    x, y = zip(*points, strict=True)
    is_test = chart.part == "Test"
    axes.plot(
        x,
        y,
        color=color,
        linestyle="--" if is_test and suffix else "-",
        marker="o" if is_test or len(points) == 1 else "",
        markersize=3,
        linewidth=1.2,
        label=f"{run.name} {suffix.lower()}".strip(),
    )


def _value(row: Row, output: str) -> str:
    return row.rate if output == RATE else row.outputs.get(output, "")


def _finish(axes: Axes, output: str, seconds: bool) -> None:
    axes.set_xlabel("seconds" if seconds else "iterations")
    axes.set_ylabel(output)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    if output == RATE:
        axes.set_yscale("log")


def _check_output(run: Run, chart: Chart) -> None:
    rows = run.rows(chart.part)
    if any(_value(row, chart.output) for row in rows):
        return
    known = [*dict.fromkeys(name for row in rows for name in row.outputs)]
    raise DataError(
        f"{run.name}: its {chart.part.lower()} lines have no {chart.output}"
        f"{did_you_mean(chart.output, known)} (they have: {', '.join(known) or 'nothing'}); "
        f"--output=NAME picks another"
    )


def _short_names(paths: Iterable[StrPath]) -> list[str]:
    """Return the file names, or, where two are the same, the paths."""
    full = [os.fspath(path) for path in paths]
    short = [Path(path).stem for path in full]
    return [
        name if short.count(name) == 1 else path for name, path in zip(short, full, strict=True)
    ]


def _figure(panels: int) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ProtocaffeError("plots need matplotlib: pip install 'protocaffe[plot]'") from None
    height = PANEL_HEIGHT * panels + (1 if panels == 1 else 0)
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def _save(figure: Figure, out: StrPath) -> None:
    known = figure.canvas.get_supported_filetypes()
    kind = Path(out).suffix[1:].lower()
    if kind not in known:
        raise UsageError(
            f"{os.fspath(out)}: '{kind}' is no format of pictures"
            f"{did_you_mean(kind, known)} (known: {', '.join(sorted(known))})"
        )
    with replacing(out) as (name,):
        figure.savefig(name, format=kind)
