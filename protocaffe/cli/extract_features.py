"""Run a trained net and store what some of its blobs hold, image by image, in databases.

protocaffe extract_features WEIGHTS NET BLOBS DBS NUM_BATCHES [TYPE] runs the net of phase TEST.
BLOBS and DBS are names separated by commas, one database per blob. With TYPE hdf5, DBS are HDF5
files, one per blob or one for all, in which a blob is a data set of its name. The databases appear
when everything is done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from protocaffe.cli.common import COMPUTING, chosen_engine, warn_of_inputs
from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.features import BACKENDS, extract_features
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

FLAGS = [
    Flag("weights", "the caffemodel", required=True, positional=True),
    Flag("net", "the net prototxt, with a data layer", required=True, positional=True),
    Flag("blobs", "the blobs, separated by commas", required=True, positional=True),
    Flag("dbs", "the databases to make, separated by commas", required=True, positional=True),
    Flag("num_batches", "how often to run it", 0, required=True, positional=True, at_least=1),
    Flag("type", "kind of database", "lmdb", positional=True, choices=BACKENDS),
    Flag("mode", "CPU, for scripts that say so", "CPU", positional=True, choices=("CPU", "GPU")),
    Flag("device", "the GPU's number, for scripts that say so", "0", positional=True),
    *COMPUTING,
    Flag("force", "replace databases that exist", default=False),
]


def run(flags: Namespace) -> int:
    """Extract as the flags say."""
    if flags.mode == "GPU":
        flags.gpu = flags.gpu or flags.device
    engine = chosen_engine(flags)
    net = Net(flags.net, caffe_pb2.TEST, weights=flags.weights, engine=engine)
    warn_of_inputs(net)
    with closing(net), counting_progress(flags.num_batches) as progress:
        extract_features(
            net,
            flags.blobs.split(","),
            flags.dbs.split(","),
            flags.num_batches,
            backend=flags.type,
            force=flags.force,
            progress=progress,
        )
    return 0
