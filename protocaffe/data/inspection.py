"""A look inside a database: what its records are, and a sheet of some of its images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from protocaffe.data.convert import CLASS_NAMES
from protocaffe.data.database import Database, Record
from protocaffe.data.datum import Array, Image, read_record
from protocaffe.data.prefetch import ordered_map
from protocaffe.errors import DataError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath, write_atomic

CHUNK = 100
"""Records that a thread takes at a time."""
SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"BM": "bmp", b"RIFF": "webp"}
"""How the data of encoded datums begin."""

CELL = 96
"""Pixels, in both directions, that an image on a sheet has at least and at most."""
CAPTION = 16
"""Pixels below each image for its label."""
GAP = 4


@dataclass
class Contents:
    """What is in a database.

    Attributes:
        records: how many there are.
        examined: how many of them the rest is about.
        size: of the examined values, in bytes.
        first_key: of all records.
        last_key: of those examined.
        kinds: records per kind: ``raw`` pixels, ``float`` values, or the format of encoded images.
        shapes: records per shape (channels, height, width) of the, decoded, values.
        labels: records per label.
        unlabeled: records without a label, which Data layers read as 0.
        least: the smallest value.
        greatest: the largest value.
        damaged: what is wrong with the records that cannot be used.
        names: the classes in ``labels.txt`` beside the records, by label.
    """

    records: int
    examined: int = 0
    size: int = 0
    first_key: str = ""
    last_key: str = ""
    kinds: Counter[str] = field(default_factory=Counter)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    unlabeled: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    damaged: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def title(self, label: int) -> str:
        """Return a label with the name of its class, if it has one of its own: ``3: cat``."""
        name = self.names[label] if 0 <= label < len(self.names) else ""
        return f"{label}: {name}" if name not in ("", str(label)) else str(label)

    def missing_labels(self) -> list[int]:
        """Return the labels between 0 and the largest one that no record has."""
        return sorted(set(range(max(self.labels, default=-1))) - set(self.labels))


@dataclass
class _Finding:
    """What one record is."""

    kind: str
    shape: tuple[int, ...]
    label: int | None
    least: float
    greatest: float


def examine(
    database: Database, limit: int = 0, progress: Callable[[int], None] | None = None
) -> Contents:
    """Look at the records of a database.

    Args:
        database: of Datums.
        limit: how many records to look at, from the first; 0 for all.
        progress: called now and then with the number of records done so far.
    """
    contents = Contents(len(database), names=_class_names(database))

    def look_at(chunk: Sequence[Record]) -> list[_Finding | str]:
        return [_look_at(record, database.path) for record in chunk]

    records = islice(database.records(), limit or None)
    chunks = _remembering(_chunks(records), contents)
    with closing(ordered_map(look_at, chunks)) as results:
        for findings in results:
            for finding in findings:
                _add(contents, finding)
            if progress:
                progress(contents.examined)
    return contents


def write_sheet(path: StrPath, database: Database, contents: Contents, images: int) -> int:
    """Write a PNG with some images of a database, spread evenly over it, and their labels.

    Pixels are shown as OpenCV's blue, green, red; of images with other than one or three
    channels the first channel is shown, and floats are stretched from black to white. Records
    that cannot be used are gray.

    Args:
        path: the file to write.
        database: the images.
        contents: of the database, from :func:`examine`.
        images: how many at most.

    Returns:
        How many images the sheet has.

    Raises:
        FileError: the file cannot be written.
    """
    import cv2

    count = min(images, contents.examined)
    chosen = {i * contents.examined // count for i in range(count)}
    cells = [
        _cell(record, database.path, contents)
        for i, record in enumerate(islice(database.records(), contents.examined))
        if i in chosen
    ]
    columns = math.ceil(math.sqrt(len(cells)))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    write_atomic(path, cv2.imencode(".png", np.vstack(rows))[1].tobytes())
    return count


def _class_names(database: Database) -> list[str]:
    path = os.path.join(database.path, CLASS_NAMES)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    left = iter(records)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _remembering(chunks: Iterable[list[Record]], contents: Contents) -> Iterator[list[Record]]:
    """Note keys and sizes as the records go by."""
    for chunk in chunks:
        contents.first_key = contents.first_key or _text(chunk[0][0])
        contents.last_key = _text(chunk[-1][0])
        contents.size += sum(len(value) for _, value in chunk)
        yield chunk


def _look_at(record: Record, source: str) -> _Finding | str:
    """Return what a record is, or why it cannot be used."""
    try:
        datum, values = read_record(record, source)
    except DataError as error:
        return str(error)
    label = datum.label if datum.HasField("label") else None
    return _Finding(_kind(datum), values.shape, label, float(values.min()), float(values.max()))


def _kind(datum: caffe_pb2.Datum) -> str:
    if datum.encoded:
        known = (kind for start, kind in SIGNATURES.items() if datum.data.startswith(start))
        return next(known, "encoded")
    return "raw" if datum.data else "float"


def _add(contents: Contents, finding: _Finding | str) -> None:
    contents.examined += 1
    if isinstance(finding, str):
        contents.damaged.append(finding)
        return
    contents.kinds[finding.kind] += 1
    contents.shapes[finding.shape] += 1
    if finding.label is None:
        contents.unlabeled += 1
    else:
        contents.labels[finding.label] += 1
    contents.least = min(contents.least, finding.least)
    contents.greatest = max(contents.greatest, finding.greatest)


def _cell(record: Record, source: str, contents: Contents) -> Image:
    """Return an image with its label below, (CELL + CAPTION + GAP, CELL + GAP, 3)."""
    import cv2

    cell = np.full((CELL + CAPTION + GAP, CELL + GAP, 3), 255, np.uint8)
    try:
        datum, values = read_record(record, source)
    except DataError:
        cell[:CELL, :CELL] = 128
        return cell
    picture = _fitted(_picture(values))
    height, width = picture.shape[:2]
    cell[:height, :width] = picture
    title = contents.title(datum.label)
    caption = title if title.isascii() else str(datum.label)
    place = 0, CELL + CAPTION - 4
    cv2.putText(cell, caption[:15], place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1)
    return cell


def _fitted(picture: Image) -> Image:
    """Return an image in the size that just fits into a cell."""
    import cv2

    height, width = picture.shape[:2]
    factor = CELL / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return cv2.resize(picture, size, interpolation=way)  # type: ignore[return-value]


def _picture(values: Array) -> Image:
    """Return (channels, height, width) values as (height, width, 3) pixels."""
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = ((values - low) * (255 / (high - low or 1))).astype(np.uint8)
    if len(values) != 3:
        values = np.repeat(values[:1], 3, axis=0)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
