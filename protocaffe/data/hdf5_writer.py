"""HDF5 files for HDF5Data layers, with the list file that names them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from protocaffe.data.aside import FolderAside
from protocaffe.data.datum import Array
from protocaffe.errors import DataError
from protocaffe.proto.files import StrPath
from protocaffe.proto.hdf5 import create_hdf5, reserve

LIST = "list.txt"
"""File in the folder that names the others; the ``source`` of an HDF5Data layer."""
MAX_FILE = 2**31 - 1
"""Bytes that the rows of a file take at most as floats. HDF5Data holds a file in memory, and
Caffe's blobs cannot be larger."""
FLOAT_BYTES = 4
CHUNK_BYTES = 1 << 18
"""What HDF5 stores and reads at a time, about."""


class HDF5Writer:
    """A new folder of HDF5 files, ``part_000.h5`` and so on, and ``list.txt``.

    Use it in a ``with`` statement: the folder appears when the block ends, whole, or not at all.
    The paths in the list begin with ``path`` as it is given here, since HDF5Data looks for them
    from where the program runs.

    Args:
        path: the folder to make.
        force: whether to replace what is there already.
        file_size: how many bytes the rows of one file take at most, counted as floats.

    Attributes:
        rows: how many were written.
        files: how many files there are.

    Raises:
        DataError: there is something at ``path`` already, its name has white space in it, or the
            folder cannot be made.
    """

    def __init__(self, path: StrPath, *, force: bool = False, file_size: int = MAX_FILE) -> None:
        if len(os.fspath(path).split()) != 1:
            raise DataError(
                f"'{os.fspath(path)}' has white space in it, where HDF5Data splits the list of "
                f"files; choose another name"
            )
        self._file_size = file_size
        self._file: Any = None
        self._opened = ExitStack()
        self._room = 0
        self.rows = 0
        self.files = 0
        self._aside = FolderAside(path, force=force, marks=[LIST])

    def __enter__(self) -> HDF5Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                with self._plain_errors():
                    self._close()
                self._write_list()
            elif self._file is not None:
                with suppress(OSError, RuntimeError):  # why it is given up is known already
                    self._opened.close()
        except BaseException:
            self._aside.discard()
            raise
        self._aside.__exit__(kind, *rest)

    def put(self, rows: dict[str, Array]) -> None:
        """Add rows.

        Args:
            rows: by data set, values of shape (rows, ...); the same data sets, with rows of the
                same shape, each time.

        Raises:
            DataError: they cannot be written.
        """
        count = len(next(iter(rows.values())))
        done = 0
        with self._plain_errors():
            while done < count:
                if not self._room:
                    self._open_next(rows)
                end = min(done + self._room, count)
                reserve(self._file, sum(values[done:end].nbytes for values in rows.values()))
                for name, values in rows.items():
                    data = self._file[name]
                    data.resize(len(data) + end - done, axis=0)
                    data[len(data) - (end - done) :] = values[done:end]
                self._room -= end - done
                done = end
        self.rows += count

    def add_file(self, name: str, content: bytes) -> None:
        """Put a file of that name beside the others."""
        self._aside.add_file(name, content)

    def _open_next(self, rows: dict[str, Array]) -> None:
        self._close()
        path = os.path.join(self._aside.folder, self._name(self.files))
        self._file = self._opened.enter_context(create_hdf5(path))
        self.files += 1
        self._room = rows_per_file([values.shape[1:] for values in rows.values()], self._file_size)
        for name, values in rows.items():
            shape = values.shape[1:]
            row_bytes = max(1, math.prod(shape) * values.dtype.itemsize)
            chunk = min(max(1, CHUNK_BYTES // row_bytes), self._room)
            self._file.create_dataset(
                name, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
            )

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            name = file.filename
            self._opened.close()
            with open(name, "rb") as written:
                os.fsync(written.fileno())

    def _write_list(self) -> None:
        names = [os.path.join(self._aside.path, self._name(i)) for i in range(self.files)]
        self.add_file(LIST, os.fsencode("".join(f"{name}\n" for name in names)))

    def _name(self, number: int) -> str:
        return f"part_{number:03}.h5"

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py has both for failures to write
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else error
            raise DataError(f"'{self._aside.path}' cannot be written: {reason}") from None


def rows_per_file(shapes: list[tuple[int, ...]], size: int) -> int:
    """Return how many rows fit into ``size`` bytes as floats, at least one.

    Args:
        shapes: of one row in each data set.
        size: in bytes.
    """
    row = sum(math.prod(shape) for shape in shapes) * FLOAT_BYTES
    return max(1, size // max(1, row))
