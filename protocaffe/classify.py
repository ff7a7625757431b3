"""What images show: a trained net's best classes for image files.

Images are prepared as an ImageData layer of phase TEST prepares them, by OpenCV and the data
transformer: as they were in training, where ``transform_param`` is the one of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocaffe.data.database import open_database
from protocaffe.data.datum import Array, decode_image, planar, read_record, resize_image
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError, FileError, NetError, UsageError
from protocaffe.graph import apply_rules, merge_state
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import LayerParameter, TransformationParameter
from protocaffe.proto.files import StrPath, missing_file, read_bytes
from protocaffe.proto.text import read_net, read_text
from protocaffe.scaffold import DATA_LAYERS
from protocaffe.zoo.catalogue import (
    CROP_MARGIN,
    PUBLISHED_MEANS,
    README,
    find_model,
    find_named,
    read_readme,
)
from protocaffe.zoo.download import weights_path

LABELS = "labels.txt"
LARGE = 64
"""Crops of more pixels per side than this are taken out of photos, not out of drawings."""


@dataclass(frozen=True)
class Guess:
    """One class for one image.

    Attributes:
        label: the number of the class.
        name: its name, or an empty string.
        score: the net's output for it, a probability after a Softmax layer.
    """

    label: int
    name: str
    score: float


@dataclass
class ModelFiles:
    """What belongs to a trained model.

    Attributes:
        deploy: the prototxt with an Input layer.
        weights: its caffemodel; None if there is none.
        labels: the names of its classes, one per line; None if there are none.
        transform: what was done to the images that it was tested on.
        size: height and width of these images before the centre was cut out; None if unknown.
    """

    deploy: Path
    weights: Path | None = None
    labels: Path | None = None
    transform: TransformationParameter = field(default_factory=TransformationParameter)
    size: tuple[int, int] | None = None


def find_files(model: str) -> ModelFiles:
    """Find the files of a model.

    Args:
        model: a deploy prototxt; or a folder with ``deploy.prototxt`` and, as far as there,
            ``train_val.prototxt``, ``labels.txt`` (that in its test database comes first) and a
            caffemodel (the newest); or the name of a model of the zoo.

    Raises:
        FileError: there is no such file, or a file of the folder is damaged.
        UsageError: there is no such model.
    """
    path = Path(model)
    if path.is_file():
        return ModelFiles(path)
    if not path.is_dir() and (path.suffix == ".prototxt" or len(path.parts) > 1):
        raise missing_file(path)
    folder = path if path.is_dir() else find_model(model).folder
    files = ModelFiles(folder / "deploy.prototxt", _find_weights(folder))
    if not files.deploy.is_file():
        raise missing_file(files.deploy)
    places = [folder]
    data = _test_data(folder / "train_val.prototxt")
    if data is not None:
        files.transform = data.transform_param
        _find_mean(files.transform, folder)
        database = find_named(data.data_param.source, folder)
        if database is not None:
            places.insert(0, database)
        files.size = _stored_size(data, database)
    files.labels = next((each / LABELS for each in places if (each / LABELS).is_file()), None)
    return files


def _find_weights(folder: Path) -> Path | None:
    files = [*folder.glob("*.caffemodel"), *folder.glob("*.caffemodel.h5")]
    if (folder / README).is_file():
        model = read_readme(folder / README)
        if model.caffemodel and weights_path(model).is_file():
            files.append(weights_path(model))
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def _find_mean(transform: TransformationParameter, folder: Path) -> None:
    """Name the mean file by where it is; or take the values that a published one comes to."""
    mean = find_named(transform.mean_file, folder)
    if mean is not None:
        transform.mean_file = str(mean)
    elif Path(transform.mean_file).name in PUBLISHED_MEANS:
        transform.mean_value.extend(PUBLISHED_MEANS[Path(transform.mean_file).name])
        transform.ClearField("mean_file")


def _stored_size(data: LayerParameter, database: Path | None) -> tuple[int, int] | None:
    """Return height and width of the images that crops are taken from; None if it is not known.

    Of a mean image the size counts anyway. Large crops are from images that are larger still.
    """
    crop, images = data.transform_param.crop_size, data.image_data_param
    if not crop or data.transform_param.mean_file:
        return None
    if images.new_height and images.new_width:
        return images.new_height, images.new_width
    if database is not None:
        return _first_size(database, data)
    return (round(crop * CROP_MARGIN),) * 2 if crop > LARGE else None


def _first_size(path: Path, data: LayerParameter) -> tuple[int, int] | None:
    """Return height and width of a database's first image; None if it cannot be read."""
    backend = caffe_pb2.DataParameter.DB.Name(data.data_param.backend)
    try:
        with open_database(path, backend.lower()) as database:
            _, image = read_record(next(database.records()), str(path))
    except DataError:
        return None
    return image.shape[1], image.shape[2]


def _test_data(train_val: Path) -> LayerParameter | None:
    """Return the layer that brings the data of phase TEST."""
    if not train_val.is_file():
        return None
    net, source = read_net(train_val)
    kept, _ = apply_rules(net, merge_state(net, caffe_pb2.TEST), source)
    return next((node.param for node in kept if node.param.type in DATA_LAYERS), None)


class ImageClassifier:
    """A net with what its images need.

    Args:
        net: of phase TEST, with one Input layer (N, 1 or 3, H, W) and class scores as its first
            output.
        transform: mean and scale; ``crop_size`` and ``mirror`` do not count.
        size: height and width to resize images to before the centre is cut out; None for the size
            of the mean file, or that of the input without one.
        names: of the classes, by label; classes beyond them have none.

    Raises:
        NetError: the net takes no images, or gives no class scores.
        UsageError: ``size`` or ``names`` do not fit it.
        ProtocaffeError: the mean does not fit it or cannot be read.
    """

    def __init__(
        self,
        net: Net,
        transform: TransformationParameter,
        *,
        size: tuple[int, int] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.net = net
        self.names = names
        shape = net.blobs[net.inputs[0]].shape if len(net.inputs) == 1 else ()
        if len(shape) != 4 or shape[1] not in (1, 3):
            found = f"shape {shape}" if shape else f"{len(net.inputs)} inputs"
            raise NetError(
                f"net '{net.name}' takes no images: expected one Input layer of shape (N, 3, H, W) "
                f"or (N, 1, H, W), a deploy prototxt, got {found}"
            )
        self._batch, self._channels, *extents = shape
        self._extents = (extents[0], extents[1])
        self._check_output()
        param = TransformationParameter()
        param.CopyFrom(transform)
        param.mirror = False
        param.crop_size = 0
        mean = Transformer(param, caffe_pb2.TEST).mean
        stored = None if mean is None or mean.shape[1:] == (1, 1) else mean.shape[1:]
        self._size = size or stored or self._extents
        self._check_size()
        param.crop_size = 0 if self._size == self._extents else self._extents[0]
        self._transformer = Transformer(param, caffe_pb2.TEST)

    def classify(self, images: Sequence[StrPath], top_k: int = 5) -> Iterator[list[Guess]]:
        """Yield the best classes of every image file, best first.

        Raises:
            FileError: a file cannot be read.
            DataError: it is no image.
        """
        for start in range(0, len(images), self._batch):
            for scores in self._scores(images[start : start + self._batch]):
                best = np.argsort(-scores, kind="stable")[:top_k].tolist()
                yield [Guess(label, self._name(label), float(scores[label])) for label in best]

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else ""

    def _scores(self, images: Sequence[StrPath]) -> npt.NDArray[np.float32]:
        blob = self.net.blobs[self.net.inputs[0]]
        if blob.shape[0] != len(images):
            blob.reshape(len(images), *blob.shape[1:])
            self.net.reshape()
        self._transformer([self._read(image) for image in images], blob.data, None)
        self.net.run_forward()
        scores = self.net.blobs[self.net.outputs[0]].data.reshape(len(images), -1)
        return np.array(scores, np.float32)

    def _read(self, path: StrPath) -> Array:
        image = decode_image(read_bytes(path), color=self._channels == 3)
        if image is None:
            raise DataError(f"{path}: is no image that OpenCV can read")
        if image.shape[:2] != self._size:
            image = resize_image(image, *self._size)
        return planar(image)

    def _check_output(self) -> None:
        if not self.net.outputs:
            raise NetError(f"net '{self.net.name}' has no outputs")
        name = self.net.outputs[0]
        shape = self.net.blobs[name].shape
        classes = int(np.prod(shape[1:]))
        if len(shape) < 2 or shape[0] != self._batch or classes != shape[1]:
            raise NetError(
                f"net '{self.net.name}' gives no class scores: expected output '{name}' of shape "
                f"({self._batch}, classes), got {shape}"
            )
        if len(self.names) > classes:
            raise UsageError(
                f"there are {len(self.names)} names of classes, but output '{name}' has {classes} "
                f"classes; give the net's own names with --labels"
            )

    def _check_size(self) -> None:
        (height, width), (h, w) = self._size, self._extents
        if height < h or width < w:
            raise UsageError(
                f"images of {height}x{width} are smaller than the net's input, {h}x{w}; resize to "
                f"at least that"
            )
        if (height, width) != (h, w) and h != w:
            raise UsageError(f"the net's input, {h}x{w}, is no square, so --resize must be {h},{w}")


def read_names(path: StrPath) -> list[str]:
    """Return the names of classes, one per line.

    Raises:
        FileError: the file cannot be read or is empty.
    """
    names = read_text(path).splitlines()
    if not names:
        raise FileError(f"{path}: expected the name of a class in every line, got an empty file")
    return names


def add_mean(transform: TransformationParameter, mean: str) -> None:
    """Replace the mean by a ``.binaryproto`` or ``.npy`` file or by values.

    Args:
        transform: is changed.
        mean: the file; or values, one for all channels or one each in BGR order, separated by
            commas. Of a ``.npy`` file of shape (channels, height, width) the channels' means count.

    Raises:
        FileError: the file cannot be read.
        UsageError: it is neither.
    """
    transform.ClearField("mean_file")
    transform.ClearField("mean_value")
    if mean.endswith(".npy"):
        transform.mean_value.extend(_npy_means(mean))
        return
    try:
        transform.mean_value.extend(float(value) for value in mean.split(","))
    except ValueError:
        if not Path(mean).exists() and "," in mean:
            raise UsageError(
                f"expected a mean file or numbers separated by commas, got '{mean}'"
            ) from None
        transform.mean_file = mean


def _npy_means(path: str) -> list[float]:
    read_bytes(path)  # whose errors are for people
    try:
        image = np.load(path, allow_pickle=False)
        return [float(each) for each in image.reshape(len(image), -1).mean(axis=1)]
    except (ValueError, TypeError, OSError) as error:
        raise FileError(f"{path}: is no NumPy file with a mean image: {error}") from None
