"""Databases and images for the tests of data, recorded ones and small new ones."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np

from protocaffe.data.writer import create_database
from protocaffe.proto.caffe_pb2 import Datum

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
DATABASES = GOLDEN / "dbs"


def recorded(name):
    """The rows of a recorded database's ``records.tsv``."""
    with open(DATABASES / f"{name}.records.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def copy_leveldb(name, folder):
    """Copy a recorded LevelDB, which changes when it is opened."""
    return shutil.copytree(DATABASES / name, folder / name)


def write_database(path, values, backend="lmdb"):
    """Make a database of serialised datums with the keys 000, 001, ..."""
    with create_database(path, backend) as writer:
        for number, value in enumerate(values):
            writer.put(b"%03d" % number, value)
    return path


def raw_datum(image, label=0):
    """A serialised datum with the pixels of a (channels, height, width) array."""
    channels, height, width = image.shape
    datum = Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label)
    return datum.SerializeToString()


def random_images(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(image):
    """The bytes of a png file with (height, width[, channels]) pixels."""
    return cv2.imencode(".png", image)[1].tobytes()
