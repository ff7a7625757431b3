"""Image files to a database of Datums: what ``convert_imageset`` does."""

from __future__ import annotations

import os
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

from protocaffe.data.datum import Image, decode_image, planar, resize_image
from protocaffe.data.prefetch import default_threads
from protocaffe.data.writer import create_database
from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2

CLASS_NAMES = "labels.txt"
"""File in the database's folder with the class names, one a line, label 0 first."""
IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""What counts as an image in a folder of class folders."""
CHUNK = 16
"""Images per piece of work for a thread; few, as large ones take much memory."""
LOG_EVERY = 1000
MAX_LABEL = 2**31 - 1

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int], None]
"""Called now and then with the number of files done so far."""


class Entry(NamedTuple):
    """A line of a list file: the path, to be put after the root, and the label."""

    path: str
    label: int


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


@dataclass
class Conversion:
    """What came of a conversion: how many images were written and which files were not."""

    written: int
    skipped: list[str]


def read_list(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a list file: ``path label`` per line, split at the last space.

    Raises:
        DataError: the file cannot be read, is empty, or has a bad line (named with its number).
    """
    return [entry for _, entry in read_numbered_list(path)]


def read_numbered_list(
    path: str | os.PathLike[str], least_label: int = 0
) -> list[tuple[int, Entry]]:
    """Read a list file as :func:`read_list` does, with the number of each entry's line.

    Raises:
        DataError: see :func:`read_list`.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise DataError(f"list file '{os.fspath(path)}': {error.strerror}") from error
    entries = [
        (number, _entry(line, f"{os.fspath(path)}:{number}", least_label))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not entries:
        raise DataError(f"list file '{os.fspath(path)}' is empty; expected lines of 'path label'")
    return entries


def scan_classes(root: str | os.PathLike[str]) -> tuple[list[Entry], list[str]]:
    """List the images of a folder that holds one folder per class.

    Returns:
        The entries, in the order of classes and then of paths, and the class names: the sorted
        names of the folders, whose places are the labels.

    Raises:
        DataError: there is no such folder, or no image in any folder inside it.
    """
    try:
        with os.scandir(root) as found:
            names = sorted(each.name for each in found if each.is_dir() and each.name[0] != ".")
    except OSError as error:
        raise DataError(f"folder of images '{os.fspath(root)}': {error.strerror}") from error
    entries = [
        Entry(path, label) for label, name in enumerate(names) for path in _images_in(root, name)
    ]
    if not entries:
        raise DataError(
            f"'{os.fspath(root)}' has no images in folders of its own; expected one folder per "
            f"class, as in '{os.path.join(root, 'cat', '1.jpg')}', or a list file"
        )
    return entries, names


def shuffled(entries: Sequence[Entry], seed: int | None = None) -> list[Entry]:
    """Return the entries in random order, the same each time for one seed."""
    result = list(entries)
    random.Random(seed).shuffle(result)
    return result


def image_datum(content: bytes, path: str, label: int, options: ImageOptions) -> bytes | None:
    """Return the serialised Datum of an image file, byte for byte Caffe's.

    Args:
        content: the file's bytes.
        path: its name; the ending matters for encoded datums.
        label: 0 to 2**31 - 1.
        options: what to make of it.

    Returns:
        None if the bytes are no image.

    Raises:
        DataError: the datum shall be encoded, but the name does not say how.
    """
    image = decode_image(content, color=not options.gray)
    if image is None:
        return None
    if options.resize_height:
        image = resize_image(image, options.resize_height, options.resize_width)
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


def convert_images(
    root: str,
    entries: Sequence[Entry],
    database: str | os.PathLike[str],
    options: ImageOptions = ImageOptions(),
    *,
    backend: str = "lmdb",
    class_names: Sequence[str] = (),
    check_size: bool = False,
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
        entries: from :func:`read_list` or :func:`scan_classes`.
        database: the folder to make.
        options: how images become datums.
        backend: ``lmdb`` or ``leveldb``.
        class_names: written to ``labels.txt`` in the database's folder if there are any.
        check_size: whether to refuse images whose data is not as long as the first one's.
        force: whether to replace an existing database.
        threads: how many decode; one per core, four at most, unless told otherwise.
        progress: called now and then with the number of files done so far.

    Raises:
        DataError: the database exists already or cannot be written, no image could be read, or
            sizes differ with ``check_size``.
    """
    if not entries:
        raise DataError("there are no images to make a database of")
    result = Conversion(0, [])
    size: int | None = None
    with create_database(database, backend, force=force) as writer:
        if class_names:
            text = "".join(f"{name}\n" for name in class_names)
            writer.add_file(CLASS_NAMES, os.fsencode(text))
        datums = _datums(root, entries, options, threads, progress)
        for number, (entry, datum) in enumerate(zip(entries, datums, strict=True)):
            file = root + entry.path
            if datum is None:
                log.error("Could not open or find file %s", file)
                result.skipped.append(file)
                continue
            if check_size:
                size = _checked_size(datum, size, file)
            writer.put(b"%08d_%b" % (number, os.fsencode(entry.path)), datum)
            result.written += 1
            if result.written % LOG_EVERY == 0:
                log.info("Processed %d files.", result.written)
        if not result.written:
            raise DataError(_nothing_readable(root, entries))
    if result.written % LOG_EVERY:
        log.info("Processed %d files.", result.written)
    return result


def _entry(line: str, where: str, least_label: int) -> Entry:
    path, space, text = line.strip().rpartition(" ")
    if not space:
        raise DataError(f"{where}: expected 'path label' with a space between, got '{line}'")
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise DataError(f"{where}: label '{text}' is no whole number")
    label = int(text)
    if not least_label <= label <= MAX_LABEL:
        raise DataError(
            f"{where}: label {label} is out of range; legal are {least_label} to {MAX_LABEL}"
        )
    return Entry(path, label)


def _images_in(root: str | os.PathLike[str], name: str) -> list[str]:
    """Return the images anywhere under the folder, as sorted paths relative to the root."""
    paths = []
    for folder, _, files in os.walk(os.path.join(root, name)):
        relative = os.path.relpath(folder, root)
        paths += [
            os.path.join(relative, file)
            for file in files
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and file[0] != "."
        ]
    return sorted(paths)


def _datums(
    root: str,
    entries: Sequence[Entry],
    options: ImageOptions,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[bytes | None]:
    """Yield every entry's serialised Datum in order, None for files that cannot be read."""

    def convert(chunk: Sequence[Entry]) -> list[bytes | None]:
        return [_file_datum(root + entry.path, entry.label, options) for entry in chunk]

    chunks = [entries[i : i + CHUNK] for i in range(0, len(entries), CHUNK)]
    done = 0
    for datums in _ordered_map(convert, chunks, threads):
        yield from datums
        done += len(datums)
        if progress:
            progress(done)


def _file_datum(path: str, label: int, options: ImageOptions) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except OSError:
        return None
    return image_datum(content, path, label, options)


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


def _checked_size(datum: bytes, expected: int | None, path: str) -> int:
    size = len(caffe_pb2.Datum.FromString(datum).data)
    if expected is not None and size != expected:
        raise DataError(
            f"'{path}' gives {size} bytes of data, the images before it {expected}; "
            f"give a size to resize to, or do not ask for equal sizes"
        )
    return size


def _nothing_readable(root: str, entries: Sequence[Entry]) -> str:
    message = f"none of the {len(entries)} files could be read, such as '{root + entries[0].path}'"
    if root and not root.endswith("/") and os.path.isdir(root):
        message += f"; the root '{root}' is put in front as it is: end it with a slash"
    return message


def _ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int | None
) -> Iterator[R]:
    """Yield the results in order, computed by threads that run only a little ahead."""
    threads = threads or default_threads()
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            while True:
                ahead = threads + 1 - len(waiting)
                waiting += [pool.submit(function, item) for item in islice(left, ahead)]
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
