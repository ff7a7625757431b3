"""The live progress bar of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from protocaffe.log import log_above, number
from protocaffe.solvers import Solver

LOOK_S = 0.2
"""How often the loss is read, in seconds: whoever reads it waits for a device that computes."""


@contextmanager
def training_progress(solver: Solver, console: Console) -> Iterator[None]:
    """Show iterations, speed, time left and smoothed loss below the log, while the block runs."""
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(compact=True),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
        transient=True,
    )
    task = bar.add_task("", total=solver.param.max_iter, completed=solver.iter, loss="-")

    looked = -math.inf

    def after_iteration() -> None:
        nonlocal looked
        bar.update(task, completed=solver.iter + 1)
        if monotonic() - looked > LOOK_S:
            bar.update(task, loss=number(solver.smoothed_loss))
            looked = monotonic()

    solver.add_callback(after=after_iteration)
    with bar, log_above(console):
        yield


class _Speed(ProgressColumn):
    """Iterations per second, worked out only when the bar is drawn."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} iter/s" if task.speed else "- iter/s")
