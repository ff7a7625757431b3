"""Turns protobuf's complaints about a prototxt into words for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from protocaffe.errors import TextError, did_you_mean
from protocaffe.proto import scan
from protocaffe.proto.forks import FORK_FIELDS

_LINE_WIDTH = 100
_MOST_PLACES = 4
_MOST_VALUES = 12
_QUOTES = "\"'"
_NOT_CLOSED = r'Expected "[}>]"'
EXPECTED = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number from -2147483648 to 2147483647",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number from 0 to 4294967295",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text in quotes",
}
"""What a value of each type looks like."""

_V1_FIELDS = {"blobs_lr": "param { lr_mult: ... }", "weight_decay": "param { decay_mult: ... }"}


class _Complaint:
    """The place in the text where reading stopped.

    Attributes:
        text: the whole text.
        offset: where reading stopped; a description may move it to where the mistake is.
        step: the token there and what surrounds it.
        blocks: the open blocks, outermost first.
        types: the message type of the whole text, then of each open block (None: unknown).
    """

    def __init__(self, text: str, offset: int, message: Message) -> None:
        self.text = text
        self.offset = offset
        for step in scan.walk(text):
            self.step = step
            if step.start + len(step.token) > offset:
                break
        self.blocks = self.step.blocks
        self.types: list[Descriptor | None] = [cast(Descriptor, message.DESCRIPTOR)]
        for block in self.blocks:
            outer = self.types[-1]
            field = outer.fields_by_name.get(block.field) if outer else None
            self.types.append(field.message_type if field else None)

    @property
    def got(self) -> str:
        """What stands there."""
        return self.step.token or "the end of the text"

    @property
    def field(self) -> FieldDescriptor | None:
        """The field whose value was being read."""
        message = self.types[-1]
        return message.fields_by_name.get(self.step.field) if message else None

    def opened(self, block: scan.Block) -> str:
        """Return "block 'layer', opened on line 3,"."""
        return f"block '{block.field}', opened on line {scan.position(self.text, block.start)[0]},"


def explain(error: text_format.ParseError, text: str, message: Message, path: str) -> TextError:
    """Return ``path:line:column: what is wrong`` and the line with a caret."""
    raw = str(error)
    lines = text.split("\n")
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    offset = sum(len(each) + 1 for each in lines[: line - 1]) + column - 1
    if re.search(_NOT_CLOSED, raw):
        offset = len(text)  # protobuf names the last token instead
    complaint = _Complaint(text, offset, message)
    what = _describe(raw, complaint)
    return located(path, text, *scan.position(text, complaint.offset), what)


def located(path: str, text: str, line: int, column: int, what: str) -> TextError:
    """Return ``path:line:column: what`` and the line with a caret."""
    shown = _with_caret(text.split("\n")[line - 1], column)
    return TextError(f"{path}:{line}:{column}: {what}\n{shown}")


def _describe(raw: str, complaint: _Complaint) -> str:
    for pattern, description in _DESCRIPTIONS:
        match = re.search(pattern, raw)
        if match:
            return description(complaint, *match.groups())
    return re.sub(r"^\d+:\d+ : ('.*': )?", "", raw)


def _unknown_field(complaint: _Complaint, name: str) -> str:
    message = complaint.types[-1]
    if message is None:
        return f"unknown field '{name}'"
    place = complaint.blocks[-1].field if complaint.blocks else message.name
    what = f"unknown field '{name}' in {place}"
    if complaint.text[: complaint.offset].endswith(tuple(_QUOTES)):
        return f"{what}; a text in quotes ends right before it: is one quote missing, or too many?"
    if not complaint.blocks and _is_of_other_file(message, name):
        return f"{what}; {_OTHER_FILES[message.name][1]}: is this the file you meant?"
    for outer in complaint.types[:-1]:
        if outer and name in outer.fields_by_name:
            block = complaint.blocks[-1]
            return f"{what}; is a '}}' missing before it? ({complaint.opened(block)} is not closed)"
    if name in _V1_FIELDS and message.name == "LayerParameter":
        return f"{what}; it belongs to the old 'layers' format, write {_V1_FIELDS[name]}"
    fork = FORK_FIELDS.get((message.name, name))
    if fork:
        return f"{what}; it comes from {fork} and is not supported here"
    inside = [
        field.name
        for field in message.fields
        if field.message_type and name in field.message_type.fields_by_name
    ]
    if 0 < len(inside) <= _MOST_PLACES:
        return f"{what}; it belongs inside {' or '.join(inside)}"
    return what + did_you_mean(name, message.fields_by_name)


_OTHER_FILES = {
    "NetParameter": ("SolverParameter", "it belongs in a solver, and this is read as a net"),
    "SolverParameter": ("NetParameter", "it belongs in a net, and this is read as a solver"),
}


def _is_of_other_file(message: Descriptor, name: str) -> bool:
    other, _ = _OTHER_FILES.get(message.name, ("", ""))
    return bool(other) and name in message.file.message_types_by_name[other].fields_by_name


def _unknown_value(complaint: _Complaint) -> str:
    field, got = complaint.field, complaint.got
    if field is None or field.enum_type is None:
        return f"unknown value {got}"
    known = list(field.enum_type.values_by_name)
    what = f"unknown value {got} for '{field.name}'{did_you_mean(got.strip(_QUOTES), known)}"
    if got.startswith(tuple(_QUOTES)) and field.enum_type.name == "LayerType":
        return f"{what} (a type in quotes belongs to the new format: write 'layer', not 'layers')"
    return what if len(known) > _MOST_VALUES else f"{what} (known: {', '.join(known)})"


def _wrong_value(complaint: _Complaint) -> str:
    field = complaint.field
    if field is None:
        return f"unexpected {complaint.got}"
    what = f"expected {EXPECTED[field.cpp_type]} for '{field.name}', got {complaint.got}"
    if field.full_name == "caffe.LayerParameter.type":
        what += " (a type without quotes belongs to the old 'layers' format)"
    return what


def _no_block(complaint: _Complaint) -> str:
    return f"'{complaint.step.field}' is a block: expected '{{' after it, got {complaint.got}"


def _no_colon(complaint: _Complaint) -> str:
    return f"expected ':' and a value after '{complaint.step.field}', got {complaint.got}"


def _open_list(complaint: _Complaint) -> str:
    return f"expected ',' or ']' in the list of '{complaint.step.field}', got {complaint.got}"


def _not_closed(complaint: _Complaint) -> str:
    block = complaint.blocks[-1]
    complaint.offset = block.start
    return f"block '{block.field}' is never closed; a '}}' or '>' is missing before the end"


def _no_field_name(complaint: _Complaint, got: str) -> str:
    if got in ("}", ">") and not complaint.blocks:
        return f"this '{got}' closes nothing; there is one too many"
    return f"expected the name of a field, got {got}"


def _not_quoted(complaint: _Complaint) -> str:
    return f"the text in quotes for '{complaint.step.field}' does not end on its line"


def _bad_escape(complaint: _Complaint) -> str:
    return f"the text in quotes for '{complaint.step.field}' has a backslash code that is no text"


def _twice(complaint: _Complaint, name: str) -> str:
    return f"field '{name}' is given twice, but takes one value"


_DESCRIPTIONS: list[tuple[str, Callable[..., str]]] = [
    (r'has no field named "(.*?)"', _unknown_field),
    (r"has no value (?:named|with number)", _unknown_value),
    (r'should not have multiple "(.*?)"', _twice),
    (r"String missing ending quote", _not_quoted),
    (r"Couldn't parse string|codec can't", _bad_escape),
    (r"Couldn't parse|Invalid octal|Value out of range|Expected string", _wrong_value),
    (r'Expected "true" or "false"', _wrong_value),
    (r'Expected "\{"', _no_block),
    (r'Expected ":"', _no_colon),
    (r'Expected ","', _open_list),
    (_NOT_CLOSED, _not_closed),
    (r"Expected identifier or number, got (.*)\.$", _no_field_name),
]


def _with_caret(line: str, column: int) -> str:
    """Return the line, cut to what fits around the column, with a caret below the column."""
    start = max(0, min(column - _LINE_WIDTH // 2, len(line) - _LINE_WIDTH))
    shown = line[start : start + _LINE_WIDTH].rstrip().expandtabs(1)
    return f"    {shown}\n    {' ' * (column - 1 - start)}^"
