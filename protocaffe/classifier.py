"""Images to class scores: pycaffe's ``caffe.Classifier``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocaffe import io
from protocaffe.errors import UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

Floats = npt.NDArray[np.float32]

IMAGE_AXES = 3


class Classifier(Net):
    """A net that takes one batch of images and gives class scores.

    Args:
        model_file: the deploy prototxt.
        pretrained_file: the weights.
        image_dims: height and width to which images are resized before they are cropped to the
            net's input; the input's own unless told otherwise.
        mean: see :meth:`protocaffe.io.Transformer.set_mean`.
        input_scale: factor after the mean is subtracted.
        raw_scale: factor before that; 255 for images in 0..1 and nets trained on 0..255.
        channel_swap: order of the channels; (2, 1, 0) for RGB images and nets trained on BGR.

    Attributes:
        transformer: how images become inputs.
        image_dims: see above.
        crop_dims: height and width of the net's input.

    Raises:
        UsageError: the net takes no images, or a setting does not fit it.
        ProtocaffeError: a file is missing, damaged or does not fit the other.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        image_dims: Sequence[int] | None = None,
        mean: npt.ArrayLike | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, caffe_pb2.TEST, weights=pretrained_file)
        name, shape = image_input(self)
        self.transformer = io.make_transformer(
            name, shape, mean, input_scale, raw_scale, channel_swap
        )
        self.crop_dims = shape[2:]
        self.image_dims = tuple(self.crop_dims if image_dims is None else image_dims)
        if len(self.image_dims) != 2 or np.any(np.less(self.image_dims, self.crop_dims)):
            raise UsageError(
                f"image_dims {self.image_dims}: expected a height and a width of at least "
                f"{shape[2]} and {shape[3]}, the size of input '{name}'"
            )

    def predict(self, inputs: Sequence[npt.ArrayLike], oversample: bool = True) -> Floats:
        """Return the values of the net's first output for images.

        Args:
            inputs: images of shape (height, width, channels), as :func:`protocaffe.io.load_image`
                returns them.
            oversample: whether to average over ten crops (corners, centre, and mirrored), else
                the centre crop counts alone.

        Returns:
            One row per image, (n, classes) for oversampled ones.

        Raises:
            UsageError: there are no images, or they do not fit the net.
        """
        if isinstance(inputs, np.ndarray) and inputs.ndim == IMAGE_AXES:
            raise UsageError("predict takes a list of images; for one, write predict([image])")
        images = [io.resize_image(image, self.image_dims) for image in inputs]
        if not images:
            raise UsageError("predict needs at least one image")
        crops = io.oversample(images, self.crop_dims) if oversample else self._centres(images)
        name = self.inputs[0]
        blob = np.array([self.transformer.preprocess(name, crop) for crop in crops])
        scores = self.forward_all(None, **{name: blob})[self.outputs[0]]
        return scores.reshape(len(images), 10, -1).mean(axis=1) if oversample else scores

    def _centres(self, images: Sequence[Floats]) -> list[Floats]:
        height, width = self.crop_dims
        top, left = np.subtract(self.image_dims, self.crop_dims) // 2
        return [image[top : top + height, left : left + width] for image in images]


def image_input(net: Net) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of a net's first input.

    Raises:
        UsageError: the net has no inputs.
    """
    if not net.inputs:
        raise UsageError(
            f"net '{net.name}' has no Input layer to put images into; give the deploy prototxt, "
            f"not the one for training"
        )
    return net.inputs[0], net.blobs[net.inputs[0]].shape
