"""Run a trained net over its test data and print the mean of every output."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from protocaffe.cli.common import (
    COMPUTING,
    ITERATIONS,
    LEVEL,
    STAGE,
    chosen_engine,
    stages,
    warn_of_inputs,
)
from protocaffe.cli.flags import Flag
from protocaffe.log import log, number
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

FLAGS = [
    Flag("model", "the net prototxt", required=True),
    Flag("weights", "its caffemodel", required=True),
    ITERATIONS,
    *COMPUTING,
    LEVEL,
    STAGE,
]


def run(flags: Namespace) -> int:
    """Test as the flags say."""
    net = Net(
        flags.model,
        caffe_pb2.TEST,
        weights=flags.weights,
        level=flags.level,
        stages=stages(flags.stage),
        engine=chosen_engine(flags),
        forward_only=True,
        reuse_memory=True,
    )
    warn_of_inputs(net)
    log.info("Running for %d iterations.", flags.iterations)
    loss = 0.0
    sums = {name: np.zeros(net.blobs[name].count) for name in net.outputs}
    for batch in range(flags.iterations):
        loss += net.run_forward()
        for name, total in sums.items():
            scores = net.blobs[name].data.ravel()
            total += scores
            for score in scores:
                log.info("Batch %d, %s = %s", batch, name, number(score))
    log.info("Loss: %s", number(loss / flags.iterations))
    for name, total in sums.items():
        for mean in total / flags.iterations:
            log.info("%s = %s%s", name, number(mean), _loss_part(net, name, mean))
    return 0


def _loss_part(net: Net, name: str, mean: float) -> str:
    weight = net.blob_loss_weights.get(name, 0)
    return f" (* {number(weight)} = {number(weight * mean)} loss)" if weight else ""
