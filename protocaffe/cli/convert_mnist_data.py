"""Make a database of MNIST, or another set in idx files, from its original files.

protocaffe convert_mnist_data IMAGES LABELS DB takes files such as train-images-idx3-ubyte and
train-labels-idx1-ubyte, as they are or as .gz.

DB appears when everything is done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.binaries import convert_mnist

FLAGS = [
    Flag("images", "the idx file of images", required=True, positional=True),
    Flag("labels", "the idx file of their labels", required=True, positional=True),
    Flag("db", "the database to make", required=True, positional=True),
    Flag("backend", "kind of database", default="lmdb", choices=("lmdb", "leveldb")),
    Flag("force", "replace DB if it exists", default=False),
]


def run(flags: Namespace) -> int:
    """Convert as the flags say."""
    with counting_progress(None) as progress:
        convert_mnist(
            flags.images,
            flags.labels,
            flags.db,
            backend=flags.backend,
            force=flags.force,
            progress=progress,
        )
    return 0
