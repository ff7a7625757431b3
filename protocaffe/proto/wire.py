"""The wire format of protobuf, for files that are too large or too foreign for messages.

A message on the wire is a sequence of fields, each a number, a wire type and a value. Read this
way, a file of half a gigabyte costs no copy, and fields that other forks of Caffe number
differently are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types: a number of 1 to 10 bytes; 8 bytes; a length and as many bytes; 4 bytes."""


class DamagedError(Exception):
    """These bytes are not a message."""


def fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield number, wire type and bytes of each field; those of a varint are its encoding.

    Raises:
        DamagedError: the bytes are no message, or end within a field.
    """
    place, end = 0, len(data)
    while place < end:
        key, place = varint(data, place)
        number, kind = key >> 3, key & 7
        start = place
        if kind == VARINT:
            _, place = varint(data, place)
        elif kind == DELIMITED:
            length, start = varint(data, place)
            place = start + length
        elif kind in (FIXED32, FIXED64):
            place += 4 if kind == FIXED32 else 8
        else:
            raise DamagedError(f"wire type {kind}")
        if not number or place > end:
            raise DamagedError("a field without number or end")
        yield number, kind, data[start:place]


def varint(data: memoryview, place: int = 0) -> tuple[int, int]:
    """Return the number that is encoded at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise DamagedError("a number without end")


def signed(value: int) -> int:
    """Return an int64 from the number that stands for it on the wire."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def encoded_varint(value: int) -> bytes:
    """Return the encoding of a number that is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """Return the pieces of a field whose value consists of parts, none of them copied."""
    length = sum(len(part) for part in parts)
    return [encoded_varint(number << 3 | DELIMITED) + encoded_varint(length), *parts]
