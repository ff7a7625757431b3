"""Make the databases of CIFAR-10 from its original binary files.

protocaffe convert_cifar_data INPUT OUTPUT [TYPE] reads data_batch_1.bin to data_batch_5.bin and
test_batch.bin in the folder INPUT and makes OUTPUT/cifar10_train_TYPE and
OUTPUT/cifar10_test_TYPE. Channels stay in the files' order, red, green, blue, as in Caffe.

Both appear when everything is done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.binaries import convert_cifar

FLAGS = [
    Flag("input", "the folder with the .bin files", required=True, positional=True),
    Flag("output", "the folder to make the databases in", required=True, positional=True),
    Flag("type", "kind of database", "lmdb", positional=True, choices=("lmdb", "leveldb")),
    Flag("force", "replace databases that exist", default=False),
]


def run(flags: Namespace) -> int:
    """Convert as the flags say."""
    with counting_progress(None) as progress:
        convert_cifar(
            flags.input, flags.output, backend=flags.type, force=flags.force, progress=progress
        )
    return 0
