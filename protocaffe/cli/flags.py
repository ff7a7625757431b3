"""Flags of a command, declared as a list and spelled the way gflags allows.

``--iterations=5``, ``--iterations 5``, ``-iterations=5`` and ``-iterations 5`` are one and the
same; so are ``--encode_type`` and ``--encode-type``. A switch is ``--shuffle``, ``--noshuffle``
(or ``--no-shuffle``) or ``--shuffle=true`` (``false``, ``1``, ``0``), and never eats the word that
follows it.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from protocaffe.errors import UsageError, did_you_mean

FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?P<value>=.*)?", re.DOTALL)
TRUE = ("true", "t", "yes", "y", "1")
FALSE = ("false", "f", "no", "n", "0")


@dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: in gflags' spelling, with underscores.
        help: what it means, for ``--help``.
        default: its value when it is not given; also says which type it has (str, int, float
            or bool).
        required: whether the command makes no sense without it.
        positional: whether it is a word of its own, ``VALUE``, instead of ``--name=VALUE``.
        many: whether it is one or more words of its own; its value is a list of strings.
        choices: the only values it takes, if they are few.
        at_least: the smallest number it takes.
    """

    name: str
    help: str
    default: str | int | float | bool = ""
    required: bool = False
    positional: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()
    at_least: float = -math.inf


def parse(
    command: str, description: str, flags: Sequence[Flag], argv: Sequence[str]
) -> argparse.Namespace:
    """Return the flags' values, one attribute per flag.

    ``--help`` prints what ``description`` and the flags say and leaves with exit code 0.

    Args:
        command: the words that call it, such as ``protocaffe train``.
        description: what it does.
        flags: what it takes.
        argv: the words after the command.

    Raises:
        UsageError: a flag is unknown, missing, or has an impossible value.
    """
    parser = _Parser(command, description, flags)
    values, unknown = parser.parse_known_args(parser.canonical(argv))
    for word in unknown:
        parser.error(f"'{word}' is one word too many")
    return values


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str, description: str, flags: Sequence[Flag]) -> None:
        super().__init__(prog=command, description=description, allow_abbrev=False, add_help=False)
        self.flags = flags
        named = [flag for flag in flags if not flag.positional]
        self.switches = {flag.name for flag in named if isinstance(flag.default, bool)}
        self.valued = {flag.name for flag in named} - self.switches
        self.add_argument("--help", action="help")
        for flag in flags:
            self._add(flag)

    def _add(self, flag: Flag) -> None:
        kind = _kind(flag)
        choices = flag.choices or None
        if flag.positional:
            nargs = "+" if flag.many else None if flag.required else "?"
            self.add_argument(
                flag.name, nargs=nargs, type=kind, default=flag.default, choices=choices
            )
        else:
            self.add_argument(
                f"--{flag.name}",
                type=kind,
                default=flag.default,
                required=flag.required,
                choices=choices,
            )

    def canonical(self, argv: Sequence[str]) -> list[str]:
        """Return flags as ``--name=value``, then the other words: argparse cannot misread that.

        Between flags it would take an optional word for missing too soon.
        """
        flags: list[str] = []
        words: list[str] = []
        left = list(argv)
        while left:
            word = left.pop(0)
            match = FLAG.fullmatch(word)
            if match is None:
                words.append(word)
                continue
            name, value = match["name"].replace("-", "_"), match["value"] or ""
            if name == "h":
                name = "help"
            if not value and name in self.switches:
                value = "=true"
            elif not value and name[:2] == "no" and name[2:].lstrip("_") in self.switches:
                name, value = name[2:].lstrip("_"), "=false"
            elif not value and name in self.valued:
                if not left or FLAG.fullmatch(left[0]):
                    self.error(f"--{name}: expected a value")
                value = f"={left.pop(0)}"
            if name not in {"help", *self.switches, *self.valued}:
                self.error(f"unknown flag --{name}{did_you_mean(f'--{name}', self.spellings())}")
            flags.append(f"--{name}{value}")
        return flags + words

    def spellings(self) -> list[str]:
        """Return the flags as they are written on a command line."""
        return [f"--{name}" for name in (*self.switches, *self.valued)]

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(f"{message}\n'{self.prog} --help' lists what it takes.")

    def format_help(self) -> str:
        words = [_spelling(flag) for flag in self.flags if flag.positional]
        usage = " ".join([self.prog, *words, "[flags]"])
        rows = [(_spelling(flag), _explanation(flag)) for flag in self.flags]
        rows.append(("--help", "print this"))
        indent = " " * (max(len(left) for left, _ in rows) + 4)
        width = max(shutil.get_terminal_size().columns, len(indent) + 30)
        body = "\n".join(
            textwrap.fill(f"  {left}".ljust(len(indent)) + right, width, subsequent_indent=indent)
            for left, right in rows
        )
        return f"usage: {usage}\n\n{self.description}\n\n{body}\n"


def _kind(flag: Flag) -> Callable[[str], object]:
    if isinstance(flag.default, bool):
        return _switch
    kind = type(flag.default)

    def convert(text: str) -> object:
        value = kind(text)
        if not isinstance(value, str) and value < flag.at_least:
            raise argparse.ArgumentTypeError(f"must be at least {flag.at_least}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse's messages name the type
    return convert


def _switch(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got '{text}'")


def _spelling(flag: Flag) -> str:
    if flag.positional:
        name = flag.name.upper() + ("..." if flag.many else "")
        return name if flag.required else f"[{name}]"
    if isinstance(flag.default, bool):
        return f"--[no]{flag.name}"
    if flag.choices:
        return f"--{flag.name}={'|'.join(flag.choices)}"
    value = "TEXT" if isinstance(flag.default, str) else "NUMBER"
    return f"--{flag.name}={value}"


def _explanation(flag: Flag) -> str:
    if flag.required:
        return f"{flag.help} (required)"
    if isinstance(flag.default, bool) or flag.default == "":
        return flag.help
    return f"{flag.help} (default: {flag.default})"
