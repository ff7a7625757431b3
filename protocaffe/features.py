"""Values of a net's blobs, stored in databases or HDF5 files: what ``extract_features`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from protocaffe.blob import Blob
from protocaffe.data.writer import DatabaseWriter, create_database
from protocaffe.errors import DataError, UsageError, did_you_mean
from protocaffe.log import log
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath, replacing
from protocaffe.proto.hdf5 import create_hdf5, reserve

LOG_EVERY = 1000
BACKENDS = ("lmdb", "leveldb", "hdf5")


def extract_features(
    net: Net,
    blobs: Sequence[str],
    databases: Sequence[StrPath],
    num_batches: int,
    *,
    backend: str = "lmdb",
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run a net forward and store what its blobs hold, image by image.

    In databases keys are counters of ten digits, values Datums with ``float_data`` and without
    label. In HDF5 files a blob is a data set of its name, with one row per image. All appear when
    all is done: an error or Ctrl-C leaves nothing behind.

    Args:
        net: mostly of phase TEST, with a data layer.
        blobs: names of blobs; for databases of up to four axes, (num, channels, height, width),
            of which those that a blob lacks are 1.
        databases: the databases to make, one per blob; for HDF5 either one file per blob, or one
            for all of them.
        num_batches: how often to run forward.
        backend: ``lmdb``, ``leveldb`` or ``hdf5``.
        force: whether to replace what exists.
        progress: called with the number of batches done so far.

    Raises:
        UsageError: the net has no such blob, or the databases do not fit the blobs.
        DataError: a database exists already or cannot be written.
        FileError: an HDF5 file cannot be written.
    """
    _check(net, blobs, databases, backend)
    counts = [0] * len(blobs)
    with ExitStack() as stack:
        stores = _open_stores(stack, blobs, databases, backend, force)
        log.info("Extracting Features")
        for batch in range(1, num_batches + 1):
            net.run_forward()
            for i, (name, store) in enumerate(zip(blobs, stores, strict=True)):
                blob = net.blobs[name]
                store.add(blob)
                before, counts[i] = counts[i], counts[i] + blob.num
                for full in range(before // LOG_EVERY + 1, counts[i] // LOG_EVERY + 1):
                    _log_count(full * LOG_EVERY, name)
            if progress:
                progress(batch)
    for name, count in zip(blobs, counts, strict=True):
        if count % LOG_EVERY:
            _log_count(count, name)
    log.info("Successfully extracted the features!")


class _Store(Protocol):
    """Where the values of one blob go."""

    def add(self, blob: Blob) -> None:
        """Append the images of a batch."""


class _Records:
    """Records of a database."""

    def __init__(self, writer: DatabaseWriter) -> None:
        self._writer = writer
        self._count = 0

    def add(self, blob: Blob) -> None:
        for value in _datums(blob):
            self._writer.put(b"%010d" % self._count, value)
            self._count += 1


class _Rows:
    """Rows of a data set in an HDF5 file."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name

    def add(self, blob: Blob) -> None:
        values = np.asarray(blob.data, np.float32)
        row = values.shape[1:]
        reserve(self._file, values.nbytes)
        if self._name not in self._file:
            self._file.create_dataset(self._name, (0, *row), np.float32, maxshape=(None, *row))
        rows = self._file[self._name]
        rows.resize(len(rows) + len(values), axis=0)
        rows[len(rows) - len(values) :] = values


def _open_stores(
    stack: ExitStack,
    blobs: Sequence[str],
    databases: Sequence[StrPath],
    backend: str,
    force: bool,
) -> list[_Store]:
    if backend != "hdf5":
        return [
            _Records(stack.enter_context(create_database(path, backend, force=force)))
            for path in databases
        ]
    for path in databases:
        if os.path.lexists(path) and not force:
            raise DataError(
                f"'{path}' exists already; remove it, choose another name, or overwrite it with "
                f"force (--force on the command line)"
            )
    names = stack.enter_context(replacing(*databases))
    files = [stack.enter_context(create_hdf5(name)) for name in names]
    if len(files) < len(blobs):
        files *= len(blobs)
    return [_Rows(file, name) for file, name in zip(files, blobs, strict=True)]


def _check(net: Net, blobs: Sequence[str], databases: Sequence[StrPath], backend: str) -> None:
    all_in_one = backend == "hdf5" and len(databases) == 1
    distinct = len({str(path) for path in databases}) == len(databases)
    if not all_in_one and (len(blobs) != len(databases) or not distinct):
        raise UsageError(
            f"every blob needs a database of its own (or all of them one HDF5 file); got "
            f"{len(blobs)} blob(s) and {', '.join(map(str, databases))}"
        )
    for name in blobs:
        if name not in net.blobs:
            raise UsageError(
                f"the net has no blob '{name}'{did_you_mean(name, net.blobs)} "
                f"(it has: {', '.join(net.blobs)})"
            )
        most = 4 if backend != "hdf5" else np.inf
        if not 1 <= net.blobs[name].num_axes <= most:
            raise UsageError(
                f"blob '{name}' has shape {net.blobs[name].shape}; only blobs of one to four axes "
                f"can be stored, in HDF5 files of any but none"
            )


def _datums(blob: Blob) -> list[bytes]:
    """Return one serialised datum per image."""
    rows = np.asarray(blob.data, np.float32).reshape(blob.num, -1).tolist()
    return [
        caffe_pb2.Datum(
            channels=blob.channels, height=blob.height, width=blob.width, float_data=row
        ).SerializeToString()
        for row in rows
    ]


def _log_count(count: int, name: str) -> None:
    log.info("Extracted features of %d query images for feature blob %s", count, name)
