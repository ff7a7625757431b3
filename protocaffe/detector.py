"""Windows of images to class scores, as in R-CNN: pycaffe's ``caffe.Detector``."""

from __future__ import annotations

import csv
import importlib
import io as text_io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe import io
from protocaffe.classifier import image_input
from protocaffe.errors import DataError, UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import StrPath, write_atomic
from protocaffe.proto.text import read_text

Floats = npt.NDArray[np.float32]
Windows = npt.NDArray[Any]
Detection = dict[str, Any]

COORDINATES = ("ymin", "xmin", "ymax", "xmax")
"""A window's numbers, in this order everywhere."""


class Detector(Net):
    """A net that scores windows of images.

    Args:
        model_file: the deploy prototxt; the input must be square if ``context_pad`` is given.
        pretrained_file: the weights.
        mean: see :meth:`protocaffe.io.Transformer.set_mean`.
        input_scale: factor after the mean is subtracted.
        raw_scale: factor before that; 255 for images in 0..1 and nets trained on 0..255.
        channel_swap: order of the channels; (2, 1, 0) for RGB images and nets trained on BGR.
        context_pad: how many pixels of the input on each side show the window's surroundings,
            16 for R-CNN; what lies outside the image is filled with the mean.

    Attributes:
        transformer: how windows become inputs.

    Raises:
        UsageError: the net takes no images, or a setting does not fit it.
        ProtocaffeError: a file is missing, damaged or does not fit the other.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        mean: npt.ArrayLike | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, caffe_pb2.TEST, weights=pretrained_file)
        name, shape = image_input(self)
        self.transformer = io.make_transformer(
            name, shape, mean, input_scale, raw_scale, channel_swap
        )
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set how windows are cropped; call it again after changing the transformer.

        Attributes set by it are ``context_pad``, ``crop_dims`` (height, width and channels of a
        crop) and ``crop_mean``, what fills a crop outside the image.

        Raises:
            UsageError: the padding leaves nothing of the input, or the input is not square.
        """
        name, shape = image_input(self)
        _, channels, height, width = shape
        if context_pad and (height != width or not 0 < 2 * context_pad < width):
            raise UsageError(
                f"context_pad {context_pad}: expected a square input of more than twice that; "
                f"input '{name}' is {height} x {width}"
            )
        self.context_pad = context_pad
        self.crop_dims = np.array((height, width, channels))
        blank = self.transformer.deprocess(name, np.zeros(shape[1:]))
        self.crop_mean = np.broadcast_to(blank, self.crop_dims)

    def detect_windows(
        self, images_windows: Iterable[tuple[StrPath, npt.ArrayLike]]
    ) -> list[Detection]:
        """Score windows of images.

        Args:
            images_windows: per image, the path of its file and its windows, (n, 4): ymin, xmin,
                ymax, xmax, the ends excluded.

        Returns:
            Per window, in order, a dict of ``window``, ``prediction`` (the values of the net's
            first output) and ``filename``.

        Raises:
            FileError: an image cannot be read.
            DataError: it is no image, or a window is none or shows nothing of it.
        """
        name = self.inputs[0]
        seen: list[tuple[StrPath, Windows]] = []
        inputs: list[Floats] = []
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in _checked(windows, filename):
                try:
                    crop = self.crop(image, window)
                except DataError as error:
                    raise DataError(f"{filename}: {error}") from None
                inputs.append(self.transformer.preprocess(name, crop))
                seen.append((filename, window))
        if not seen:
            return []
        predictions = self.forward_all(None, **{name: np.array(inputs)})[self.outputs[0]]
        return [
            {"window": window, "prediction": prediction, "filename": filename}
            for (filename, window), prediction in zip(seen, predictions, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Sequence[StrPath]) -> list[Detection]:
        """Score the windows that selective search proposes for image files.

        Raises:
            UsageError: the package for it, which needs MATLAB, is not installed.
        """
        try:
            selective_search = importlib.import_module("selective_search_ijcv_with_python")
        except ImportError:
            raise UsageError(
                "selective search needs the package selective_search_ijcv_with_python (and "
                "MATLAB), which is not installed; give windows of your own instead"
            ) from None
        windows = selective_search.get_windows(image_fnames)
        return self.detect_windows(zip(image_fnames, windows, strict=True))

    def crop(self, im: Floats, window: npt.ArrayLike) -> Floats:
        """Return a window of an image, with its surroundings if ``context_pad`` was given.

        Args:
            im: shape (height, width, channels), as :func:`protocaffe.io.load_image` returns it.
            window: ymin, xmin, ymax, xmax.

        Returns:
            The window as it is, or of the net's input size with ``context_pad``.

        Raises:
            DataError: it shows nothing of the image.
        """
        box = np.array(window, np.float64)
        if not self.context_pad:
            ymin, xmin, ymax, xmax = np.maximum(box, 0).astype(int)
            return _nonempty(im[ymin:ymax, xmin:xmax], box, im)
        size = int(self.crop_dims[0])
        down, rows = _grown(box[0], box[2], im.shape[0], size, self.context_pad)
        right, columns = _grown(box[1], box[3], im.shape[1], size, self.context_pad)
        shown = _nonempty(im[down, right], box, im)
        crop = np.array(self.crop_mean)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) > 0:
            crop[rows, columns] = io.resize_image(shown, (height, width))
        return crop


def read_windows(path: StrPath) -> list[tuple[str, Windows]]:
    """Read images and their windows from a CSV file: filename, ymin, xmin, ymax, xmax.

    Its first line names the columns, in any order; images come in the order in which they are
    first named.

    Raises:
        FileError: the file cannot be read.
        DataError: a column is missing, or a line is wrong; the message names the line.
    """
    reader = csv.DictReader(text_io.StringIO(read_text(path)))
    columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in ("filename", *COORDINATES) if name not in columns]
    if missing:
        raise DataError(
            f"{path}:1: no column {', '.join(missing)}; expected filename, {', '.join(COORDINATES)}"
        )
    windows: dict[str, list[list[float]]] = {}
    for row in reader:
        try:
            window = [float(row[name]) for name in COORDINATES]
        except (TypeError, ValueError):
            raise DataError(
                f"{path}:{reader.line_num}: expected a number for each of {', '.join(COORDINATES)}"
            ) from None
        windows.setdefault(row["filename"], []).append(window)
    return [(filename, np.array(rows)) for filename, rows in windows.items()]


def write_detections(path: StrPath, detections: Sequence[Mapping[str, Any]]) -> None:
    """Write detections as CSV: filename, the window, and a column ``class0`` ... per score.

    Raises:
        FileError: the file cannot be written.
    """
    out = text_io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    classes = np.size(detections[0]["prediction"]) if detections else 0
    writer.writerow(["filename", *COORDINATES, *(f"class{index}" for index in range(classes))])
    for each in detections:
        scores = np.ravel(each["prediction"]).tolist()
        window = [f"{value:g}" for value in np.ravel(each["window"])]
        writer.writerow([os.fspath(each["filename"]), *window, *scores])
    write_atomic(path, out.getvalue().encode())


def _checked(windows: npt.ArrayLike, filename: StrPath) -> Windows:
    values = np.asarray(windows)
    if values.ndim != 2 or values.shape[1] != len(COORDINATES):
        raise DataError(
            f"{filename}: windows need shape (n, 4), {', '.join(COORDINATES)}; got {values.shape}"
        )
    return values


def _nonempty(part: Floats, box: npt.NDArray[np.float64], im: Floats) -> Floats:
    if part.size == 0:
        raise DataError(
            f"the window {', '.join(f'{value:g}' for value in box)} ({', '.join(COORDINATES)}) "
            f"shows nothing of the image, which is {im.shape[0]} high and {im.shape[1]} wide"
        )
    return part


def _grown(first: float, last: float, extent: int, size: int, pad: int) -> tuple[slice, slice]:
    """Grow a window along one axis and cut off what lies outside the image, as R-CNN does.

    Returns:
        Where the window is in the image, and in a crop of ``size`` pixels.
    """
    half = (last - first + 1) / 2
    reach = half * size / (size - 2 * pad)
    start, stop = np.round(first + half - reach), np.round(first + half + reach)
    scale = size / (stop - start + 1)
    offset = round(max(0, -start) * scale)
    start, stop = np.clip((start, stop), 0, extent)
    length = min(round((stop - start + 1) * scale), size - offset)
    return slice(int(start), int(stop)), slice(offset, offset + length)
