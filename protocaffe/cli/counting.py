"""The progress bar of commands that work through many files or records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocaffe.log import log_above


@contextmanager
def counting_progress(total: int | None) -> Iterator[Callable[[int], None] | None]:
    """Show how many of ``total`` are done below the log, while the block runs.

    Args:
        total: None if it is not known before.

    Yields:
        What to call with the number done so far; None where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=total)
    with bar, log_above(console):
        yield lambda done: bar.update(task, completed=done)
