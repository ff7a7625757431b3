"""A light walk over prototxt: which blocks are open where, and which layer starts on which line.

protobuf's own reader tells neither, and messages for people need both. The walk accepts any
text, also one that does not parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.text_encoding import CUnescape

_TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\n]* )
    | (?P<string>  "(?:[^"\\\n]|\\.)*"? | '(?:[^'\\\n]|\\.)*'? )
    | (?P<word>    [\w.+-]+ )
    | (?P<mark>    [{}<>\[\]:] )
    """,
    re.VERBOSE,
)


class Block(NamedTuple):
    """A block ``field { ... }`` that is open."""

    field: str
    start: int
    """Offset of the field's name, or of the brace where the block is one of a list."""
    in_list: bool


class Step(NamedTuple):
    """One token of the text and what surrounds it; the end of the text is an empty token."""

    token: str
    start: int
    blocks: tuple[Block, ...]
    """The blocks open before the token, outermost first."""
    field: str
    """The last field named in the innermost block: the one this token is a value of, if any."""


def walk(text: str) -> Iterator[Step]:
    """Yield the tokens of the text in order, comments left out."""
    blocks: tuple[Block, ...] = ()
    field, field_start = "", 0
    expect_value = in_list = False
    for match in _TOKEN.finditer(text):
        token, start, kind = match[0], match.start(), match.lastgroup
        if kind == "comment":
            continue
        yield Step(token, start, blocks, field)
        if kind == "word" and not (expect_value or in_list):
            field, field_start = token, start
        elif token in ("{", "<"):
            blocks = (*blocks, Block(field, start if in_list else field_start, in_list))
            field, in_list = "", False
        elif token in ("}", ">") and blocks:
            field, in_list = blocks[-1].field, blocks[-1].in_list
            blocks = blocks[:-1]
        elif token in ("[", "]"):
            in_list = token == "["
        expect_value = token == ":"
    yield Step("", len(text), blocks, field)


def layer_offsets(text: str) -> dict[str, list[int]]:
    """Return where each layer starts: for every name, the offsets of its blocks in order."""
    found: dict[str, list[int]] = {}
    seen: set[Block] = set()
    for step in walk(text):
        if not step.blocks or step.blocks[-1].field not in ("layer", "layers"):
            continue
        block = step.blocks[-1]
        if step.field == "name" and step.token.startswith(("'", '"')) and block not in seen:
            seen.add(block)
            found.setdefault(_unquote(step.token), []).append(block.start)
    return found


def field_extent(text: str, offset: int) -> tuple[int, int] | None:
    """Return where the field that an offset is in starts and ends, its value included.

    None if there is no such field, or its end is not to be found.
    """
    steps = list(walk(text))
    here = next((i for i, s in enumerate(steps) if s.start <= offset < s.start + len(s.token)), -1)
    while here >= 0 and not _names_field(steps, here):
        here -= 1
    if here < 0:
        return None
    first = here + 1 + (steps[here + 1].token == ":")
    opening = steps[first].token
    if opening in _CLOSING:
        depth = len(steps[first].blocks) + (opening != "[")
        after = range(first + 1, len(steps))
        same = (i for i in after if len(steps[i].blocks) == depth)
        first = next((i for i in same if steps[i].token == _CLOSING[opening]), -1)
    else:
        while steps[first].token[:1] in _QUOTES and steps[first + 1].token[:1] in _QUOTES:
            first += 1
    last = steps[first]
    return (steps[here].start, last.start + len(last.token)) if last.token else None


_CLOSING = {"{": "}", "<": ">", "[": "]"}
_QUOTES = ("'", '"')


def _names_field(steps: list[Step], index: int) -> bool:
    is_word = re.fullmatch(r"[A-Za-z_]\w*", steps[index].token) is not None
    return is_word and steps[index + 1].token in (":", "{", "<")


def position(text: str, offset: int) -> tuple[int, int]:
    """Return the line and column, both from 1, of an offset."""
    line_start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - line_start + 1


def _unquote(string: str) -> str:
    content = string[1:-1]
    if "\\" not in content:
        return content
    unescaped: bytes = CUnescape(content)
    return unescaped.decode("utf-8", "replace")
