"""The nets whose numbers OpenCV 4 recorded, with weights and inputs made by formulas."""

from pathlib import Path

import numpy as np

from protocaffe.net import Net

FOLDER = Path(__file__).parent
NAMES = ("mixed", "old")
BATCH = 2
WRONG = ("stem/bn", "stem/scale")
"""Layers in the middle of work in place, of which OpenCV 4.14 returns something else."""


def save_weights(name, path):
    """Write a caffemodel for the net whose every number follows from its place."""
    net = Net(FOLDER / f"{name}.prototxt")
    for layer in net.layers:
        for place, blob in enumerate(layer.blobs):
            values = np.cos(1.7 * np.arange(blob.count) + place).reshape(blob.shape)
            statistics = layer.type == "BatchNorm"
            blob.data[...] = 1 + values / 2 if statistics else 0.3 * values
    net.save(path)


def inputs(name):
    """Return values for the net's inputs, for another batch size than the prototxt's."""
    blobs = Net(FOLDER / f"{name}.prototxt").blobs
    names = ("data", "side") if name == "mixed" else ("data",)
    shapes = [(BATCH, *blobs[each].shape[1:]) for each in names]
    return {
        each: np.sin(np.arange(np.prod(shape)) ** 1.1).reshape(shape).astype(np.float32)
        for each, shape in zip(names, shapes, strict=True)
    }


def load(dnn, name, path):
    """Return the net as a ``dnn`` module reads it, with its inputs set."""
    net = dnn.readNetFromCaffe(str(FOLDER / f"{name}.prototxt"), str(path))
    for each, values in inputs(name).items():
        net.setInput(values, each)
    return net
