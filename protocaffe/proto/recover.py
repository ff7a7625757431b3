"""Reading a prototxt in spite of mistakes, so that all of them can be told at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from protocaffe.errors import TextError
from protocaffe.proto import scan
from protocaffe.proto.complaints import located
from protocaffe.proto.text import parse_text

M = TypeVar("M", bound=Message)

MOST_MISTAKES = 100
NEAREST = re.compile(r"; did you mean '(\w+)'\?")


def parse_all(text: str, make: Callable[[], M], path: str) -> tuple[M | None, list[TextError]]:
    """Read a prototxt as :func:`~protocaffe.proto.text.parse_text` does, but go on after mistakes.

    After a misspelt name reading goes on with the nearest one; another field that cannot be read
    is left out.

    Args:
        text: the prototxt.
        make: makes an empty message, such as ``NetParameter``.
        path: the file, for messages.

    Returns:
        The message, or None if the structure of the text is broken (a brace is missing), and all
        mistakes.
    """
    mended = _Mended(text)
    mistakes: list[TextError] = []
    while len(mistakes) < MOST_MISTAKES:
        message = make()
        try:
            return parse_text(mended.text, message, path), mistakes
        except TextError as error:
            place = re.match(r":(\d+):(\d+): (.*)", str(error).removeprefix(path))
            if place is None:  # required fields are missing, and nothing else
                return message, [*mistakes, error]
            line, column, what = int(place[1]), int(place[2]), place[3]
            if not mended.follows_guess(line, column):
                written = mended.written_column(line, column)
                mistakes.append(located(path, text, line, written, what))
            if not mended.mend(line, column, what):
                break
    return None, mistakes


class _Mended:
    """A text in which mistakes are corrected or blanked, one by one.

    Attributes:
        text: what it has become.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._guesses: list[tuple[int, int, int]] = []  # line, end of the name, letters it grew
        self._guessed, self._guess_end = False, 0  # whether the last mistake was, and to where

    def written_column(self, line: int, column: int) -> int:
        """Return where something stands in the text as it was."""
        for at, end, grown in reversed(self._guesses):
            if at == line and column >= end:
                column -= grown
        return column

    def follows_guess(self, line: int, column: int) -> bool:
        """Tell whether this is the value of a name that was guessed: it may fit another one."""
        here = self._offset(line, column)
        return self._guessed and bool(re.fullmatch(r"\s*:?\s*", self.text[self._guess_end : here]))

    def mend(self, line: int, column: int, mistake: str) -> bool:
        """Put the nearest name in place of a misspelt one, or blank the field; tell if it helps."""
        offset = self._offset(line, column)
        nearest = NEAREST.search(mistake)
        word = re.compile(r"[\"']?\w+[\"']?").match(self.text, offset)
        self._guessed = bool(nearest and word)
        if nearest and word:
            self.text = self.text[:offset] + nearest[1] + self.text[word.end() :]
            name = len(nearest[1])
            self._guess_end = offset + name
            self._guesses.append((line, column + name, name - len(word[0])))
            return True
        extent = scan.field_extent(self.text, offset)
        if extent is None:
            return False
        start, end = extent
        self.text = (
            self.text[:start] + re.sub(r"[^\n]", " ", self.text[start:end]) + self.text[end:]
        )
        return True

    def _offset(self, line: int, column: int) -> int:
        return sum(len(each) + 1 for each in self.text.split("\n")[: line - 1]) + column - 1
