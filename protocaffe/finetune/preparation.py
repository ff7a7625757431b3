"""What is done to images before they go into a fine-tuned net: the same as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocaffe.blob import Array
from protocaffe.data.convert import ImageOptions
from protocaffe.data.mean import channel_means
from protocaffe.errors import UsageError
from protocaffe.finetune.origin import Origin
from protocaffe.finetune.trunk import SCORING
from protocaffe.log import log
from protocaffe.proto.binary import blob_to_array, read_binary
from protocaffe.proto.caffe_pb2 import BlobProto, TransformationParameter
from protocaffe.proto.stored import stored_layers
from protocaffe.zoo.catalogue import CROP_MARGIN, PUBLISHED_MEANS, find_named

LARGE = 64
"""Images of more pixels per side than this are stored as JPEG files, to save space."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Preparation:
    """How images become what the net sees.

    Attributes:
        channels: 3 (BGR) or 1 (grey).
        size: height and width of what goes into the net.
        stored: height and width of the images in the databases; crops are taken from them.
        transform: crop, scale and ``mean_value``.
        mirror: whether half of the training images are mirrored.
        mean_file: a mean image of the stored size, if there is one.
        own_mean: whether the mean of the training images is to be taken off.
    """

    channels: int
    size: Size
    stored: Size
    transform: TransformationParameter
    mirror: bool
    mean_file: Path | None
    own_mean: bool

    @property
    def options(self) -> ImageOptions:
        """How the images get into databases."""
        height, width = self.stored
        return ImageOptions(
            gray=self.channels == 1,
            encode_type="jpg" if max(self.stored) > LARGE else "",
            resize_height=height,
            resize_width=width,
        )


def choose_preparation(
    origin: Origin,
    size: Size | None = None,
    mean_values: Sequence[float] = (),
    scale: float | None = None,
    mirror: bool = False,
) -> Preparation:
    """Prepare images as those that the model was trained with, unless told otherwise.

    Args:
        origin: the model.
        size: height and width of the net's input; the model's own if None.
        mean_values: taken off every channel, instead of the model's mean.
        scale: factor on the pixels after that; the model's own if None.
        mirror: mirror half of the training images, even if the model's were not.

    Raises:
        UsageError: the model does not say how large its images are, or the means do not fit.
    """
    old = origin.trunk.transform
    image = None if mean_values else _mean_image(origin)
    if image is None:
        mean_values = mean_values or PUBLISHED_MEANS.get(Path(old.mean_file).name, ())
    if old.mean_file and not (image or mean_values):
        log.warning(
            "The mean image %s is missing; the mean of your images takes its place", old.mean_file
        )
    size = size or _own_size(origin, image)
    channels = origin.shape[0] or (image[1].shape[0] if image else _channels(origin))
    crops = bool(old.crop_size) and size[0] == size[1]
    if not crops:
        stored = size
    elif image and min(image[1].shape[1:]) >= size[0]:
        stored = image[1].shape[1], image[1].shape[2]
    else:
        stored = round(size[0] * CROP_MARGIN), round(size[1] * CROP_MARGIN)
    transform = TransformationParameter()
    if crops:
        transform.crop_size = size[0]
    if scale is not None or old.HasField("scale"):
        transform.scale = old.scale if scale is None else scale
    fits = image is not None and image[1].shape == (channels, *stored)
    if not fits:
        means = mean_values or (channel_means(image[1]) if image else old.mean_value)
        transform.mean_value.extend(round(value, 4) for value in means)
    if len(transform.mean_value) not in (0, 1, channels):
        raise UsageError(
            f"{len(transform.mean_value)} mean values for images of {channels} channel(s); give "
            f"one, or one per channel"
        )
    return Preparation(
        *(channels, size, stored, transform, mirror or origin.trunk.mirror),
        mean_file=image[0] if image and fits else None,
        own_mean=bool(old.mean_file) and not (image or mean_values),
    )


def _own_size(origin: Origin, image: tuple[Path, Array] | None) -> Size:
    crop = origin.trunk.transform.crop_size
    if origin.shape[1]:
        return origin.shape[1], origin.shape[2]
    if crop:
        return crop, crop
    if image:
        return image[1].shape[1], image[1].shape[2]
    raise UsageError(
        f"{origin.name} does not say how large its images are: give --size=NUMBER (of pixels, "
        f"height and width), or --size=HEIGHT,WIDTH"
    )


def _mean_image(origin: Origin) -> tuple[Path, Array] | None:
    """Find the mean image that the model names: from here, in its folder, or among the models."""
    path = find_named(origin.trunk.transform.mean_file, origin.folder)
    if path is None:
        return None
    mean = blob_to_array(read_binary(path, BlobProto()))
    return path, mean.reshape(mean.shape[-3:])


def _channels(origin: Origin) -> int:
    """Return how many channels the first layer with weights reads, 3 if that is not known."""
    first = next(layer for layer in origin.trunk.layers if layer.type in SCORING)
    if origin.weights is not None and first.type == "Convolution":
        with stored_layers(origin.weights) as layers:
            for layer in layers:
                if layer.name == first.name and layer.blobs:
                    return layer.blobs[0].shape[1] * first.convolution_param.group
    return 3
