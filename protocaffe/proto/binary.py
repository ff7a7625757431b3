"""Binary messages in files, and the arrays inside them."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from protocaffe.errors import FileError
from protocaffe.proto.caffe_pb2 import BlobProto
from protocaffe.proto.files import StrPath, read_bytes, write_atomic

__all__ = ["array_to_blob", "blob_to_array", "read_binary", "write_atomic"]

M = TypeVar("M", bound=Message)
_LEGACY_SHAPE = ("num", "channels", "height", "width")
_HDF5 = b"\x89HDF"


def read_binary(path: StrPath, message: M) -> M:
    """Fill the message from a binary file and return it.

    Raises:
        FileError: the file is missing, a folder, empty, cut short or of another kind.
    """
    content = read_bytes(path)
    kind = message.DESCRIPTOR.name
    if not content:
        raise FileError(f"{path}: the file is empty; expected a {kind} message")
    if content.startswith(_HDF5):
        raise FileError(f"{path}: expected a {kind} message, got an HDF5 file; name it *.h5")
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise FileError(
            f"{path}: cannot be read as a {kind} message; the file is cut short, damaged or of "
            f"another kind{_text_hint(content)}"
        ) from None
    if not message.ListFields():
        raise FileError(f"{path}: expected a {kind} message, got a file of another kind")
    return message


def blob_to_array(blob: BlobProto, *, diff: bool = False) -> npt.NDArray[Any]:
    """Return a new array with the blob's values: float32, or float64 from its double fields.

    Args:
        blob: with ``shape``, or the old ``num``, ``channels``, ``height`` and ``width``, which
            give four axes and win if any of them is present.
        diff: return the gradient instead.

    Raises:
        FileError: the blob holds another number of values than its shape has.
    """
    if any(blob.HasField(field) for field in _LEGACY_SHAPE):
        shape = tuple(getattr(blob, field) for field in _LEGACY_SHAPE)
    else:
        shape = tuple(blob.shape.dim)
    part = "diff" if diff else "data"
    values = _values(blob, f"double_{part}", "<f8")
    if not values.size:
        values = _values(blob, part, "<f4")
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
    values = np.asarray(array)
    blob = BlobProto() if out is None else out
    blob.Clear()
    blob.shape.dim.extend(values.shape)  # shape {} for a scalar
    blob.shape.SetInParent()
    prefix, dtype = ("double_", "<f8") if values.dtype == np.float64 else ("", "<f4")
    _set_values(blob, f"{prefix}data", values, dtype)
    if diff is not None:
        _set_values(blob, f"{prefix}diff", np.asarray(diff), dtype)
    return blob


# A repeated field hands out its numbers one by one, 10 to 50 times slower than its wire form,
# where they are one piece of memory.


def _values(blob: BlobProto, field: str, dtype: str) -> npt.NDArray[Any]:
    repeated = getattr(blob, field)
    alone = BlobProto()
    getattr(alone, field).MergeFrom(repeated)
    size = len(repeated) * np.dtype(dtype).itemsize
    wire = alone.SerializeToString()
    return np.frombuffer(wire, dtype, offset=len(wire) - size).astype(dtype[1:])


def _set_values(blob: BlobProto, field: str, values: npt.NDArray[Any], dtype: str) -> None:
    payload = np.ascontiguousarray(values, dtype).ravel().view(np.uint8).data
    number = blob.DESCRIPTOR.fields_by_name[field].number
    length_delimited = 2
    tag = bytes([number << 3 | length_delimited])
    blob.MergeFromString(b"".join((tag, _varint(len(payload)), payload)))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _text_hint(content: bytes) -> str:
    start = content[:1000]
    printable = all(byte >= 32 or byte in b"\t\r\n" for byte in start)
    return " (it looks like a text file)" if printable else ""
