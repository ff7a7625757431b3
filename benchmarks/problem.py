"""What both sides of a comparison train: one net, one set of weights, one batch of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.proto import caffe_pb2

LEARNING_RATE = 1e-5
"""So small that the loss falls nearly linearly: one update then tells the gradient's length, and
training on the same batch over and over goes nowhere."""

MOMENTUM = 0.9
WEIGHT_DECAY = 0.0005

Array = npt.NDArray[Any]

NET_FILE, WEIGHTS_FILE, INPUTS_FILE = "net.binaryproto", "weights.npz", "inputs.npz"
SEPARATOR = "#"

PIXEL_STD = 60.0
"""About the spread of mean-subtracted 8-bit images."""

READERS = {
    "Data": "data_param",
    "ImageData": "image_data_param",
    "HDF5Data": "hdf5_data_param",
    "MemoryData": "memory_data_param",
    "DummyData": "dummy_data_param",
    "Input": "input_param",
}
"""The layer types that bring data in, with the field that holds their settings."""


class ProblemError(Exception):
    """The net cannot be benchmarked as it stands."""


@dataclass
class Problem:
    """What is trained.

    Attributes:
        net: the TRAIN net, its splits inserted, with ``Input`` layers and without weights.
        weights: the first values of every layer's parameters, by layer name.
        inputs: by the name of the ``Input`` top: images as float32, or labels as int64 below
            the number of classes.
    """

    net: caffe_pb2.NetParameter
    weights: dict[str, list[Array]]
    inputs: dict[str, Array]

    def save(self, folder: Path) -> None:
        """Write the problem into files that ``load`` reads."""
        (folder / NET_FILE).write_bytes(self.net.SerializeToString())
        numbered = {
            f"{layer}{SEPARATOR}{index}": array
            for layer, arrays in self.weights.items()
            for index, array in enumerate(arrays)
        }
        np.savez(folder / WEIGHTS_FILE, allow_pickle=False, **numbered)
        np.savez(folder / INPUTS_FILE, allow_pickle=False, **self.inputs)

    @classmethod
    def load(cls, folder: Path) -> Problem:
        """Read what ``save`` wrote."""
        net = caffe_pb2.NetParameter.FromString((folder / NET_FILE).read_bytes())
        weights: dict[str, list[Array]] = {}
        with np.load(folder / WEIGHTS_FILE) as arrays:
            for key, array in arrays.items():
                weights.setdefault(key.rpartition(SEPARATOR)[0], []).append(array)
        with np.load(folder / INPUTS_FILE) as arrays:
            return cls(net, weights, dict(arrays))


def with_inputs(
    net: caffe_pb2.NetParameter, batch: int | None, image: Sequence[int] | None
) -> tuple[caffe_pb2.NetParameter, dict[str, float]]:
    """Put an ``Input`` layer in the place of every layer that reads data.

    Args:
        net: any net in today's format.
        batch: the batch size; the net's own if None.
        image: channels, height and width of the first top; the net's own if None.

    Returns:
        The new net, and for every input the standard deviation of the data it is made for.

    Raises:
        ProblemError: a layer does not say what shape its images have.
    """
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    spread: dict[str, float] = {}
    for layer in result.layer:
        if layer.type not in READERS:
            continue
        shapes = input_shapes(layer, image)
        spread.update((top, input_std(layer, index)) for index, top in enumerate(layer.top))
        layer.ClearField(READERS[layer.type])
        layer.ClearField("transform_param")
        layer.type = "Input"
        for shape in shapes:
            layer.input_param.shape.add(dim=[batch or shape[0], *shape[1:]])
    return result, spread


def input_shapes(layer: caffe_pb2.LayerParameter, image: Sequence[int] | None) -> list[list[int]]:
    """Return the shape of every top of a layer that reads data."""
    if layer.type in ("Input", "DummyData"):
        declared = layer.input_param if layer.type == "Input" else layer.dummy_data_param
        shapes = [list(shape.dim) for shape in declared.shape]
        if not shapes:
            raise ProblemError(f"layer '{layer.name}' ({layer.type}) has no 'shape'; give it one")
        shapes = shapes * len(layer.top) if len(shapes) == 1 else shapes
        if image:
            shapes[0][1:] = image
        return shapes
    batch = getattr(layer, READERS[layer.type]).batch_size
    crop = layer.transform_param.crop_size
    if image is None and not crop:
        raise ProblemError(
            f"layer '{layer.name}' ({layer.type}) does not say how large its images are; "
            f"give --input-shape, for example 3,227,227"
        )
    return [[batch, *(image or (3, crop, crop))], *([batch] for _ in layer.top[1:])]


def input_std(layer: caffe_pb2.LayerParameter, top: int) -> float:
    """Return how far the data of one top spreads around 0."""
    if layer.type == "DummyData":
        fillers = layer.dummy_data_param.data_filler
        if fillers:
            filler = fillers[min(top, len(fillers) - 1)]
            return filler.std if filler.type == "gaussian" else 1.0
    if layer.HasField("transform_param") or layer.type in ("Data", "ImageData"):
        return PIXEL_STD * layer.transform_param.scale
    return 1.0


def without_dropout(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """Return the net with every dropout ratio set to 0, so that its loss is determined."""
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        if layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = 0
    return result
