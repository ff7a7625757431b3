"""What is wrong, and where."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

ERROR, WARNING = "error", "warning"
PLACE = re.compile(r"(?P<file>[^\n]*?):(?P<line>\d+)(:(?P<column>\d+))?: ")
LAYER = re.compile(r"layer '(?P<name>[^']*)'")


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: ``error`` if it would be refused when the net is made or trained, ``warning`` if
            it would run but can hardly be meant.
        file: where it is.
        line: the line, from 1; 0 if it belongs to the whole file.
        column: the column, from 1; 0 if it belongs to the whole line.
        message: what is wrong, and the way out.
        phases: the nets that it was found in, such as ``TRAIN``; empty if it belongs to none.
    """

    severity: str
    file: str
    line: int
    column: int
    message: str
    phases: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """``file:line:column``, as far as known."""
        return ":".join([self.file, *(str(each) for each in (self.line, self.column) if each)])

    def as_dict(self) -> dict[str, Any]:
        """Return it as values for JSON, with the layer's name or None."""
        layer = LAYER.match(self.message)
        return {**vars(self), "layer": layer["name"] if layer else None}


@dataclass
class Problems:
    """The problems found so far; one found in several phases is there once.

    Attributes:
        file: the file that a message without a place belongs to.
        phase: what is being checked: ``TRAIN``, ``TEST``, or an empty string.
    """

    file: str
    phase: str = ""
    _found: dict[tuple[str, str], Problem] = field(default_factory=dict)

    def error(self, error: Exception | str) -> None:
        """Add what would be refused; the message may start with its place."""
        self._add(ERROR, str(error))

    def warning(self, message: Exception | str) -> None:
        """Add what would run but can hardly be meant."""
        self._add(WARNING, str(message))

    def sorted(self) -> list[Problem]:
        """Return them by file and line, errors before warnings."""
        rank = {ERROR: 0, WARNING: 1}
        return sorted(
            self._found.values(), key=lambda p: (p.file, p.line, p.column, rank[p.severity])
        )

    def _add(self, severity: str, text: str) -> None:
        problem = self._found.get((severity, text))
        if problem is None:
            problem = self._found[severity, text] = _located(severity, text, self.file)
        if self.phase and self.phase not in problem.phases:
            problem.phases.append(self.phase)


def _located(severity: str, text: str, file: str) -> Problem:
    place = PLACE.match(text)
    if place is None:
        return Problem(severity, file, 0, 0, text.removeprefix(f"{file}: "))
    line, column = int(place["line"]), int(place["column"] or 0)
    return Problem(severity, place["file"], line, column, text[place.end() :])
