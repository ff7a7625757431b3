"""Image files to a database of Datums, or to HDF5 files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from protocaffe.data.datum import (
    Array,
    Image,
    datum_array,
    decode_image,
    parse_datum,
    planar,
    resize_image,
    sizes,
)
from protocaffe.data.entries import Entry
from protocaffe.data.hdf5_writer import HDF5Writer
from protocaffe.data.reader import (
    Conversion,
    ImageError,
    ImageReader,
    Progress,
    place,
    read_image,
)
from protocaffe.data.transformer import Transformer
from protocaffe.data.writer import create_database
from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath

CLASS_NAMES = "labels.txt"
"""File in the database's folder with the class names, one a line, label 0 first."""
LOG_EVERY = 1000
HDF5_ROWS = 64
"""Images that go to an HDF5 file together."""


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a Datum.

    Attributes:
        gray: one channel instead of three (BGR).
        encoded: store a compressed image instead of pixels, of the kind that ``encode_type`` or
            else the file's own name says.
        encode_type: ``png``, ``jpg`` ...; implies ``encoded``.
        resize_height: in pixels; 0, together with ``resize_width``, keeps the size.
        resize_width: in pixels.

    Raises:
        DataError: one size without the other, or a type that OpenCV cannot write.
    """

    gray: bool = False
    encoded: bool = False
    encode_type: str = ""
    resize_height: int = 0
    resize_width: int = 0

    def __post_init__(self) -> None:
        height, width = self.resize_height, self.resize_width
        if min(height, width) < 0 or (height == 0) != (width == 0):
            raise DataError(
                f"resize_height {height} and resize_width {width} make no size; "
                f"give both, positive, or neither"
            )
        if self.encode_type:
            _check_encode_type(self.encode_type)


def convert_images(
    root: str,
    entries: Sequence[Entry],
    database: StrPath,
    options: ImageOptions = ImageOptions(),
    *,
    backend: str = "lmdb",
    class_names: Sequence[str] = (),
    check_size: bool = False,
    strict: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Make a database of the images ``root + path`` of all entries.

    A record's key is the number of its entry, in eight digits, ``_`` and the path. Files that
    cannot be read, or are no images, are named in the log and skipped; their numbers are not
    used again. The database appears when all is done: an error or Ctrl-C leaves nothing behind.

    Args:
        root: put in front of every path as it is, so a folder ends with a slash.
        entries: from :func:`~protocaffe.data.entries.read_list` or
            :func:`~protocaffe.data.entries.scan_classes`.
        database: the folder to make.
        options: how images become datums.
        backend: ``lmdb`` or ``leveldb``.
        class_names: written to ``labels.txt`` in the database's folder if there are any.
        check_size: whether to refuse images of another size, or with another number of
            channels, than the first one.
        strict: whether to refuse files that cannot be read, instead of skipping them.
        force: whether to replace an existing database.
        threads: how many decode; one per core, four at most, unless told otherwise.
        progress: called now and then with the number of files done so far.

    Raises:
        DataError: the database exists already or cannot be written, no image could be read, an
            image could not with ``strict``, or sizes differ with ``check_size``.
    """

    def convert(path: str, label: int) -> _Record:
        datum = image_datum(read_image(path), path, label, options)
        shape = datum_array(parse_datum(datum)).shape if check_size else ()
        return _Record(datum, shape)

    reader = ImageReader(root, entries, convert, strict=strict, threads=threads)
    shape: tuple[int, ...] | None = None
    with create_database(database, backend, force=force) as writer:
        if class_names:
            writer.add_file(CLASS_NAMES, class_names_file(class_names))
        with closing(reader.results(progress)) as records:
            for number, entry, record in records:
                shape = shape or record.shape
                if record.shape != shape:
                    raise DataError(_other_shape(root, entry, record.shape, shape))
                writer.put(b"%08d_%b" % (number, os.fsencode(entry.path)), record.datum)
                if reader.conversion.written % LOG_EVERY == 0:
                    log.info("Processed %d files.", reader.conversion.written)
    if reader.conversion.written % LOG_EVERY:
        log.info("Processed %d files.", reader.conversion.written)
    return reader.conversion


def images_to_hdf5(
    root: str,
    entries: Sequence[Entry],
    writer: HDF5Writer,
    options: ImageOptions = ImageOptions(),
    param: caffe_pb2.TransformationParameter | None = None,
    *,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the images ``root + path`` of all entries, which must have one size, to HDF5 files.

    The data sets are ``data``, (rows, channels, height, width), and ``label``, (rows). Pixels are
    bytes, or floats where ``param`` changes them.

    Args:
        root: put in front of every path as it is, so a folder ends with a slash.
        entries: from :func:`~protocaffe.data.entries.read_list` or
            :func:`~protocaffe.data.entries.scan_classes`.
        writer: where to.
        options: how images are decoded.
        param: ``mean_file`` or ``mean_value`` are taken off, then ``scale`` multiplies.
        strict: whether to refuse files that cannot be read, instead of skipping them.
        threads: how many decode; one per core, four at most, unless told otherwise.
        progress: called now and then with the number of files done so far.

    Raises:
        DataError: no image could be read, an image could not with ``strict``, sizes differ, or
            the mean is of another size.
    """

    def load(path: str, label: int) -> Image:
        return planar(decoded(read_image(path), options))

    change = Transformer(param or caffe_pb2.TransformationParameter(), caffe_pb2.TEST)
    reader = ImageReader(root, entries, load, strict=strict, threads=threads)
    images: list[Image] = []
    labels: list[int] = []
    shape: tuple[int, ...] | None = None
    with closing(reader.results(progress)) as loaded:
        for _, entry, image in loaded:
            if shape is None:
                shape = change.output_shape(image.shape)
            if image.shape != shape:
                raise DataError(_other_shape(root, entry, image.shape, shape))
            images.append(image)
            labels.append(entry.label)
            if len(images) == HDF5_ROWS:
                _put_rows(writer, images, labels, change)
    if images:
        _put_rows(writer, images, labels, change)
    return reader.conversion


def _put_rows(
    writer: HDF5Writer, images: list[Image], labels: list[int], change: Transformer
) -> None:
    """Write images and labels, and empty the lists."""
    data: Array = np.stack(images)
    if change.mean is not None or change.scale != 1:
        mean = np.float32(0) if change.mean is None else change.mean
        data = (data - mean) * change.scale
    writer.put({"data": data, "label": np.array(labels, np.float32)})
    images.clear()
    labels.clear()


def image_datum(content: bytes, path: str, label: int, options: ImageOptions) -> bytes:
    """Return the serialised Datum of an image file, byte for byte Caffe's.

    Args:
        content: the file's bytes.
        path: its name; the ending matters for encoded datums.
        label: 0 to 2**31 - 1.
        options: what to make of it.

    Raises:
        ImageError: the bytes are no image.
        DataError: the datum shall be encoded, but the name does not say how.
    """
    image = decoded(content, options)
    if options.encoded or options.encode_type:
        data = _encoded(image, content, path, options)
        encoded = caffe_pb2.Datum(data=data, label=label, encoded=True)
        return encoded.SerializeToString()
    planes = planar(image)
    channels, height, width = planes.shape
    datum = caffe_pb2.Datum(
        channels=channels,
        height=height,
        width=width,
        data=planes.tobytes(),
        label=label,
        encoded=False,
    )
    return datum.SerializeToString()


def decoded(content: bytes, options: ImageOptions) -> Image:
    """Return the pixels of an image file, resized, (height, width) or (height, width, 3).

    Raises:
        ImageError: the bytes are no image.
    """
    image = decode_image(content, color=not options.gray)
    if image is None:
        raise ImageError("is no image, or a damaged one")
    if options.resize_height:
        image = resize_image(image, options.resize_height, options.resize_width)
    return image


def class_names_file(names: Sequence[str]) -> bytes:
    """Return the content of ``labels.txt``."""
    return os.fsencode("".join(f"{name}\n" for name in names))


class _Record(NamedTuple):
    """A serialised Datum and the shape of its image; () where nobody asks for it."""

    datum: bytes
    shape: tuple[int, ...]


def _other_shape(root: str, entry: Entry, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"{place(entry)}image '{root + entry.path}' is {sizes(shape)}, those before it "
        f"{sizes(expected)} (channels x height x width); give a size to resize to, which also "
        f"makes the channels the same"
    )


def _encoded(image: Image, content: bytes, path: str, options: ImageOptions) -> bytes:
    import cv2

    suffix = os.path.splitext(path)[1].lower()[1:]
    kind = options.encode_type or suffix
    if not kind:
        raise DataError(f"'{path}' has no ending that says how to encode it; give encode_type")
    has_color = image.ndim == 3
    if (
        not options.resize_height
        and (suffix == kind or (suffix, kind) == ("jpeg", "jpg"))
        and has_color != options.gray
    ):
        return content
    try:
        done, buffer = cv2.imencode(f".{kind}", image)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"OpenCV cannot write '{path}' as {kind}; give another encode_type")
    return buffer.tobytes()


def _check_encode_type(kind: str) -> None:
    import cv2

    if not cv2.haveImageWriter(f"x.{kind}"):
        raise DataError(f"OpenCV cannot write images of type '{kind}'; try png or jpg")
