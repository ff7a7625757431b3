"""MNIST and CIFAR-10 in their original binary files, to databases of Datums."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from protocaffe.data.convert import CLASS_NAMES, class_names_file
from protocaffe.data.datum import Image
from protocaffe.data.writer import DatabaseWriter, create_database
from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath, read_bytes

IDX_LABELS, IDX_IMAGES = 2049, 2051
"""Magic numbers of idx files: bytes (8) in one dimension (1), and in three (3)."""
GZIP_MAGIC = b"\x1f\x8b"

CIFAR_SHAPE = 3, 32, 32
CIFAR_ROW = 1 + 3 * 32 * 32
CIFAR_CLASSES = 10
CIFAR_TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
CIFAR_TEST = "test_batch.bin"
CIFAR_NAMES = "batches.meta.txt"

REPORT_EVERY = 1000

Progress = Callable[[int], None]


def convert_mnist(
    images: StrPath,
    labels: StrPath,
    database: StrPath,
    *,
    backend: str = "lmdb",
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Make a database of a pair of idx files, as MNIST comes in.

    Keys are counters of eight digits, as from Caffe.

    Args:
        images: such as ``train-images-idx3-ubyte``, as it is or compressed by gzip.
        labels: such as ``train-labels-idx1-ubyte``, likewise.
        database: the folder to make.
        backend: ``lmdb`` or ``leveldb``.
        force: whether to replace an existing database.
        progress: called now and then with the number of images done so far.

    Returns:
        The number of images.

    Raises:
        FileError: a file is missing or cannot be read.
        DataError: a file is of another kind or damaged, the two do not belong together, or the
            database exists already or cannot be written.
    """
    pixels = read_idx(images, IDX_IMAGES)
    numbers = read_idx(labels, IDX_LABELS)
    count: int = len(pixels)
    rows, columns = pixels.shape[1:]
    if count != len(numbers):
        raise DataError(
            f"{images}: has {count} images, but {labels} has {len(numbers)} labels; "
            f"they are not of one set"
        )
    log.info("A total of %d items.", count)
    log.info("Rows: %d Cols: %d", rows, columns)
    with create_database(database, backend, force=force) as writer:
        for done in _put(writer, pixels[:, None], numbers, digits=8):
            if progress:
                progress(done)
    log.info("Processed %d files.", count)
    return count


def read_idx(path: StrPath, magic: int) -> Image:
    """Read an idx file of bytes.

    Args:
        path: of the file, as it is or compressed by gzip.
        magic: ``IDX_IMAGES`` or ``IDX_LABELS``.

    Returns:
        The values, (images, rows, columns) or (labels).

    Raises:
        FileError: the file is missing or cannot be read.
        DataError: it is of another kind, or its size is not what its header says.
    """
    content = _unzipped(path)
    found = int.from_bytes(content[:4], "big")
    if found != magic or len(content) < 4:
        kinds = {IDX_IMAGES: "images", IDX_LABELS: "labels"}
        swapped = "; are the two files in each other's place?" if found in kinds else ""
        raise DataError(
            f"{path}: expected an idx file of {kinds[magic]}, which begins with {magic}, "
            f"got {found}{swapped}"
        )
    axes = magic & 0xFF
    start = 4 + 4 * axes
    shape = [int(each) for each in np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4")]
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(
            f"{path}: has {len(content)} bytes, but its header says {expected}; it is damaged"
        )
    if not min(shape):
        raise DataError(f"{path}: has nothing in it, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def convert_cifar(
    source: StrPath,
    out: StrPath,
    *,
    backend: str = "lmdb",
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Make the databases ``cifar10_train_BACKEND`` and ``cifar10_test_BACKEND``.

    Keys are counters of five digits and channels are in the files' order, red, green, blue, as
    from Caffe; images that ``convert_imageset`` converts have blue first. The class names of
    ``batches.meta.txt``, if it is there, go to ``labels.txt`` in the databases' folders.

    Args:
        source: the folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and
            ``test_batch.bin``.
        out: the folder to make the databases in.
        backend: ``lmdb`` or ``leveldb``.
        force: whether to replace existing databases.
        progress: called now and then with the number of images done so far.

    Returns:
        The numbers of images to train and to test with.

    Raises:
        FileError: a file is missing or cannot be read.
        DataError: a file is damaged or of another kind, or a database exists already or cannot
            be written.
    """
    parts = {"train": _read_cifar(source, CIFAR_TRAIN), "test": _read_cifar(source, [CIFAR_TEST])}
    names = _cifar_names(source)
    before = 0
    with ExitStack() as stack:
        writers = {
            part: stack.enter_context(
                create_database(Path(out, f"cifar10_{part}_{backend}"), backend, force=force)
            )
            for part in parts
        }
        for part, (images, labels) in parts.items():
            log.info("Writing %sing data", part.capitalize())
            if names:
                writers[part].add_file(CLASS_NAMES, class_names_file(names))
            for done in _put(writers[part], images, labels, digits=5):
                if progress:
                    progress(before + done)
            before += len(labels)
    return len(parts["train"][1]), len(parts["test"][1])


def _unzipped(path: StrPath) -> bytes:
    content = read_bytes(path)
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from None


def _put(writer: DatabaseWriter, images: Image, labels: Image, digits: int) -> Iterator[int]:
    """Write images, (num, channels, height, width); yield now and then how many are done."""
    _, channels, height, width = images.shape
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        datum = caffe_pb2.Datum(
            channels=channels, height=height, width=width, data=image.tobytes(), label=label
        )
        writer.put(b"%0*d" % (digits, number), datum.SerializeToString())
        if (number + 1) % REPORT_EVERY == 0:
            yield number + 1
    yield len(images)


def _read_cifar(source: StrPath, names: list[str]) -> tuple[Image, Image]:
    """Return the images, (num, 3, 32, 32), and the labels of some files together."""
    rows = np.concatenate([_read_batch(source, name) for name in names])
    return rows[:, 1:].reshape(-1, *CIFAR_SHAPE), rows[:, 0]


def _read_batch(source: StrPath, name: str) -> Image:
    """Return the rows of a file: a label, then the pixels."""
    path = Path(source, name)
    if path.parent.is_dir() and not path.exists() and path.with_suffix("").exists():
        raise DataError(
            f"{source}: has no {name}; this is CIFAR-10 for Python, but expected is its binary "
            f"version, cifar-10-binary.tar.gz"
        )
    content = read_bytes(path)
    if not content or len(content) % CIFAR_ROW:
        raise DataError(
            f"{path}: has {len(content)} bytes, no multiple of {CIFAR_ROW} (a label and 3 x 32 x "
            f"32 pixels); it is damaged, or no file of CIFAR-10"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_ROW)
    bad = np.flatnonzero(rows[:, 0] >= CIFAR_CLASSES)
    if bad.size:
        raise DataError(
            f"{path}: image {bad[0]} has the label {rows[bad[0], 0]}; legal are 0 to "
            f"{CIFAR_CLASSES - 1}, so this is no file of CIFAR-10"
        )
    return rows


def _cifar_names(source: StrPath) -> list[str]:
    path = Path(source, CIFAR_NAMES)
    if not path.exists():
        return []
    return os.fsdecode(read_bytes(path)).split()
