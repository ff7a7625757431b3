"""Images to net inputs and back, arrays to messages and back: pycaffe's ``caffe.io``."""

from __future__ import annotations

import io as byte_io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from protocaffe.data.datum import datum_array, decode_image
from protocaffe.errors import DataError, FileError, UsageError, did_you_mean
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import array_to_blob, blob_to_array, read_binary
from protocaffe.proto.files import StrPath, read_bytes

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.floating[Any]]

LUMA = (0.2125, 0.7154, 0.0721)
"""How much red, green and blue give to gray (Rec. 709 as scikit-image has it, which read
pycaffe's images)."""

NEAREST, LINEAR = 0, 1


# -- images ------------------------------------------------------------------------------


def load_image(filename: StrPath, color: bool = True) -> Floats:
    """Read an image file.

    Args:
        filename: jpg, png or whatever else OpenCV reads; rotation marks (EXIF) are ignored.
        color: whether to return three channels, in RGB order, of gray images too; else one.

    Returns:
        Pixels in 0..1, shape (height, width, 3) or (height, width, 1). Alpha is dropped.

    Raises:
        FileError: the file cannot be read.
        DataError: it is no image.
    """
    pixels = decode_image(read_bytes(filename), color=None)
    if pixels is None:
        raise DataError(f"{filename}: is no image that OpenCV can read")
    values = _unit_range(pixels)
    if values.ndim == 2:
        return np.repeat(values[:, :, None], 3 if color else 1, axis=2)
    rgb = values[:, :, 2::-1]
    if color:
        return np.ascontiguousarray(rgb)
    gray: Floats = (rgb @ np.array(LUMA))[:, :, None].astype(np.float32)
    return gray


def _unit_range(pixels: Array) -> Floats:
    """Scale whole numbers so that the largest of their type becomes 1."""
    largest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    return np.divide(pixels, largest, dtype=np.float64).astype(np.float32)


def load_array(filename: StrPath) -> Array:
    """Read a mean, or another array, from a ``.npy`` file or a binaryproto.

    An old blob's first axis of extent 1 is dropped, so that :meth:`Transformer.set_mean` takes it.

    Raises:
        FileError: the file cannot be read, or is of another kind.
    """
    if os.fspath(filename).endswith(".npy"):
        try:
            stored = np.load(byte_io.BytesIO(read_bytes(filename)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FileError(f"{filename}: is no NumPy array: {error}") from None
        return np.asarray(stored)
    array: Array = blob_to_array(read_binary(filename, caffe_pb2.BlobProto()))
    return array[0] if array.ndim == 4 and len(array) == 1 else array


def resize_image(im: npt.ArrayLike, new_dims: Sequence[int], interp_order: int = LINEAR) -> Floats:
    """Return an image in another size, without antialiasing.

    The numbers are pycaffe's (scikit-image and SciPy before they smoothed): images of one or
    three channels are sampled at pixel centres, and what lies outside counts as the image's
    smallest value, so that the border of an enlarged image is darker; with any other number of
    channels the first and last pixels stay where they are.

    Args:
        im: shape (height, width, channels).
        new_dims: height and width.
        interp_order: 1 for linear, 0 for the nearest pixel.

    Raises:
        UsageError: no such image, size or order.
    """
    image = np.asarray(im)
    _check_resize(image, new_dims, interp_order)
    aligned = image.shape[2] not in (1, 3)
    low = float(image.min())
    resized = np.subtract(image, low, dtype=np.float64)
    for axis, extent in enumerate(new_dims):
        at = _sample_places(image.shape[axis], int(extent), aligned)
        resized = _sampled(resized, axis, np.floor(at + 0.5) if interp_order == NEAREST else at)
    return np.asarray(resized + low, np.float32)


def _check_resize(image: Array, new_dims: Sequence[int], interp_order: int) -> None:
    if image.ndim != 3 or 0 in image.shape:
        raise UsageError(
            f"resize_image: expected an image of shape (height, width, channels), got shape "
            f"{image.shape}"
        )
    if len(new_dims) != 2 or min(new_dims) < 1:
        raise UsageError(f"resize_image: expected a new height and width, got {tuple(new_dims)}")
    if interp_order not in (NEAREST, LINEAR):
        raise UsageError(
            f"resize_image: interp_order {interp_order} is not supported; give 0 (nearest) or 1 "
            f"(linear), or resize with cv2.resize before"
        )


def _sample_places(old: int, new: int, aligned: bool) -> Places:
    """Return where along an axis of the old image the pixels of the new one lie."""
    if aligned:
        return np.linspace(0, old - 1, new)
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _sampled(values: Array, axis: int, at: Places) -> Array:
    """Interpolate linearly along an axis; outside there are zeros."""
    shape = [1] * values.ndim
    shape[axis] = -1
    last = values.shape[axis] - 1
    first = np.floor(at).astype(int)
    shares = []
    for index, weight in ((first, 1 - (at - first)), (first + 1, at - first)):
        inside = np.where((index < 0) | (index > last), 0, weight)
        shares.append(np.take(values, index.clip(0, last), axis) * inside.reshape(shape))
    total: Array = shares[0] + shares[1]
    return total


def oversample(images: Iterable[npt.ArrayLike], crop_dims: Sequence[int]) -> Floats:
    """Return ten crops of every image: four corners, centre, and the mirror images of these.

    Args:
        images: of one shape (height, width, channels).
        crop_dims: height and width of the crops.

    Returns:
        Shape (10 · number of images, height, width, channels): upper left, upper right, lower
        left, lower right, centre, then the five mirrored, image by image.

    Raises:
        UsageError: the images are not of one shape, or smaller than the crop.
    """
    batch = [np.asarray(image) for image in images]
    height, width = (int(extent) for extent in crop_dims)
    if not batch or batch[0].ndim != 3 or len({image.shape for image in batch}) != 1:
        shapes = sorted({image.shape for image in batch})
        raise UsageError(
            f"oversample: expected images of one shape (height, width, channels), got {shapes}"
        )
    down, right = batch[0].shape[0] - height, batch[0].shape[1] - width
    if min(down, right) < 0:
        raise UsageError(
            f"oversample: crops of {height} x {width} do not fit into images of "
            f"{batch[0].shape[0]} x {batch[0].shape[1]}"
        )
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    crops = np.empty((len(batch), 2, 5, height, width, batch[0].shape[2]), np.float32)
    for number, image in enumerate(batch):
        for place, (y, x) in enumerate(corners):
            crops[number, 0, place] = image[y : y + height, x : x + width]
    crops[:, 1] = crops[:, 0, :, :, ::-1]
    return crops.reshape(-1, *crops.shape[3:])


class Transformer:
    """Turns images into what a net's inputs take, and back.

    :meth:`preprocess` resizes, transposes, swaps channels, scales by ``raw_scale``, subtracts the
    mean and scales by ``input_scale``, in this order; steps that were not set are left out.

    Args:
        inputs: shape of every input, such as ``{"data": net.blobs["data"].data.shape}``.

    Attributes:
        inputs: see above.
        transpose, channel_swap, raw_scale, mean, input_scale: what was set, by input.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Floats] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: npt.ArrayLike) -> Floats:
        """Return an image as the net takes it, without the batch axis; the image stays as it is.

        Args:
            in_: name of the input.
            data: mostly (height, width, channels), as :func:`load_image` returns it.

        Raises:
            UsageError: no such input, or the image does not fit.
        """
        shape = self._shape(in_)
        values = np.array(data, np.float32)
        if len(shape) == 4 and values.shape[:2] != shape[2:]:
            values = resize_image(values, shape[2:])
        if in_ in self.transpose:
            values = self._transposed(in_, values, self.transpose[in_])
        if in_ in self.channel_swap or in_ in self.mean:
            self._check_channels(in_, values)
        if in_ in self.channel_swap:
            values = values[list(self.channel_swap[in_])]
        if in_ in self.raw_scale:
            values *= self.raw_scale[in_]
        if in_ in self.mean:
            values -= self.mean[in_]
        if in_ in self.input_scale:
            values *= self.input_scale[in_]
        return values

    def deprocess(self, in_: str, data: npt.ArrayLike) -> Floats:
        """Undo :meth:`preprocess`, but for the resizing: an input blob's values to an image.

        Args:
            in_: name of the input.
            data: one image as the net takes it, with or without a batch axis of extent 1.

        Raises:
            UsageError: no such input, or the values do not fit.
        """
        axes = len(self._shape(in_))
        values = np.array(data, np.float32)
        if values.ndim == axes and len(values) == 1:
            values = values[0]
        if in_ in self.input_scale:
            values /= self.input_scale[in_]
        if in_ in self.channel_swap or in_ in self.mean:
            self._check_channels(in_, values)
        if in_ in self.mean:
            values += self.mean[in_]
        if in_ in self.raw_scale:
            values /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            values = values[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            values = self._transposed(in_, values, np.argsort(self.transpose[in_]).tolist())
        return values

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes; ``(2, 0, 1)`` turns (H, W, C) into (C, H, W).

        Raises:
            UsageError: no such input, or not a permutation of its axes without the first.
        """
        axes = len(self._shape(in_)) - 1
        if sorted(order) != list(range(axes)):
            raise UsageError(
                f"transposing input '{in_}' needs an order of its {axes} axes without the batch's, "
                f"such as (2, 0, 1); got {tuple(order)}"
            )
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels; ``(2, 1, 0)`` turns RGB into BGR. Needs channels first.

        Raises:
            UsageError: no such input, or not as many channels as it has.
        """
        channels = self._channels(in_)
        if len(order) != channels or not all(0 <= channel < channels for channel in order):
            raise UsageError(
                f"the channel swap of input '{in_}' needs {channels} numbers from 0 to "
                f"{channels - 1}; got {tuple(order)}"
            )
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor before the mean is subtracted; 255 for images in 0..1.

        Raises:
            UsageError: no such input.
        """
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: npt.ArrayLike) -> None:
        """Set what is subtracted: one value per channel, or an image.

        Args:
            in_: name of the input.
            mean: shape (channels), (height, width) or (channels, height, width), in the net's
                channel order and range; an image of another size than the input is resized.

        Raises:
            UsageError: no such input, or another shape.
        """
        channels = self._channels(in_)
        values = np.array(mean, np.float32)
        if values.shape == (channels,):
            self.mean[in_] = values[:, None, None]
            return
        image = values[None] if values.ndim == 2 else values
        if image.ndim != 3 or len(image) not in (1, channels):
            raise UsageError(
                f"the mean of input '{in_}' needs {channels} values or an image of {channels} "
                f"channels; got shape {values.shape}"
            )
        size = self.inputs[in_][2:]
        if image.shape[1:] != size:
            image = resize_image(image.transpose(1, 2, 0), size).transpose(2, 0, 1)
        self.mean[in_] = image

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor after the mean is subtracted.

        Raises:
            UsageError: no such input.
        """
        self._shape(in_)
        self.input_scale[in_] = scale

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise UsageError(
                f"'{in_}' is none of the net's inputs{did_you_mean(in_, self.inputs)} "
                f"(it has: {', '.join(self.inputs)})"
            )
        return self.inputs[in_]

    def _channels(self, in_: str) -> int:
        shape = self._shape(in_)
        if len(shape) != 4:
            raise UsageError(f"input '{in_}' has shape {shape}, so it takes no images")
        return shape[1]

    def _transposed(self, in_: str, values: Array, order: Sequence[int]) -> Array:
        if values.ndim != len(order):
            raise UsageError(
                f"input '{in_}' is transposed by {tuple(order)}, but what came has shape "
                f"{values.shape}; expected {len(order)} axes"
            )
        return np.transpose(values, order)

    def _check_channels(self, in_: str, values: Floats) -> None:
        channels = self._channels(in_)
        if values.ndim != 3 or len(values) != channels:
            raise UsageError(
                f"input '{in_}' takes {channels} channel(s), which must be the first axis before "
                f"channel swap and mean; got shape {values.shape} (set_transpose(in_, (2, 0, 1)) "
                f"puts them there, load_image(name, color=...) decides how many there are)"
            )


def make_transformer(
    in_: str,
    shape: Sequence[int],
    mean: npt.ArrayLike | None = None,
    input_scale: float | None = None,
    raw_scale: float | None = None,
    channel_swap: Sequence[int] | None = None,
) -> Transformer:
    """Return a transformer of (H, W, C) images for one input; None leaves a setting out.

    Raises:
        UsageError: the input takes no images, or a setting does not fit it.
    """
    transformer = Transformer({in_: shape})
    if len(shape) != 4:
        raise UsageError(f"input '{in_}' has shape {tuple(shape)}, so it takes no images")
    transformer.set_transpose(in_, (2, 0, 1))
    if mean is not None:
        transformer.set_mean(in_, mean)
    if input_scale is not None:
        transformer.set_input_scale(in_, input_scale)
    if raw_scale is not None:
        transformer.set_raw_scale(in_, raw_scale)
    if channel_swap is not None:
        transformer.set_channel_swap(in_, channel_swap)
    return transformer


# -- messages ----------------------------------------------------------------------------


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> Array:
    """Return a blob's values, or its gradient, in its shape; old blobs have four axes.

    Raises:
        FileError: it holds another number of values than its shape has.
    """
    array: Array = blob_to_array(blob, diff=return_diff)
    return array


def array_to_blobproto(
    arr: npt.ArrayLike, diff: npt.ArrayLike | None = None
) -> caffe_pb2.BlobProto:
    """Return a blob with the array's shape and values as float32, and a gradient if given."""
    return array_to_blob(np.asarray(arr, np.float32), diff=diff)


def arraylist_to_blobprotovector_str(arraylist: Iterable[npt.ArrayLike]) -> bytes:
    """Return a serialised BlobProtoVector of the arrays."""
    return caffe_pb2.BlobProtoVector(blobs=map(array_to_blobproto, arraylist)).SerializeToString()


def blobprotovector_str_to_arraylist(str: bytes) -> list[Array]:  # noqa: A002 (pycaffe's name)
    """Return the arrays of a serialised BlobProtoVector.

    Raises:
        FileError: the bytes are no such message, or a blob is damaged.
    """
    try:
        vector = caffe_pb2.BlobProtoVector.FromString(str)
    except DecodeError as error:
        raise FileError(f"not a BlobProtoVector message: {error}") from None
    return [blobproto_to_array(blob) for blob in vector.blobs]


def array_to_datum(arr: npt.ArrayLike, label: int | None = None) -> caffe_pb2.Datum:
    """Return an array as a Datum: uint8 as ``data``, anything else as ``float_data``.

    Args:
        arr: shape (channels, height, width).
        label: its label, if it has one.

    Raises:
        UsageError: it has not three axes.
    """
    values = np.asarray(arr)
    if values.ndim != 3:
        raise UsageError(
            f"a datum needs an array of shape (channels, height, width); got {values.shape}"
        )
    channels, height, width = values.shape
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width, label=label)
    if values.dtype == np.uint8:
        datum.data = values.tobytes()
    else:
        datum.float_data.extend(values.astype(np.float64).ravel().tolist())
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> Array:
    """Return a datum's values, shape (channels, height, width); see ``array_to_datum``.

    Encoded images are decoded, in BGR order. The label is ``datum.label``.

    Raises:
        DataError: its image cannot be decoded, or it holds another number of values than it says.
    """
    return datum_array(datum)
