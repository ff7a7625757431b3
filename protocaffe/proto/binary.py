"""Binary messages in files, and the arrays inside them."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from protocaffe.errors import FileError
from protocaffe.proto.caffe_pb2 import BlobProto, BlobShape
from protocaffe.proto.files import StrPath, read_bytes, write_atomic
from protocaffe.proto.wire import DELIMITED, VARINT, DamagedError, delimited, fields, signed, varint

__all__ = [
    "array_to_blob",
    "blob_to_array",
    "decode_blob",
    "encode_blob",
    "read_binary",
    "read_content",
    "write_atomic",
]

M = TypeVar("M", bound=Message)
Array = npt.NDArray[Any]

MAX_AXES = 32
LONGEST_FIELD = 11
"""Bytes of a number on the wire, at most."""

_HDF5 = b"\x89HDF"
_NUMBERS = {name: field.number for name, field in BlobProto.DESCRIPTOR.fields_by_name.items()}
_LEGACY_SHAPE = [_NUMBERS[name] for name in ("num", "channels", "height", "width")]
_FLOATS = {_NUMBERS[name] for name in ("data", "diff", "double_data", "double_diff")}
_KINDS = {**dict.fromkeys(_LEGACY_SHAPE, VARINT), _NUMBERS["shape"]: DELIMITED}
_KINDS |= {10: VARINT, 11: VARINT, 12: DELIMITED, 13: DELIMITED}
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2", 3: "<i4", 4: "<u4"}
"""How NVIDIA's fork encodes ``raw_data`` (12) and ``raw_diff`` (13), by types in 10 and 11."""


def read_binary(path: StrPath, message: M) -> M:
    """Fill the message from a binary file and return it.

    Raises:
        FileError: the file is missing, a folder, empty, cut short or of another kind.
    """
    kind = message.DESCRIPTOR.name
    content = read_content(path, kind)
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise damaged(path, kind, content) from None
    if not message.ListFields():
        raise other_kind(path, kind)
    return message


def read_content(path: StrPath, kind: str) -> bytes:
    """Return the content of a binary file that should hold a message of some kind.

    Raises:
        FileError: the file is missing, a folder, empty or an HDF5 file.
    """
    content = read_bytes(path)
    if not content:
        raise FileError(f"{path}: the file is empty; expected a {kind} message")
    if content.startswith(_HDF5):
        raise FileError(f"{path}: expected a {kind} message, got an HDF5 file; name it *.h5")
    return content


def damaged(path: StrPath, kind: str, content: bytes) -> FileError:
    """Return the error for a file that does not parse."""
    return FileError(
        f"{path}: cannot be read as a {kind} message; the file is cut short, damaged or of "
        f"another kind{_text_hint(content)}"
    )


def other_kind(path: StrPath, kind: str) -> FileError:
    """Return the error for a file that parses but has nothing that is looked for."""
    where = f" (as in a {SUFFIXES[kind]})" if kind in SUFFIXES else ""
    return FileError(f"{path}: expected a {kind} message{where}, got a file of another kind")


SUFFIXES = {
    "NetParameter": ".caffemodel",
    "SolverState": ".solverstate",
    "BlobProto": ".binaryproto",
}
"""How files with a kind of message are called."""


def blob_to_array(blob: BlobProto, *, diff: bool = False) -> Array:
    """Return a new array with the blob's values: float32, or float64 from its double fields.

    Args:
        blob: with ``shape``, or the old ``num``, ``channels``, ``height`` and ``width``, which
            give four axes and win if any of them is present.
        diff: return the gradient instead.

    Raises:
        FileError: the blob holds another number of values than its shape has.
    """
    # A message hands out its numbers one by one, 10 to 50 times slower than its wire form, where
    # they are one piece of memory.
    try:
        array: Array = decode_blob(memoryview(blob.SerializeToString()), diff=diff).copy()
    except DamagedError as error:  # one of its unknown fields is a known one misspelt
        raise FileError(f"blob is damaged: {error}") from None
    return array


def decode_blob(data: memoryview, *, diff: bool = False) -> Array:
    """Return the array in a BlobProto's wire form, as a view of it where possible.

    Args:
        data: the BlobProto as it stands in a file.
        diff: see :func:`blob_to_array`.

    Raises:
        DamagedError: the bytes are no message.
        FileError: see :func:`blob_to_array`.
    """
    found: dict[int, list[memoryview]] = {}
    for number, kind, value in fields(data):
        if number in _FLOATS and kind != DELIMITED:
            return _decode_unpacked(data, diff)
        if number in _KINDS and kind != _KINDS[number]:
            raise DamagedError(f"field {number} of wire type {kind}")
        found.setdefault(number, []).append(value)
    shape = _decoded_shape(found)
    part = "diff" if diff else "data"
    values = _values(found, part)
    if any(extent < 0 for extent in shape) or values.size != math.prod(shape):
        raise FileError(
            f"blob of shape {shape} should hold {math.prod(shape)} {part} values, "
            f"but holds {values.size}"
        )
    return values.reshape(shape)


def array_to_blob(
    array: npt.ArrayLike, out: BlobProto | None = None, *, diff: npt.ArrayLike | None = None
) -> BlobProto:
    """Return a blob with the array's shape and values.

    Args:
        array: float64 is stored in ``double_data``, everything else as float32 in ``data``.
        out: the message to overwrite; a new one if None.
        diff: the gradient to store as well, of the same shape.
    """
    blob = BlobProto() if out is None else out
    blob.ParseFromString(b"".join(encode_blob(array, diff)))
    return blob


def encode_blob(
    array: npt.ArrayLike, diff: npt.ArrayLike | None = None
) -> list[bytes | memoryview]:
    """Return the pieces of a BlobProto's wire form; see :func:`array_to_blob`."""
    values = np.asarray(array)
    prefix, dtype = ("double_", "<f8") if values.dtype == np.float64 else ("", "<f4")
    shape = BlobShape(dim=values.shape)  # there even if empty: {} is a scalar's
    pieces = delimited(_NUMBERS["shape"], shape.SerializeToString())
    for part, numbers in (("data", values), ("diff", diff)):
        if numbers is not None:
            flat = np.ascontiguousarray(numbers, dtype).ravel().view(np.uint8)
            pieces += delimited(_NUMBERS[prefix + part], flat.data)
    return pieces


def _decoded_shape(found: dict[int, list[memoryview]]) -> tuple[int, ...]:
    if any(number in found for number in _LEGACY_SHAPE):
        legacy = [found.get(number, [_ZERO])[-1] for number in _LEGACY_SHAPE]
        return tuple(signed(varint(value)[0]) for value in legacy)
    encoded = b"".join(found.get(_NUMBERS["shape"], []))
    if len(encoded) > MAX_AXES * LONGEST_FIELD:
        raise FileError(f"blob with more than {MAX_AXES} axes")
    try:
        return tuple(BlobShape.FromString(encoded).dim)
    except DecodeError as error:
        raise DamagedError(str(error)) from None


def _values(found: dict[int, list[memoryview]], part: str) -> Array:
    candidates = [(_NUMBERS[f"double_{part}"], "<f8"), (_NUMBERS[part], "<f4")]
    kind_number, raw_number = (10, 12) if part == "data" else (11, 13)
    if kind_number in found and raw_number in found:
        kind = varint(found[kind_number][-1])[0]
        candidates.append((raw_number, _RAW_TYPES.get(kind, "")))
    for number, dtype in candidates:
        pieces = [piece for piece in found.get(number, []) if len(piece)]
        if pieces and dtype:
            return _joined(pieces, np.dtype(dtype))
    return np.empty(0, np.float32)


def _joined(pieces: list[memoryview], dtype: np.dtype[Any]) -> Array:
    if any(len(piece) % dtype.itemsize for piece in pieces):
        raise DamagedError("a broken list of numbers")
    arrays = [np.frombuffer(piece, dtype) for piece in pieces]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _decode_unpacked(data: memoryview, diff: bool) -> Array:
    """Decode a blob whose writer stored number by number, by way of a message."""
    blob = BlobProto()
    try:
        blob.MergeFromString(bytes(data))
    except DecodeError as error:
        raise DamagedError(str(error)) from None
    return decode_blob(memoryview(blob.SerializeToString()), diff=diff)


def _text_hint(content: bytes) -> str:
    start = content[:1000]
    printable = all(byte >= 32 or byte in b"\t\r\n" for byte in start)
    return " (it looks like a text file)" if printable else ""


_ZERO = memoryview(b"\0")
