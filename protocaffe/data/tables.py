"""Tables and arrays, from CSV and NumPy files, as the data sets of HDF5Data layers."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from protocaffe.data.datum import Array
from protocaffe.data.hdf5_writer import HDF5Writer
from protocaffe.errors import DataError, did_you_mean
from protocaffe.proto.files import StrPath, missing_file, read_bytes

CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
ARRAY_SUFFIXES = (".npy", ".npz")
ZIP_MAGIC = b"PK"
ROWS = 1024
"""Rows that are written together."""


def read_csv(path: StrPath, labels: Sequence[str] = (), delimiter: str = "") -> dict[str, Array]:
    """Read a table of numbers.

    The first line is a header if not all that stands in it are numbers.

    Args:
        path: the file.
        labels: the columns that make the data set ``label``: names of the header, or numbers
            from 0, -1 being the last. Without any it is the column ``label``, or else the last.
        delimiter: what stands between the columns; by default a comma, in .tsv files a tab.

    Returns:
        ``data``, float32 of shape (rows, columns), and ``label``, (rows), or (rows, labels) for
        several columns.

    Raises:
        FileError: the file is missing or cannot be read.
        DataError: it has a bad line (named with its number), no such column, or no rows.
    """
    text = os.fsdecode(read_bytes(path)).removeprefix("\ufeff")
    delimiter = delimiter or CSV_DELIMITERS.get(Path(path).suffix.lower(), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header: list[str] = []
    rows: list[Array] = []
    for cells in reader:
        if not any(cells):
            continue
        if not header and not rows and not all(_is_number(cell) for cell in cells):
            header = [cell.strip() for cell in cells]
            continue
        width = len(header) or (len(rows[0]) if rows else len(cells))
        where = f"{os.fspath(path)}:{reader.line_num}"
        rows.append(_numbers(cells, header, width, where))
    if not rows:
        raise DataError(f"{os.fspath(path)}: has no rows of numbers")
    values = np.stack(rows)
    if values.shape[1] < 2:
        raise DataError(
            f"{os.fspath(path)}: has only one column; expected values and a label, separated by "
            f"'{delimiter}'"
        )
    columns = _label_columns(labels, header, values.shape[1], path)
    label = values[:, columns]
    data = np.delete(values, columns, axis=1)
    if not data.shape[1]:
        raise DataError(f"{os.fspath(path)}: all columns are labels, none is left for data")
    return {"data": data, "label": label[:, 0] if len(columns) == 1 else label}


def read_arrays(path: StrPath, labels: StrPath | None = None) -> dict[str, Array]:
    """Read a .npz file, or the .npy file of the data and that of the labels.

    Arrays of bytes stay bytes; all others become float32, which is what a net computes with.

    Args:
        path: of a .npz file, whose arrays are the data sets, or of a .npy file, which is ``data``.
        labels: of a .npy file, which is ``label``.

    Returns:
        The arrays; those of .npy files are not in memory yet.

    Raises:
        FileError: a file is missing.
        DataError: a file is damaged, has no numbers, or the arrays are not equally long.
    """
    arrays = _load(path, "data")
    if labels is not None:
        arrays |= _load(labels, "label")
    first = next(iter(arrays))
    for name, values in arrays.items():
        if not values.ndim or not len(values):
            raise DataError(f"{path}: array '{name}' of shape {values.shape} has no rows")
        if values.dtype.kind not in "fiub":
            raise DataError(f"{path}: array '{name}' holds {values.dtype}, not numbers")
        if len(values) != len(arrays[first]):
            raise DataError(
                f"{path}: array '{name}' has {len(values)} rows, but '{first}' "
                f"{len(arrays[first])}; they must have equally many"
            )
    return arrays


def write_arrays(
    writer: HDF5Writer,
    arrays: dict[str, Array],
    *,
    shuffle: bool = False,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write arrays, row by row.

    Args:
        writer: where to.
        arrays: equally long, by data set.
        shuffle: whether to put the rows in random order.
        seed: of that order.
        progress: called now and then with the number of rows done so far.
    """
    count = len(next(iter(arrays.values())))
    order = np.arange(count)
    if shuffle:
        np.random.default_rng(seed).shuffle(order)
    for start in range(0, count, ROWS):
        rows = order[start : start + ROWS]
        writer.put({name: _plain(values[rows]) for name, values in arrays.items()})
        if progress:
            progress(start + len(rows))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: list[str], header: list[str], width: int, where: str) -> Array:
    """Return a row of the table."""
    if len(cells) != width:
        raise DataError(f"{where}: expected {width} values, as in the first line; got {len(cells)}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            row = np.array([float(cell) for cell in cells], np.float64).astype(np.float32)
    except ValueError:
        place = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        problem = "is no number"
    else:
        if np.isfinite(row).all():
            return row
        place = int(np.flatnonzero(~np.isfinite(row))[0])
        problem = "is not finite"
    name = f" ('{header[place]}')" if header else ""
    raise DataError(f"{where}: column {place}{name}: '{cells[place]}' {problem}")


def _label_columns(
    labels: Sequence[str], header: list[str], width: int, path: StrPath
) -> list[int]:
    if not labels:
        return [header.index("label") if "label" in header else width - 1]
    return [_column(label, header, width, path) for label in labels]


def _column(label: str, header: list[str], width: int, path: StrPath) -> int:
    if label in header:
        return header.index(label)
    try:
        number = int(label)
    except ValueError:
        known = f"it has: {', '.join(header)}" if header else "its first line is no header"
        raise DataError(
            f"{os.fspath(path)}: has no column '{label}'{did_you_mean(label, header)} ({known})"
        ) from None
    if not -width <= number < width:
        raise DataError(
            f"{os.fspath(path)}: has no column {number}; legal are {-width} to {width - 1}"
        )
    return number % width


def _load(path: StrPath, name: str) -> dict[str, Array]:
    """Return the arrays of a file; that of a .npy file under the given name."""
    if not Path(path).exists():
        raise missing_file(path)
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
                file.seek(0)
                arrays = dict(np.load(file, allow_pickle=False))
            else:
                arrays = {name: np.load(path, mmap_mode="r", allow_pickle=False)}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{os.fspath(path)}: cannot be read as NumPy's file: {error}") from None
    if not arrays:
        raise DataError(f"{os.fspath(path)}: has no arrays in it")
    return arrays


def _plain(values: Array) -> Array:
    return values if values.dtype == np.uint8 else values.astype(np.float32)
