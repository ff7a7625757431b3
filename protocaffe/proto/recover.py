"""Reading a prototxt in spite of mistakes, so that all of them can be told at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from protocaffe.errors import TextError
from protocaffe.proto import scan
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
    mistakes: list[TextError] = []
    while len(mistakes) < MOST_MISTAKES:
        message = make()
        try:
            return parse_text(text, message, path), mistakes
        except TextError as error:
            mistakes.append(error)
            place = re.match(r":(\d+):(\d+): ", str(error).removeprefix(path))
            if place is None:  # required fields are missing, and nothing else
                return message, mistakes
            mended = _mend(text, int(place[1]), int(place[2]), str(error))
        if mended == text:
            break
        text = mended
    return None, mistakes


def _mend(text: str, line: int, column: int, mistake: str) -> str:
    """Return the text with the mistake corrected or blanked; unchanged if neither can be done."""
    offset = sum(len(each) + 1 for each in text.split("\n")[: line - 1]) + column - 1
    nearest = NEAREST.search(mistake.partition("\n")[0])
    word = re.compile(r"[\"']?\w+[\"']?").match(text, offset)
    if nearest and word:
        return text[:offset] + nearest[1] + text[word.end() :]
    extent = scan.field_extent(text, offset)
    if extent is None:
        return text
    start, end = extent
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
