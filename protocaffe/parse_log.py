"""Tables of a training's progress, read off its log: what ``parse_log`` does."""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from protocaffe.errors import DataError
from protocaffe.proto.binary import write_atomic
from protocaffe.proto.files import StrPath

TIME = re.compile(r"[IWEF](?P<year>\d{4})?(?P<time>\d{4} \d\d:\d\d:\d\d\.\d+) ")
ITERATION = re.compile(r"Iteration (\d+)")
OUTPUT = re.compile(r"(Train|Test) net output #\d+: (\S+) = (\S+)")
RATE = re.compile(r"Iteration (\d+), lr = (\S+)")
COLUMNS = ("NumIters", "Seconds", "LearningRate")


@dataclass
class Row:
    """What a log says about one iteration of training, or about one test.

    Attributes:
        iteration: its number.
        seconds: since the line "Solving ...".
        rate: the learning rate, as printed; empty if the log does not say.
        outputs: by name, the net's outputs, as printed; of several values, the last one.
    """

    iteration: int
    seconds: float
    rate: str = ""
    outputs: dict[str, str] = field(default_factory=dict)


def parse_log(lines: Iterable[str], name: str = "log") -> tuple[list[Row], list[Row]]:
    """Read a log of ``protocaffe train`` or ``caffe train``.

    A row has the learning rate that is printed for its iteration, or else the one before.

    Args:
        lines: of the log.
        name: of the log, for messages.

    Returns:
        The rows of training and those of testing.

    Raises:
        DataError: no line says when solving began.
    """
    rows: dict[str, dict[int, Row]] = {"Train": {}, "Test": {}}
    rates: dict[int, str] = {}
    start: datetime | None = None
    now: datetime | None = None
    iteration: int | None = None
    for line in lines:
        if found := TIME.search(line):
            now = _time(found)
        if start is None and "Solving" in line:
            start = now
        if found := ITERATION.search(line):
            iteration = int(found[1])
        if found := RATE.search(line):
            rates[int(found[1])] = found[2]
        found = OUTPUT.search(line)
        if found and start and now and iteration is not None:
            row = rows[found[1]].setdefault(iteration, Row(iteration, _seconds(start, now)))
            row.outputs[found[2]] = found[3]
    if start is None:
        raise DataError(f"{name}: has no line with 'Solving'; expected the log of a training")
    tables = list(rows["Train"].values()), list(rows["Test"].values())
    known = sorted(rates)
    for row in (*tables[0], *tables[1]):
        if place := bisect_right(known, row.iteration):
            row.rate = rates[known[place - 1]]
    return tables


def write_table(path: StrPath, rows: list[Row], delimiter: str = ",") -> None:
    """Write rows as CSV with the columns NumIters, Seconds, LearningRate and one per output.

    Raises:
        FileError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.outputs))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    for row in rows:
        values = [row.outputs.get(name, "") for name in names]
        writer.writerow([row.iteration, f"{row.seconds:.6f}", row.rate, *values])
    write_atomic(path, text.getvalue().encode())


def _time(found: re.Match[str]) -> datetime:
    # Lines of protocaffe have no year; a leap year takes any date.
    return datetime.strptime(f"{found['year'] or 2000}{found['time']}", "%Y%m%d %H:%M:%S.%f")


def _seconds(start: datetime, now: datetime) -> float:
    if now < start:  # over New Year without a year in the lines
        now = now.replace(year=now.year + 1)
    return (now - start).total_seconds()
