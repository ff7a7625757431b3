"""Datums: one image, or any (channels, height, width) array, with its label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from protocaffe.data.database import Bytes, View
from protocaffe.errors import DataError
from protocaffe.proto import caffe_pb2

Array = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]


def parse_datum(value: Bytes) -> caffe_pb2.Datum:
    """Return the Datum that a database record holds.

    Raises:
        DataError: the bytes are no Datum.
    """
    try:
        return caffe_pb2.Datum.FromString(value)  # type: ignore[arg-type]  # takes views, too
    except DecodeError as error:
        raise DataError(f"not a Datum message: {error}") from error


def datum_array(datum: caffe_pb2.Datum, color: bool | None = None) -> Array:
    """Return a datum's values, shape (channels, height, width).

    Pixels come as uint8 in BGR order; ``float_data``, which counts where ``data`` is empty, as
    float32.

    Args:
        datum: raw, or with an encoded image in its ``data``.
        color: True decodes an encoded image to three channels, False to one, None to those it
            has. Raw datums are returned as they are.

    Raises:
        DataError: the image cannot be decoded, or the number of values does not fit the sizes.
    """
    if datum.encoded:
        return planar(_decode_datum(datum.data, color))
    values: Array
    if datum.data:
        values = np.frombuffer(datum.data, np.uint8)
    else:
        values = np.array(datum.float_data, np.float32)
    shape = datum.channels, datum.height, datum.width
    if min(shape) < 1 or values.size != shape[0] * shape[1] * shape[2]:
        c, h, w = shape
        raise DataError(
            f"a datum of {c} channel(s), height {h} and width {w} needs {c * h * w} values; "
            f"this one has {values.size}"
        )
    return values.reshape(shape)


def read_record(
    record: View, source: str, color: bool | None = None
) -> tuple[caffe_pb2.Datum, Array]:
    """Return a database record's datum and its values, as :func:`datum_array` gives them.

    Raises:
        DataError: the record cannot be used; the message has its key and the source.
    """
    try:
        datum = parse_datum(record[1])
        return datum, datum_array(datum, color)
    except DataError as error:
        raise record_error(record, source, str(error)) from None


def record_error(record: View, source: str, message: str) -> DataError:
    """Return an error that names the record's key and the database it comes from."""
    key = bytes(record[0]).decode(errors="backslashreplace")
    return DataError(f"record '{key}' of '{source}': {message}")


def read_alike(values: Sequence[Bytes]) -> tuple[Image, npt.NDArray[np.uint8]] | None:
    """Read raw datums that differ in nothing but pixels and label, all at once.

    Small images, as those of MNIST and CIFAR, cost far more time as messages of their own.

    Args:
        values: serialised datums.

    Returns:
        Pixels of shape (datums, channels, height, width) and the labels, or None if the datums
        are not like this, or a label is above 127 and so takes more than a byte.
    """
    first = bytes(values[0])
    try:
        datum = parse_datum(first)
    except DataError:
        return None
    shape = datum.channels, datum.height, datum.width
    count = len(datum.data)
    end = caffe_pb2.Datum(label=datum.label)
    if datum.HasField("encoded"):
        end.encoded = datum.encoded
    tail = end.SerializeToString()
    start = len(first) - len(tail) - count
    is_plain = (
        not datum.encoded
        and 0 <= datum.label < 128
        and 0 < count == math.prod(shape)
        and first == datum.SerializeToString()
        and first[start:] == datum.data + tail
    )
    if not is_plain or {*map(len, values)} != {len(first)}:
        return None
    rows = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    ends = rows[:, start + count :]
    labels = ends[:, 1]  # behind the field's number
    heads_agree = (rows[:, :start] == rows[0, :start]).all()
    tails_agree = (ends[:, 0] == tail[0]).all() and (ends[:, 2:] == ends[0, 2:]).all()
    if not (heads_agree and tails_agree and labels.max() < 128):
        return None
    return rows[:, start : start + count].reshape(-1, *shape), labels


def decode_image(content: bytes, color: bool | None) -> Image | None:
    """Decode an image file's bytes with OpenCV.

    Args:
        content: a whole jpg, png or other file that OpenCV reads.
        color: True for three channels (BGR), False for one, None for those the file has.

    Returns:
        Pixels of shape (height, width) or (height, width, channels), or None if the bytes are
        no image.

    The gray pixels of a jpg are its own luma plane, not a mean of the decoded colours.
    """
    import cv2

    if not content:
        return None
    flags = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE}
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags[color])  # type: ignore[return-value]
    except cv2.error:
        return None


def resize_image(image: Image, height: int, width: int) -> Image:
    """Return (height, width[, channels]) pixels in another size, bilinear without antialiasing."""
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def planar(image: Array) -> Array:
    """Return (height, width[, channels]) pixels as a view of shape (channels, height, width)."""
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def sizes(shape: Sequence[int]) -> str:
    """Return a shape as people write it: 3 x 32 x 32."""
    return " x ".join(map(str, shape))


def interleaved(image: Array) -> Array:
    """Return a (channels, height, width) image as OpenCV takes it: (height, width, channels).

    That is a view where the image is itself a view by :func:`planar`, or a part of one.
    """
    view = image.transpose(1, 2, 0)
    return view if view.strides[1:] == _packed(view) else np.ascontiguousarray(view)


def is_planar_view(image: Array) -> bool:
    """Whether the channels of a (channels, height, width) image lie pixel by pixel."""
    return image.strides[0] == image.itemsize and not image.flags.c_contiguous


def _packed(view: Array) -> tuple[int, int]:
    """Return the strides that columns and channels of (height, width, channels) have to have."""
    return view.shape[2] * view.itemsize, view.itemsize


def _decode_datum(content: bytes, color: bool | None) -> Image:
    image = decode_image(content, color)
    if image is None:
        raise DataError(f"its {len(content)} bytes of encoded data are no image OpenCV can read")
    if image.dtype != np.uint8:
        raise DataError(
            f"its encoded image has {image.dtype} pixels, but only 8 bits per channel are "
            f"supported; convert the images again, or use force_color or force_gray"
        )
    return image
