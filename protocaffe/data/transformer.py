"""The transformer: mean, scale, crop and mirror, from images to what the net sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from protocaffe.data.datum import Array
from protocaffe.errors import DataError, ProtocaffeError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary

Choices = npt.NDArray[np.float64]
"""Uniform random numbers in [0, 1) of shape (images, 3): vertical place, horizontal, mirror."""


class Transformer:
    """y = (x - mean) * scale of an image or a crop of it, perhaps mirrored.

    * The mean is ``mean_file`` (a BlobProto of exactly the size of the uncropped image, read
      where the crop is) or ``mean_value`` (one for all channels or one per channel).
    * ``crop_size``: a random square in TRAIN, the centre, rounded up and left, in TEST.
    * ``mirror``: left and right swapped with probability 1/2, in TEST too.
    * ``force_color`` and ``force_gray`` say how encoded images are decoded (:attr:`color`).

    Args:
        param: the settings.
        phase: ``TRAIN`` or ``TEST``.
        error: makes the exception for a message; a layer gives its own ``error``.

    Raises:
        ProtocaffeError: made by ``error``: the settings contradict each other, the mean file
            cannot be used, or, later, an image does not fit them.

    Attributes:
        color: what encoded images are decoded to: True for colour, False for gray, None for
            the channels they have.
        mean: the mean image, or one value per channel or for all, (channels, 1, 1); None if
            nothing is taken off.
    """

    def __init__(
        self,
        param: caffe_pb2.TransformationParameter,
        phase: int,
        error: Callable[[str], ProtocaffeError] = DataError,
    ) -> None:
        self.error = error
        self.crop_size = param.crop_size
        self.random_crop = bool(param.crop_size) and phase == caffe_pb2.TRAIN
        self.mirror = param.mirror
        self.scale = np.float32(param.scale)
        self.color = self._forced_color(param)
        self.mean_file = param.mean_file
        self.mean = self._read_mean(param)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of what an image of such a shape becomes."""
        channels, height, width = shape
        self._check_mean((channels, height, width))
        crop = self.crop_size
        if not crop:
            return channels, height, width
        if crop > min(height, width):
            raise self.error(
                f"crop_size {crop} is larger than the image, which is {height} high and "
                f"{width} wide; crop less or make the images larger"
            )
        return channels, crop, crop

    def choices(self, seed: int, position: int, count: int) -> Choices | None:
        """Return the random choices for records ``position`` to ``position + count - 1``.

        They depend on the seed and each record's own position in the stream alone, not on
        batches, threads or what was drawn before. None if nothing is random.
        """
        if not (self.random_crop or self.mirror):
            return None
        # Philox is a function from a key and a counter to four numbers: one call per record.
        numbers = np.random.Philox(key=seed, counter=position).random_raw(4 * count)
        uniform: Choices = (numbers.reshape(count, 4)[:, :3] >> np.uint64(11)) * 2.0**-53
        return uniform

    def __call__(self, images: Sequence[Array], out: Array, choices: Choices | None) -> None:
        """Transform images into a batch.

        Args:
            images: each (channels, height, width), uint8 or float32; with a crop they may
                differ in size.
            out: float32, shape (images, channels, height, width), overwritten.
            choices: from :meth:`choices`, one row per image.
        """
        shapes = {image.shape for image in images}
        for shape in shapes:
            expected = self.output_shape(shape)
            if expected != out.shape[1:]:
                raise self.error(f"an image of shape {shape} does not fit in {out.shape[1:]}")
        if choices is None and len(shapes) == 1:
            # Small images would spend most of their time in calls if done one by one.
            self._apply(np.stack(images), out, *self._place(images[0].shape, None))
            return
        for i, image in enumerate(images):
            row = None if choices is None else choices[i]
            self._apply(image, out[i], *self._place(image.shape, row))

    def _place(self, shape: Sequence[int], row: Choices | None) -> tuple[int, int, bool]:
        """Return the crop's top and left, and whether to mirror."""
        y, x = 0, 0
        if self.crop_size:
            room_y, room_x = shape[-2] - self.crop_size, shape[-1] - self.crop_size
            if self.random_crop and row is not None:
                y, x = int(row[0] * (room_y + 1)), int(row[1] * (room_x + 1))
            else:
                y, x = room_y // 2, room_x // 2
        return y, x, self.mirror and row is not None and bool(row[2] < 0.5)

    def _apply(self, image: Array, out: Array, y: int, x: int, mirrored: bool) -> None:
        height, width = out.shape[-2:]
        window = image[..., y : y + height, x : x + width]
        target = out[..., ::-1] if mirrored else out
        if self.mean is None:
            np.multiply(window, self.scale, out=target)
            return
        mean = self.mean
        if self.mean_file:
            mean = mean[:, y : y + height, x : x + width]
        np.subtract(window, mean, out=target)
        if self.scale != 1:
            out *= self.scale

    def _forced_color(self, param: caffe_pb2.TransformationParameter) -> bool | None:
        if param.force_color and param.force_gray:
            raise self.error("force_color and force_gray contradict each other; give one of them")
        return True if param.force_color else False if param.force_gray else None

    def _read_mean(self, param: caffe_pb2.TransformationParameter) -> Array | None:
        if param.mean_file and param.mean_value:
            raise self.error("mean_file and mean_value exclude each other; give one of them")
        if param.mean_value:
            return np.array(param.mean_value, np.float32).reshape(-1, 1, 1)
        if not param.mean_file:
            return None
        if not os.path.exists(param.mean_file):
            raise self.error(
                f"mean_file '{param.mean_file}' does not exist (looked for it in {os.getcwd()}); "
                f"`protocaffe compute_image_mean DATABASE {param.mean_file}` makes it"
            )
        try:
            blob = blob_to_array(read_binary(param.mean_file, caffe_pb2.BlobProto()))
        except ProtocaffeError as error:
            raise self.error(f"mean_file: {error}") from None
        shape = blob.shape[1:] if blob.ndim == 4 and blob.shape[0] == 1 else blob.shape
        if len(shape) != 3:
            raise self.error(
                f"mean_file '{param.mean_file}' has shape {blob.shape}; expected "
                f"(1, channels, height, width)"
            )
        return np.ascontiguousarray(blob.reshape(shape), np.float32)

    def _check_mean(self, shape: tuple[int, int, int]) -> None:
        if self.mean is None:
            return
        if self.mean_file and self.mean.shape != shape:
            raise self.error(
                f"mean_file '{self.mean_file}' has shape {self.mean.shape}, the image "
                f"{shape} (before cropping); the mean must come from images of the same size"
            )
        if len(self.mean) not in (1, shape[0]):
            raise self.error(
                f"{len(self.mean)} mean_values are given for an image with {shape[0]} "
                f"channel(s); give one for all or one per channel"
            )
