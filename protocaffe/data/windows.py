"""Windows of images, drawn at random: what a WindowData layer reads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocaffe.data.augment import Choices
from protocaffe.data.batches import Batch, Floats, RawBatch
from protocaffe.data.datum import Image, decode_image, planar, resize_image
from protocaffe.data.entries import cannot_open
from protocaffe.data.images import read_file
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath

CHANNELS = 3
HEADER = (
    ("'# index'", r"# *[0-9]+"),
    ("the image's path", r".+"),
    ("3 channels (all images are read in colour)", r"3"),
    ("the image's height", r"[0-9]+"),
    ("the image's width", r"[0-9]+"),
    ("the number of windows", r"[0-9]{1,9}"),
)
"""What the lines before an image's windows hold, in words and as patterns."""
WINDOW = re.compile(
    r"[0-9]{1,9}\s+[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?(\s+-?[0-9]{1,9}){4}"
)
IMAGE, LINE, LABEL, BOX = 0, 1, 2, slice(3, 7)
"""Columns of a table of windows: image, line of the file, label, x1, y1, x2, y2."""

Table = npt.NDArray[np.int64]
Row = npt.NDArray[np.int64]
Overlaps = npt.NDArray[np.float32]


@dataclass
class Windows:
    """What a windows file holds.

    Attributes:
        source: its name.
        images: the paths, without the root.
        foreground: one row per window that overlaps an object enough; see :data:`BOX`.
        background: one row per window that overlaps objects little; the labels are 0.
    """

    source: str
    images: list[str]
    foreground: Table
    background: Table


def read_windows(source: StrPath, fg_threshold: float, bg_threshold: float) -> Windows:
    """Read a windows file.

    For every image it has a line each with ``# index``, the path, the channels (3), height, width
    and the number of windows, and then one line per window: ``label overlap x1 y1 x2 y2``, where
    x2 and y2 still belong to the window.

    Args:
        source: the file.
        fg_threshold: windows that overlap an object by at least this are foreground.
        bg_threshold: others that overlap by less than this are background, the rest is dropped.

    Raises:
        DataError: the file cannot be read or holds something else; the message names the line.
    """
    name = os.fspath(source)
    try:
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise cannot_open("windows file", source, error) from error
    images: list[str] = []
    parts: list[tuple[Table, Table]] = []
    place = 0
    while place < len(lines):
        if not lines[place].strip():
            place += 1
            continue
        path, count = _header(lines, place, name)
        place += len(HEADER)
        table, overlap = _table(lines, place, count, name)
        table[:, IMAGE] = len(images)
        parts.append(_split(table, overlap, fg_threshold, bg_threshold, name))
        images.append(path)
        place += count
    if not images:
        raise DataError(f"windows file '{name}' is empty; expected images and their windows")
    foreground, background = (np.concatenate(tables) for tables in zip(*parts, strict=True))
    return Windows(name, images, foreground, background)


def window_batches(batch_size: int, position: int = 0) -> Iterator[RawBatch[None]]:
    """Yield batches without records: their windows are drawn when they are filled."""
    while True:
        yield RawBatch(position, [], 0)
        position += batch_size


class WindowFiller:
    """Fills batches with windows drawn at random, with replacement: background, then foreground.

    What is drawn follows from the seed and the batch's position in the stream alone.

    Args:
        windows: to draw from.
        param: the layer's settings.
        transformer: has the crop size, the mean and whether to mirror.
        seed: of the random choices.

    Raises:
        DataError: the settings ask for windows that there are none of, or make no sense.
    """

    def __init__(
        self,
        windows: Windows,
        param: caffe_pb2.WindowDataParameter,
        transformer: Transformer,
        seed: int,
    ) -> None:
        self.seed = seed
        self.crop_size = transformer.crop_size
        self._windows = windows
        self._param = param
        self._transformer = transformer
        self._augmentation = transformer.augmentation
        self._mirror = transformer.mirror
        self._scale = np.float32(param.scale)
        self._num_foreground = int(np.float32(param.batch_size) * np.float32(param.fg_fraction))
        self._files: dict[int, bytes] = {}
        self._check()
        self._mean = _central_mean(transformer)

    def __call__(self, raw: RawBatch[None], batch: Batch) -> None:
        """Draw the windows of a batch and fill it.

        Raises:
            DataError: an image or a window cannot be used; the message names it.
        """
        rng = np.random.default_rng((self.seed, raw.position))
        choices = self._transformer.choices(self.seed, raw.position, self._param.batch_size)
        batch.reshape(self._param.batch_size, CHANNELS, self.crop_size, self.crop_size)
        batch.wraps = 0
        for number, window in enumerate(self._draw(rng)):
            mirrored = self._mirror and bool(rng.integers(2))
            batch.labels[number] = window[LABEL]
            row = None if choices is None else choices[number]
            self._fill(batch.data[number], window, mirrored, row)

    def _draw(self, rng: np.random.Generator) -> Table:
        counts = self._param.batch_size - self._num_foreground, self._num_foreground
        tables = self._windows.background, self._windows.foreground
        return np.concatenate(
            [
                table[rng.integers(len(table), size=count)] if count else table[:0]
                for table, count in zip(tables, counts, strict=True)
            ]
        )

    def _fill(self, out: Floats, window: Row, mirrored: bool, choices: Choices | None) -> None:
        image = self._read(window)
        try:
            patch = self._place(window[BOX].tolist(), image.shape[:2], mirrored)
        except DataError as error:
            raise self._error(window, str(error)) from None
        pixels = resize_image(image[patch.source], patch.height, patch.width)
        values = planar(pixels[:, ::-1] if mirrored else pixels)
        if self._augmentation and self._augmentation.recolors and choices is not None:
            values = self._augmentation.recolor(values, choices)
        inside = (slice(None), *patch.target)
        out[...] = 0
        out[inside] = values
        if self._mean is not None:
            mean = np.broadcast_to(self._mean, out.shape)
            out[inside] -= mean[inside]
        out[inside] *= self._scale
        if self._augmentation and choices is not None:
            self._augmentation.blank(out, choices)

    def _place(self, box: list[int], size: Sequence[int], mirrored: bool) -> Patch:
        square = self._param.crop_mode == "square"
        if square or self._param.context_pad:
            return grown_patch(
                box, size, self.crop_size, self._param.context_pad, square=square, mirrored=mirrored
            )
        x1, y1, x2, y2 = box
        if min(x1, y1) < 0 or x2 >= size[1] or y2 >= size[0]:
            raise DataError(f"{_text(box)} leaves the image, which is {_size(size)}")
        return Patch(x1, y1, x2, y2, 0, 0, self.crop_size, self.crop_size)

    def _read(self, window: Row) -> Image:
        number = int(window[IMAGE])
        try:
            content = self._files.get(number) or read_file(self._path(number))
        except DataError as error:
            raise self._error(window, str(error)) from None
        if self._param.cache_images:
            self._files[number] = content
        image = decode_image(content, color=True)
        if image is None:
            raise self._error(window, "is no image that OpenCV can read")
        return image

    def _path(self, image: int) -> str:
        return self._param.root_folder + self._windows.images[image]

    def _error(self, window: Row, message: str) -> DataError:
        """Return an error that names the window's line and its image."""
        place = f"{self._windows.source}:{window[LINE]}"
        return DataError(f"{place}: image '{self._path(int(window[IMAGE]))}': {message}")

    def _check(self) -> None:
        param = self._param
        if not self.crop_size:
            raise DataError("transform_param needs a crop_size: what windows are resized to")
        if self.crop_size <= 2 * param.context_pad:
            raise DataError(
                f"context_pad {param.context_pad} on both sides leaves nothing of crop_size "
                f"{self.crop_size}; it must be less than half of it"
            )
        if param.crop_mode not in ("warp", "square"):
            raise DataError(f"crop_mode '{param.crop_mode}' is unknown; give warp or square")
        if not 0 <= param.fg_fraction <= 1:
            raise DataError(f"fg_fraction is {param.fg_fraction:g}; legal are 0 to 1")
        for kind, table, count in (
            ("foreground", self._windows.foreground, self._num_foreground),
            ("background", self._windows.background, param.batch_size - self._num_foreground),
        ):
            if count and not len(table):
                raise DataError(
                    f"'{self._windows.source}' has no {kind} windows, but each batch needs "
                    f"{count}; change fg_fraction, fg_threshold or bg_threshold"
                )


@dataclass(frozen=True)
class Patch:
    """A box in an image, corners included, and the place in the crop that it is resized to."""

    x1: int
    y1: int
    x2: int
    y2: int
    left: int
    top: int
    width: int
    height: int

    @property
    def source(self) -> tuple[slice, slice]:
        """Rows and columns in the image."""
        return slice(self.y1, self.y2 + 1), slice(self.x1, self.x2 + 1)

    @property
    def target(self) -> tuple[slice, slice]:
        """Rows and columns in the crop."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def grown_patch(
    box: Sequence[int],
    size: Sequence[int],
    crop_size: int,
    context_pad: int,
    *,
    square: bool,
    mirrored: bool,
) -> Patch:
    """Grow a window about its centre and cut off what lies outside the image.

    Args:
        box: x1, y1, x2, y2.
        size: the image's height and width.
        crop_size: height and width that the whole grown window would be resized to.
        context_pad: how many pixels of the crop on each side shall show surroundings.
        square: whether to make the window a square first.
        mirrored: whether the place in the crop is that of a mirrored window.

    Raises:
        DataError: nothing of the window is in the image.
    """
    x_half, y_half = (box[2] - box[0] + 1) / 2, (box[3] - box[1] + 1) / 2
    centre_x, centre_y = box[0] + x_half, box[1] + y_half
    if square:
        x_half = y_half = max(x_half, y_half)
    growth = np.float32(crop_size) / np.float32(crop_size - 2 * context_pad)
    across = _cut(centre_x, x_half * growth, size[1], crop_size, mirrored)
    down = _cut(centre_y, y_half * growth, size[0], crop_size, False)
    if min(across[3], down[3]) < 1:
        raise DataError(f"{_text(box)} shows nothing of the image, which is {_size(size)}")
    x1, x2, left, width = across
    y1, y2, top, height = down
    return Patch(x1, y1, x2, y2, left, top, width, height)


def _cut(
    centre: float, half: np.float32, extent: int, crop_size: int, mirrored: bool
) -> tuple[int, int, int, int]:
    """Cut a grown window along one axis.

    Returns:
        The first and the last pixel left of it, and where in the crop they begin and how many
        pixels they become; none if nothing is left.
    """
    first, last = _round(np.float32(centre) - half), _round(np.float32(centre) + half)
    scale = np.float32(crop_size) / np.float32(last - first + 1)
    before, after = max(0, -first), max(0, last - extent + 1)
    first, last = first + before, last - after
    if first > last:
        return first, last, 0, 0
    start = _round((after if mirrored else before) * scale)
    return first, last, start, min(_round((last - first + 1) * scale), crop_size - start)


def _round(value: float) -> int:
    """Round to the nearest whole number, halves away from 0 as in C."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _header(lines: list[str], place: int, source: str) -> tuple[str, int]:
    """Return the path and the number of windows of the image whose lines begin at a place."""
    found = [line.strip() for line in lines[place : place + len(HEADER)]]
    found += [""] * (len(HEADER) - len(found))
    for number, (line, (what, pattern)) in enumerate(zip(found, HEADER, strict=True)):
        if not re.fullmatch(pattern, line):
            raise _line_error(source, lines, place + number, what)
    return found[1], int(found[-1])


def _table(lines: list[str], place: int, count: int, source: str) -> tuple[Table, Overlaps]:
    """Return the windows on some lines, as rows without image, and how they overlap objects."""
    part = lines[place : place + count]
    for number in range(count):
        if number >= len(part) or not re.fullmatch(WINDOW, part[number].strip()):
            raise _line_error(source, lines, place + number, "'label overlap x1 y1 x2 y2'")
    values = np.array(" ".join(part).split(), np.float64).reshape(count, 6)
    table = np.zeros((count, 7), np.int64)
    table[:, LINE] = np.arange(place + 1, place + 1 + count)
    table[:, LABEL] = values[:, 0]
    table[:, BOX] = values[:, 2:]
    for row in table[(table[:, 5] < table[:, 3]) | (table[:, 6] < table[:, 4])]:
        raise DataError(
            f"{source}:{row[LINE]}: {_text(row[BOX])} ends before it begins; expected x1 <= x2 and "
            f"y1 <= y2"
        )
    return table, values[:, 1].astype(np.float32)


def _split(
    table: Table, overlap: Overlaps, fg_threshold: float, bg_threshold: float, source: str
) -> tuple[Table, Table]:
    """Return the foreground and the background windows."""
    is_foreground = overlap >= np.float32(fg_threshold)
    foreground = table[is_foreground]
    background = table[~is_foreground & (overlap < np.float32(bg_threshold))]
    for row in foreground[foreground[:, LABEL] < 1]:
        raise DataError(
            f"{source}:{row[LINE]}: a foreground window needs a label of at least 1 (0 is the "
            f"background), got {row[LABEL]}"
        )
    background[:, LABEL] = 0
    return foreground, background


def _line_error(source: str, lines: list[str], place: int, what: str) -> DataError:
    got = f"'{lines[place]}'" if place < len(lines) else "the end of the file"
    return DataError(f"{source}:{place + 1}: expected {what}, got {got}")


def _central_mean(transformer: Transformer) -> Floats | None:
    """Return the mean of a crop in the middle of the mean image, or one value per channel."""
    mean, crop = transformer.mean, transformer.crop_size
    if mean is None:
        return None
    if len(mean) not in (1, CHANNELS):
        raise DataError(f"{len(mean)} mean values are given; give one for all channels or three")
    if not transformer.mean_file:
        return mean
    if min(mean.shape[1:]) < crop:
        raise DataError(
            f"mean_file '{transformer.mean_file}' is {_size(mean.shape[1:])}, less than "
            f"crop_size {crop}"
        )
    offset = (mean.shape[2] - crop) // 2
    return mean[:, offset : offset + crop, offset : offset + crop]


def _text(box: Sequence[int]) -> str:
    return f"the window from ({box[0]}, {box[1]}) to ({box[2]}, {box[3]})"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} high and {size[1]} wide"
