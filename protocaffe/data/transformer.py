"""The transformer: from images to what the net sees."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.data.augment import COLUMNS, LEFT, MIRROR, TOP, Augmentation, Choices, Row
from protocaffe.data.datum import Array, interleaved, is_planar_view, planar
from protocaffe.errors import DataError, ProtocaffeError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary

SMALL = 1 << 14
"""Images of up to this many values cost more calls than work and are transformed together."""
CHUNK = 1 << 17
"""Numbers that are finished together: as floats they fit a second-level cache."""


def images_together(shape: Sequence[int]) -> int:
    """Return how many images of a shape are finished together."""
    return max(1, CHUNK // math.prod(shape))


def normalize(values: Array, mean: Array | None, scale: float, out: Array) -> None:
    """Write (values - mean) * scale.

    Converting, subtracting and scaling one after the other is as fast as NumPy gets: ``out``
    stays in the cache, if it is no more than an image or so, and mixed types would go through a
    buffer.
    """
    out[...] = values
    if mean is not None:
        out -= mean
    if scale != 1:
        out *= scale


class Transformer:
    """y = (x - mean) * scale of an image or a crop of it, perhaps mirrored.

    * The mean is ``mean_file`` (a BlobProto of exactly the size of the uncropped image, read
      where the crop is) or ``mean_value`` (one for all channels or one per channel).
    * ``crop_size``: a random square in TRAIN, the centre, rounded up and left, in TEST.
    * ``mirror``: left and right swapped with probability 1/2, in TEST too.
    * ``force_color`` and ``force_gray`` say how encoded images are decoded (:attr:`color`).
    * In TRAIN also what :mod:`protocaffe.data.augment` describes.

    Several threads may use one at the same time.

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
        augmentation: the random changes of training; None in TEST and where there are none.
        keeps_bytes: whether mean and scale are the same for all images of a batch, so that
            8-bit images may stay as they are until the net takes the batch: copying floats
            from thread to thread takes longer than making them.
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
        augmentation = Augmentation(param, error)
        training = phase == caffe_pb2.TRAIN
        self.augmentation = augmentation if training and augmentation.names else None
        self.mean_file = param.mean_file
        self.mean = self._read_mean(param)
        self.keeps_bytes = not (
            (self.mean_file and (self.random_crop or self.mirror))
            or (self.augmentation and self.augmentation.leaves_gaps)
        )
        self._repeated_mean: Array = np.empty(0, np.float32)
        self._own = threading.local()

    def output_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of what an image of such a shape becomes."""
        channels, height, width = shape
        self._check_mean((channels, height, width))
        crop = self.crop_size
        if not crop:
            return channels, height, width
        any_size = self.augmentation is not None and self.augmentation.resized_crop
        if not any_size and crop > min(height, width) + 2 * self._padding:
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
        if not (self.random_crop or self.mirror or self.augmentation):
            return None
        # Philox is a function from a key and a counter to four numbers: no state to carry along.
        philox = np.random.Philox(key=seed, counter=position * (COLUMNS // 4))
        numbers = philox.random_raw(COLUMNS * count).reshape(count, COLUMNS)
        uniform: Choices = (numbers >> np.uint64(11)) * 2.0**-53
        return uniform

    def __call__(
        self, images: Sequence[Array] | Array, out: Array, choices: Choices | None
    ) -> None:
        """Transform images into a batch.

        Args:
            images: each (channels, height, width), uint8 or float32; with a crop they may
                differ in size.
            out: shape (images, channels, height, width), overwritten. If it is of uint8, which
                :attr:`keeps_bytes` must allow, :meth:`mean_of_batch` and the scale are still to
                be applied.
            choices: from :meth:`choices`, one row per image.
        """
        if isinstance(images, np.ndarray):
            shapes = {images.shape[1:]}
        else:
            shapes = {image.shape for image in images}
        for shape in shapes:
            expected = self.output_shape(shape)
            if expected != out.shape[1:]:
                raise self.error(f"an image of shape {shape} does not fit in {out.shape[1:]}")
        one_by_one = self.augmentation is not None and self.augmentation.one_by_one
        if len(shapes) == 1 and images[0].size <= SMALL and not one_by_one:
            self._transform_together(np.asarray(images), out, choices)
            return
        for i, image in enumerate(images):
            self.transform(image, out[i], None if choices is None else choices[i].tolist())

    def mean_of_batch(self, shape: Sequence[int]) -> Array | None:
        """Return the mean that belongs to every image of a batch of bytes.

        It is repeated for as many images as are finished together: NumPy takes longer to spread
        a mean over many small images than to subtract it.

        Args:
            shape: of the images, (channels, height, width), cropped.
        """
        if self.mean is None:
            return None
        mean = self.centre(self.mean) if self.mean_file else self.mean
        count = images_together(shape)
        if count == 1:
            return mean[None]
        repeated = self._repeated_mean
        if repeated.shape != (count, *shape):
            repeated = self._repeated_mean = np.broadcast_to(mean, (count, *shape)).copy()
        return repeated

    def centre(self, images: Array) -> Array:
        """Return what a crop at the centre leaves of (..., height, width) images, as a view."""
        y, x = self._place(images.shape, None)
        height, width = images.shape[-2:]
        crop = self.crop_size
        return images[..., y : y + (crop or height), x : x + (crop or width)]

    def _transform_together(self, images: Array, out: Array, choices: Choices | None) -> None:
        """Transform images of one size, (images, channels, height, width), in few calls."""
        if choices is None:
            y, x = self._place(images.shape, None)
            height, width = out.shape[-2:]
            inside = (..., slice(y, y + height), slice(x, x + width))
            if out.dtype == np.uint8:
                out[...] = images[inside]
            else:
                normalize(images[inside], self._mean_of(inside), self.scale, out)
            return
        values = images if out.dtype == np.uint8 else self._normalize_padded(images)
        height, width = out.shape[-2:]
        for image, target, row in zip(values, out, choices.tolist(), strict=True):
            y, x = self._place(images.shape, row)
            y, x = y + self._padding, x + self._padding
            window = image[:, y : y + height, x : x + width]
            target[...] = window[..., ::-1] if self._is_mirrored(row) else window
            if self.augmentation:
                self.augmentation.blank(target, row)

    def _normalize_padded(self, images: Array) -> Array:
        """Return images of one size, finished but for the crop, with zeros around them."""
        pad = self._padding
        *count, height, width = images.shape
        values = self._scratch((*count, height + 2 * pad, width + 2 * pad), np.float32)
        inner = values[..., pad : pad + height, pad : pad + width]
        normalize(images, self.mean, self.scale, inner)
        return values

    def transform(self, image: Array, out: Array, row: Row | None) -> None:
        """Transform one image; see :meth:`__call__`."""
        height, width = out.shape[1:]
        image, y, x = self._cut(image, row)
        top, bottom = max(y, 0), min(y + height, image.shape[1])
        left, right = max(x, 0), min(x + width, image.shape[2])
        inside = (..., slice(top, bottom), slice(left, right))
        window, mean = image[inside], self._mean_of(inside)
        if row is not None and self.augmentation and self.augmentation.recolors:
            window = self.augmentation.recolor(window, row)
        mirrored = row is not None and self._is_mirrored(row)
        if out.dtype == np.uint8:
            self._write_bytes(window, mirrored, out)
            return
        window = self._planes(window)
        if mirrored:
            window, mean = window[..., ::-1], mean if mean is None else mean[..., ::-1]
            left, right = x + width - (right - x), x + width - (left - x)
        target = out[:, top - y : bottom - y, left - x : right - x]
        if target.shape != out.shape:
            out[...] = 0
        normalize(window, mean, self.scale, target)
        if row is not None and self.augmentation:
            self.augmentation.blank(out, row)

    def _write_bytes(self, window: Array, mirrored: bool, out: Array) -> None:
        import cv2

        if not is_planar_view(window):
            out[...] = window[..., ::-1] if mirrored else window
        elif mirrored:
            _split(planar(cv2.flip(interleaved(window), 1)), out)
        else:
            _split(window, out)

    def _cut(self, image: Array, row: Row | None) -> tuple[Array, int, int]:
        """Turn and resize an image where that is asked for; return it and the crop's place."""
        if self.augmentation and row is not None:
            image = self.augmentation.rotate(image, row, self._fill)
            if self.augmentation.resized_crop:
                return self.augmentation.cut_resized(image, row, self.crop_size), 0, 0
        return image, *self._place(image.shape, row)

    def _place(self, shape: Sequence[int], row: Row | None) -> tuple[int, int]:
        """Return the crop's top and left; in the padding they are below 0."""
        if not self.crop_size:
            return 0, 0
        room_y, room_x = shape[-2] - self.crop_size, shape[-1] - self.crop_size
        if not self.random_crop or row is None:
            return room_y // 2, room_x // 2
        pad = self._padding
        y, x = int(row[TOP] * (room_y + 2 * pad + 1)), int(row[LEFT] * (room_x + 2 * pad + 1))
        return y - pad, x - pad

    def _is_mirrored(self, row: Row) -> bool:
        return self.mirror and bool(row[MIRROR] < 0.5)

    @property
    def _padding(self) -> int:
        return self.augmentation.padding if self.augmentation else 0

    @property
    def _fill(self) -> Array:
        """What stands for pixels that there are none of, one value per channel."""
        return np.zeros(1) if self.mean is None else self.mean.mean(axis=(1, 2))

    def _mean_of(self, inside: Any) -> Array | None:
        """Return the mean that belongs to a window of an image."""
        return self.mean[inside] if self.mean is not None and self.mean_file else self.mean

    def _planes(self, image: Array) -> Array:
        """Return the image with each channel in one piece."""
        if not is_planar_view(image):
            return image
        planes = self._scratch(image.shape, image.dtype)
        _split(image, planes)
        return planes

    def _scratch(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Return memory that this thread uses again and again; zeros at first."""
        memory: Array | None = getattr(self._own, "memory", None)
        if memory is None or memory.shape != tuple(shape) or memory.dtype != dtype:
            memory = self._own.memory = np.zeros(shape, dtype)
        return memory

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


def _split(image: Array, planes: Array) -> None:
    """Write a planar view's channels one after the other."""
    import cv2

    # OpenCV splits a part of an image far slower than a whole one.
    cv2.split(np.ascontiguousarray(interleaved(image)), list(planes))
