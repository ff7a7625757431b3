"""Rows of HDF5 data sets that are spread over several files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.errors import DataError, FileError, did_you_mean
from protocaffe.proto.files import StrPath, missing_file, replacing
from protocaffe.proto.hdf5 import check_size, create_hdf5, open_hdf5, plain_errors, reserve
from protocaffe.proto.text import read_text

Array = npt.NDArray[Any]


class HDF5Rows:
    """An endless stream of rows: all files in turn, row by row, again and again.

    A row takes one entry along the first axis of every data set. The file that is being read is
    held in memory whole.

    Args:
        source: a text file with the names of the HDF5 files, separated by white space.
        names: the data sets; every file must have them all, equally long.
        shuffle: whether each round goes through the files, and through the rows of each file,
            in a new random order.
        seed: of those orders.

    Attributes:
        row_shapes: per data set, the shape of one row.
        seed: see above; a new one holds from the next row on.

    Raises:
        FileError: the list or one of its files is missing or cannot be read.
        DataError: a file lacks a data set, or its data sets do not fit together.
    """

    def __init__(
        self, source: StrPath, names: Sequence[str], *, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.names = list(names)
        self._shuffle = shuffle
        self.seed = seed
        self._paths = read_list(source)
        shapes = [self._shapes(path) for path in self._paths]
        self.row_shapes = [shape[1:] for shape in shapes[0]]
        for path, found in zip(self._paths, shapes, strict=True):
            for name, shape, expected in zip(self.names, found, self.row_shapes, strict=True):
                if shape[1:] != expected:
                    raise DataError(
                        f"{path}: rows of data set '{name}' have shape {shape[1:]}, but "
                        f"{expected} in '{self._paths[0]}'; all files must have the same"
                    )
        self._lengths = np.array([found[0][0] for found in shapes])
        self._round: tuple[int, int] | None = None
        self._loaded = -1
        self._values: list[Array] = []

    def __len__(self) -> int:
        """The number of rows in all files together."""
        return int(self._lengths.sum())

    def read(self, position: int, out: Sequence[Array]) -> None:
        """Fill arrays with the rows that follow the first ``position`` rows of the stream.

        Args:
            position: where to begin, from 0.
            out: one array per data set, (rows, *row shape), all with the same number of rows.
        """
        done, wanted = 0, len(out[0])
        while done < wanted:
            rows = self._rows_from(position + done)[: wanted - done]
            for array, values in zip(out, self._values, strict=True):
                array[done : done + len(rows)] = values[rows]
            done += len(rows)

    def _rows_from(self, position: int) -> Array:
        """Load the file that has the row at a position; return the order from there to its end."""
        number, left = divmod(position, len(self))
        if (self.seed, number) != self._round:
            self._start_round(number)
        ends = np.cumsum(self._lengths[self._files])
        place = int(np.searchsorted(ends, left, side="right"))
        file = int(self._files[place])
        self._load(file)
        start = left - (int(ends[place - 1]) if place else 0)
        return self._orders[file][start:]

    def _start_round(self, number: int) -> None:
        """Choose the orders of a round; they follow from the seed and its number alone."""
        self._round = (self.seed, number)
        self._files = np.arange(len(self._paths))
        self._orders = [np.arange(length) for length in self._lengths]
        if self._shuffle:
            rng = np.random.default_rng((self.seed, number))
            for order in (self._files, *self._orders):
                rng.shuffle(order)

    def _load(self, file: int) -> None:
        if file == self._loaded:
            return
        path = self._paths[file]
        self._values = []  # never two files in memory
        self._loaded = -1
        with open_hdf5(path) as content, plain_errors(path):
            for name, shape in zip(self.names, self.row_shapes, strict=True):
                values = np.asarray(content[name][...], np.float32)
                if values.shape != (self._lengths[file], *shape):
                    raise DataError(f"{path}: data set '{name}' changed while it was in use")
                self._values.append(values)
        self._loaded = file

    def _shapes(self, path: Path) -> list[tuple[int, ...]]:
        """Return the shapes of a file's data sets, checked."""
        with open_hdf5(path) as content, plain_errors(path):
            shapes = [_shape(content, name, path) for name in self.names]
        for name, shape in zip(self.names, shapes, strict=True):
            if shape[0] != shapes[0][0]:
                raise DataError(
                    f"{path}: data set '{name}' has {shape[0]} rows, but '{self.names[0]}' "
                    f"{shapes[0][0]}; they must have equally many"
                )
        if not shapes[0][0]:
            raise DataError(f"{path}: data set '{self.names[0]}' has no rows")
        return shapes


def read_list(source: StrPath) -> list[Path]:
    """Return the file names of a list file.

    Raises:
        FileError: it is missing or no text.
        DataError: it is empty, or names a file that is not there; the message has the line.
    """
    lines = enumerate(read_text(source).splitlines(), 1)
    named = [(number, Path(name)) for number, line in lines for name in line.split()]
    if not named:
        raise DataError(f"{source}: expected the names of HDF5 files, got an empty file")
    for number, path in named:
        if not path.exists():
            raise DataError(f"{source}:{number}: {missing_file(path)}")
    return [path for _, path in named]


def prepare_file(path: StrPath) -> None:
    """Make an empty HDF5 file unless there is a file; refuse a place where none can be written.

    Raises:
        FileError: it is one.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isfile(path):
        write_rows(path, {})
    elif not os.access(folder, os.W_OK):
        raise FileError(f"{os.fspath(path)}: cannot be written: folder '{folder}' is read-only")


def write_rows(path: StrPath, arrays: dict[str, Array]) -> None:
    """Make an HDF5 file with these data sets, all or nothing, in the place of what was there.

    Raises:
        FileError: it cannot be written.
    """
    with replacing(path) as (temporary,), create_hdf5(temporary) as file:
        reserve(file, sum(array.nbytes for array in arrays.values()))
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def _shape(content: Any, name: str, path: Path) -> tuple[int, ...]:
    import h5py

    found = content.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DataError(
            f"{path}: has no data set '{name}'{did_you_mean(name, content)} "
            f"(it has: {', '.join(content) or 'none'}); "
            f"the tops of the layer name the data sets"
        )
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path}: data set '{name}' has no floats or integers in it")
    if not found.shape:
        raise DataError(f"{path}: data set '{name}' is a single value; expected rows")
    check_size(found, path)
    return tuple(found.shape)
