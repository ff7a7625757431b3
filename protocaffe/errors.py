"""The one family of exceptions that protocaffe raises for a person's mistake.

Every message says where it happened, what was expected, what came and the way
out. The command line prints the message alone and exits with 1; a program
catches :class:`ProtocaffeError`, or one of its children.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ProtocaffeError(Exception):
    """Anything that protocaffe refuses; the message is meant for people."""


class TextError(ProtocaffeError):
    """A prototxt that does not parse: ``file:line:column: what and the nearest name``."""


class FileError(ProtocaffeError):
    """A file that is missing, unreadable, damaged or of another kind."""


class NetError(ProtocaffeError):
    """A net whose layers do not fit together."""


class UnknownNameError(NetError, KeyError):
    """A blob or layer that a net does not have."""

    __str__ = Exception.__str__  # KeyError shows its argument's repr


class LayerError(NetError):
    """A layer with wrong parameters, or blobs that it cannot take."""


class WeightsError(ProtocaffeError):
    """Weights or a snapshot that do not fit the net."""


class DataError(ProtocaffeError):
    """A database, image or list file that cannot be used."""


class SolverError(ProtocaffeError):
    """Solver settings that contradict each other or miss something."""


class UsageError(ProtocaffeError):
    """A command line that makes no sense (exit code 2)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name, or an empty string if none is near."""
    by_lower = {each.lower(): each for each in known}
    # Two letters that changed places cost a short name a third of its likeness.
    cutoff = 0.7 if len(name) > 4 else 0.6
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def near_or_all(name: str, known: Iterable[str]) -> str:
    """Return what :func:`did_you_mean` does, or else `` (known: a, b, c)``."""
    names = list(known)
    return did_you_mean(name, names) or f" (known: {', '.join(names)})"
