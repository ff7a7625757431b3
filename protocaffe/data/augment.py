"""Random changes of training images that Caffe does not know, each drawn image by image.

They are fields of ``transform_param`` and act in this order, between Caffe's own steps: rotation,
then the cut (a random resized crop, or a crop that may reach into the padding), mirroring, colour
jitter, mean and scale, cutout. Labels stay what they are: none of these changes what an image
shows, but a rotation by 180 degrees may well change what a digit means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from protocaffe.data.datum import Array, interleaved, planar
from protocaffe.errors import ProtocaffeError
from protocaffe.proto import caffe_pb2

Choices = npt.NDArray[np.float64]
"""Uniform random numbers in [0, 1), :data:`COLUMNS` for each image."""
Row = Sequence[float] | Choices
"""Those of one image; a list is read faster than an array."""

TOP, LEFT, MIRROR, AREA, ASPECT, TURN, ANGLE, JITTER = range(8)
BRIGHTNESS, CONTRAST, SATURATION, HUE, CUTOUT, CUTOUT_Y, CUTOUT_X = range(8, 15)
COLUMNS = 16
"""Every choice has a column of its own, so that one augmentation does not change the others'."""

GRAY = np.array([0.114, 0.587, 0.299])
"""The weights of blue, green and red in a gray value."""
# Gray and the two axes of colour of the YIQ system, in the order blue, green, red.
YIQ = np.array([[0.114, 0.587, 0.299], [-0.322, -0.274, 0.596], [0.312, -0.523, 0.211]])
MAX_CHANNELS = 4
"""What OpenCV turns and resizes."""


FIELDS = ("random_resized_crop", "crop_padding", "rotation", "color_jitter", "cutout")
"""What ``transform_param`` has beyond Caffe's own fields."""


def augmentations(param: caffe_pb2.TransformationParameter) -> list[str]:
    """Return the names of the fields of these that are given."""
    return [name for name in FIELDS if param.HasField(name)]


class Augmentation:
    """The random changes that ``transform_param`` asks for beyond crop and mirror.

    Args:
        param: the settings.
        error: makes the exception for a message.

    Raises:
        ProtocaffeError: made by ``error``: a setting is out of range, or two exclude each other.

    Attributes:
        names: the fields that are given.
        padding: see ``crop_padding``.
        resized_crop: whether parts of random size are resized to the crop.
        recolors: whether there is colour jitter.
        leaves_gaps: whether parts of the batch are 0 because there is no image.
        one_by_one: whether images have to be changed one after the other.
    """

    def __init__(
        self,
        param: caffe_pb2.TransformationParameter,
        error: Callable[[str], ProtocaffeError],
    ) -> None:
        self._param = param
        self._error = error
        self.names = augmentations(param)
        self.padding = param.crop_padding
        self.resized_crop = param.HasField("random_resized_crop")
        self.recolors = param.HasField("color_jitter")
        self.one_by_one = self.resized_crop or self.recolors or param.HasField("rotation")
        self.leaves_gaps = bool(self.padding) or param.HasField("cutout")
        self._check_crops()
        self._check_ranges()

    def rotate(self, image: Array, row: Row, fill: npt.NDArray[np.float32]) -> Array:
        """Turn an image about its centre.

        Args:
            image: shape (channels, height, width).
            row: its choices.
            fill: what comes into view at the corners, one value per channel.
        """
        import cv2

        settings = self._param.rotation
        if not (settings.max_degrees and row[TURN] < settings.probability):
            return image
        self._check_channels(image, "rotation")
        _, height, width = image.shape
        degrees = (2 * row[ANGLE] - 1) * settings.max_degrees
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
        border = np.resize(fill, len(image)).tolist()
        return planar(
            cv2.warpAffine(interleaved(image), matrix, (width, height), borderValue=border)
        )

    def cut_resized(self, image: Array, row: Row, size: int) -> Array:
        """Cut out a part of random area and aspect and resize it to a square."""
        import cv2

        self._check_channels(image, "random_resized_crop")
        y, x, height, width = self._part(image.shape[1], image.shape[2], row)
        part = interleaved(image)[y : y + height, x : x + width]
        # Where it shrinks, every pixel counts; elsewhere area means nearest.
        shrinks = min(height, width) > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return planar(cv2.resize(part, (size, size), interpolation=method))

    def recolor(self, image: Array, row: Row) -> Array:
        """Change brightness, contrast, saturation and hue, in this order.

        All four are linear in a pixel's colours, so they are one matrix.
        """
        import cv2

        settings = self._param.color_jitter
        channels = len(image)
        colourful = settings.saturation or settings.hue
        if channels != 3 and (channels != 1 or colourful):
            raise self._error(
                f"color_jitter takes images of 3 channels (or 1, for brightness and contrast "
                f"alone), got {channels}"
            )
        if row[JITTER] >= settings.probability:
            return image
        pixels = interleaved(image)
        brightness = _factor(settings.brightness, row[BRIGHTNESS])
        contrast = _factor(settings.contrast, row[CONTRAST])
        means = np.array(cv2.mean(pixels)[:channels])
        gray = float(means @ GRAY) if channels == 3 else float(means[0])
        matrix = brightness * contrast * np.eye(channels)
        if colourful:
            hue = (2 * row[HUE] - 1) * settings.hue
            matrix = _hue(hue) @ _saturation(_factor(settings.saturation, row[SATURATION])) @ matrix
        # Neither saturation nor hue changes grays.
        offset = np.full((channels, 1), (1 - contrast) * brightness * gray)
        return planar(cv2.transform(pixels, np.hstack([matrix, offset])))

    def blank(self, out: Array, row: Row) -> None:
        """Set a square of a finished image to 0, where cutout is asked for and drawn."""
        settings = self._param.cutout
        if not (settings.size and row[CUTOUT] < settings.probability):
            return
        _, height, width = out.shape
        y = int(row[CUTOUT_Y] * height) - settings.size // 2
        x = int(row[CUTOUT_X] * width) - settings.size // 2
        out[:, max(y, 0) : max(y + settings.size, 0), max(x, 0) : max(x + settings.size, 0)] = 0

    def _part(self, height: int, width: int, row: Row) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a random part."""
        settings = self._param.random_resized_crop
        share = settings.min_area + row[AREA] * (settings.max_area - settings.min_area)
        area = share * height * width
        # Aspects beyond these would make a part of this area leave the image.
        least = max(settings.min_aspect, area / height**2)
        most = min(settings.max_aspect, width**2 / area)
        if least <= most:
            aspect = math.exp(math.log(least) + row[ASPECT] * (math.log(most) - math.log(least)))
        else:
            aspect = settings.max_aspect if least > settings.max_aspect else settings.min_aspect
            area = min(area, height**2 * aspect, width**2 / aspect)
        part_height = min(max(round(math.sqrt(area / aspect)), 1), height)
        part_width = min(max(round(math.sqrt(area * aspect)), 1), width)
        y = int(row[TOP] * (height - part_height + 1))
        x = int(row[LEFT] * (width - part_width + 1))
        return y, x, part_height, part_width

    def _check_crops(self) -> None:
        param = self._param
        for name in ("random_resized_crop", "crop_padding"):
            if param.HasField(name) and not param.crop_size:
                raise self._error(f"{name} needs a crop_size: the size that comes out")
        if self.resized_crop and self.padding:
            raise self._error("random_resized_crop and crop_padding exclude each other")
        if self.resized_crop and param.mean_file:
            raise self._error(
                "random_resized_crop moves pixels away from those of mean_file; give mean_value "
                "(`protocaffe compute_image_mean` prints it)"
            )

    def _check_ranges(self) -> None:
        param = self._param
        crop, jitter = param.random_resized_crop, param.color_jitter
        if not 0 < crop.min_area <= crop.max_area <= 1:
            raise self._error(
                f"random_resized_crop: min_area {crop.min_area:g} and max_area {crop.max_area:g} "
                f"must be above 0 and at most 1, in this order"
            )
        if not 0 < crop.min_aspect <= crop.max_aspect < math.inf:
            raise self._error(
                f"random_resized_crop: min_aspect {crop.min_aspect:g} and max_aspect "
                f"{crop.max_aspect:g} must be above 0, in this order"
            )
        if param.HasField("rotation") and not 0 < param.rotation.max_degrees <= 180:
            raise self._error(
                f"rotation: max_degrees is {param.rotation.max_degrees:g}; give more than 0, "
                f"180 at most"
            )
        if param.HasField("cutout") and not param.cutout.size:
            raise self._error("cutout needs a size: the side of the square in pixels")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(jitter, name) <= most:
                raise self._error(
                    f"color_jitter: {name} is {getattr(jitter, name):g}; legal are 0 to {most}"
                )
        for name in ("rotation", "color_jitter", "cutout"):
            probability = getattr(param, name).probability
            if not 0 <= probability <= 1:
                raise self._error(f"{name}: probability is {probability:g}; legal are 0 to 1")

    def _check_channels(self, image: Array, name: str) -> None:
        if len(image) > MAX_CHANNELS:
            raise self._error(
                f"{name} takes images of up to {MAX_CHANNELS} channels, got {len(image)}"
            )


def _factor(strength: float, choice: float) -> float:
    """Return a factor from 1 - strength to 1 + strength."""
    return 1 + (2 * choice - 1) * strength


def _saturation(factor: float) -> npt.NDArray[np.float64]:
    """Return the matrix that multiplies distances from gray."""
    return factor * np.eye(3) + (1 - factor) * GRAY


def _hue(share: float) -> npt.NDArray[np.float64]:
    """Return the matrix that turns colours about the gray axis by a share of the circle."""
    sine, cosine = math.sin(2 * math.pi * share), math.cos(2 * math.pi * share)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return np.linalg.solve(YIQ, turn @ YIQ)
