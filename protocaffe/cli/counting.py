"""The progress bar of commands that work through many files or records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocaffe.cli.ending import raise_if_ended
from protocaffe.log import log_above


@contextmanager
def counting_progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` are done below the log, while the block runs.

    Args:
        total: None if it is not known before.

    Yields:
        What to call with the number done so far. It draws nothing where stderr is no terminal;
        it raises if a signal has asked the program to end.
    """
    if not sys.stderr.isatty():
        yield lambda done: raise_if_ended()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=total)

    def report(done: int) -> None:
        raise_if_ended()
        bar.update(task, completed=done)

    with bar, log_above(console):
        yield report
