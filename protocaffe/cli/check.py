"""Find everything that is wrong with a net or a solver, before anything runs.

protocaffe check FILE reads a net or a solver prototxt of any age and tells every problem at once,
with file and line: names that do not exist, shapes that do not fit, missing databases, settings
that contradict each other or have no effect, blobs that nobody reads. A net is checked in the
phases TRAIN and TEST, a solver's nets as the solver makes them; nothing is trained or written.

An error is what train or test would refuse. A warning is what they would run, but can hardly be
meant. The exit code is 1 if there are errors, else 0: warnings do not change it.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from rich.console import Console
from rich.text import Text

from protocaffe.check import Checked, Problem, check_file
from protocaffe.cli.common import LEVEL, STAGE, log_warnings_only, stages
from protocaffe.cli.flags import Flag
from protocaffe.log import log

FLAGS = [
    Flag("file", "a net or a solver prototxt", required=True, positional=True),
    LEVEL,
    STAGE,
    Flag("json", "print JSON instead of text", default=False),
]

STYLES = {"error": "bold red", "warning": "bold yellow"}


def run(flags: Namespace) -> int:
    """Check as the flags say; return 1 if there are errors."""
    log_warnings_only()
    log.setLevel("ERROR")  # what would be logged as a warning is found here, too
    checked = check_file(flags.file, level=flags.level, stages=stages(flags.stage))
    if flags.json:
        problems = [problem.as_dict() for problem in checked.problems]
        counts = {"errors": checked.errors, "warnings": checked.warnings}
        print(
            json.dumps({"file": flags.file, "kind": checked.kind, **counts, "problems": problems})
        )
    else:
        _print(flags.file, checked)
    return 1 if checked.errors else 0


def _print(file: str, checked: Checked) -> None:
    console = Console(highlight=False, soft_wrap=True, no_color=not sys.stdout.isatty())
    for problem in checked.problems:
        console.print(_line(problem))
    counts = [
        f"{count} {word}{'s' if count != 1 else ''}"
        for count, word in ((checked.errors, "error"), (checked.warnings, "warning"))
        if count
    ]
    console.print(f"{file}: {', '.join(counts) or f'this {checked.kind} is fine'}")


def _line(problem: Problem) -> Text:
    # What is wrong in both phases is wrong altogether.
    phases = f" [{problem.phases[0]}]" if len(problem.phases) == 1 else ""
    style = STYLES[problem.severity]
    return Text.assemble(
        f"{problem.place}: ", (f"{problem.severity}: ", style), problem.message, (phases, "dim")
    )
