"""HDF5 files opened with errors in plain words."""

from __future__ import annotations

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
def create_hdf5(path: StrPath) -> Iterator[Any]:
    """Make an HDF5 file, as an ``h5py.File`` for the with block.

    Raises:
        OSError: the file cannot be written.
    """
    import h5py

    try:
        with h5py.File(path, "w") as file:
            yield file
    except RuntimeError as error:  # how h5py puts some failures to write
        raise OSError(str(error)) from None
