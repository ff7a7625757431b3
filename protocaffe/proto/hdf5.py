"""HDF5 files opened with errors in plain words."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocaffe.errors import FileError
from protocaffe.proto.files import StrPath, missing_file


def open_hdf5(path: StrPath) -> Any:
    """Open an HDF5 file for reading; return an ``h5py.File`` to be used in a with block.

    Raises:
        FileError: the file is missing (the nearest name is offered), damaged or no HDF5 file.
    """
    import h5py

    if not Path(path).exists():
        raise missing_file(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FileError(f"{path}: cannot be read as an HDF5 file: {error}") from None


@contextmanager
def plain_errors(path: StrPath) -> Iterator[None]:
    """Turn what h5py raises over a damaged file into an error that names the file.

    Raises:
        FileError: instead of any of them.
    """
    try:
        yield
    except DAMAGE as error:
        raise FileError(f"{path}: the HDF5 file is damaged: {error}") from None


DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)


def check_size(dataset: Any, path: StrPath) -> None:
    """Refuse a data set that claims to be larger than its file can make it.

    Raises:
        FileError: it does; reading it might take all memory there is.
    """
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size > DEFLATE * os.path.getsize(path):
        raise FileError(
            f"{path}: data set '{dataset.name}' has shape {dataset.shape}, which the file is too "
            f"small for; it is damaged, or was never written to"
        )


DEFLATE = 1100
"""No compressed data become longer than this many times their size."""


@contextmanager
def create_hdf5(path: StrPath) -> Iterator[Any]:
    """Make an HDF5 file, as an ``h5py.File`` for the with block, which asks for room first.

    Raises:
        OSError: the file cannot be written.
    """
    import h5py

    try:
        with h5py.File(path, "w") as file:
            reserve(file, 0)
            yield file
            file.flush()
            size = file.id.get_filesize()
        if os.path.getsize(path) > size:
            os.truncate(path, size)
    except RuntimeError as error:  # how h5py puts some failures to write
        raise OSError(str(error)) from None


def reserve(file: Any, size: int) -> None:
    """Make sure that so many more bytes can be written: HDF5 may crash where a write fails.

    Args:
        file: from :func:`create_hdf5`.
        size: in bytes, of values; what HDF5 writes besides is thought of.

    Raises:
        OSError: the disk, a quota or a limit of the process does not allow it.
    """
    handle = file.id.get_vfd_handle()
    there = os.fstat(handle).st_size
    missing = file.id.get_filesize() + size + SPARE - there
    if missing <= 0:
        return
    try:
        os.posix_fallocate(handle, there, missing)
    except OSError as error:
        if error.errno not in NO_ANSWER:
            raise OSError(error.errno, error.strerror, file.filename) from None


SPARE = 1 << 22
"""Bytes that a file takes besides its values, at most."""
NO_ANSWER = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ESPIPE, errno.ENOSYS)
"""What files say for which nothing can be reserved."""
