"""Measure how long each layer of a net takes, forward and backward."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable
from time import perf_counter

import numpy as np
import numpy.typing as npt

from protocaffe.cli.common import COMPUTING, ITERATIONS, LEVEL, STAGE, chosen_engine, stages
from protocaffe.cli.flags import Flag
from protocaffe.log import log, number
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

FLAGS = [
    Flag("model", "the net prototxt", required=True),
    ITERATIONS,
    Flag("phase", "the net's phase", default="TRAIN", choices=("TRAIN", "TEST")),
    *COMPUTING,
    LEVEL,
    STAGE,
]


def run(flags: Namespace) -> int:
    """Time as the flags say."""
    net = Net(
        flags.model,
        caffe_pb2.Phase.Value(flags.phase),
        level=flags.level,
        stages=stages(flags.stage),
        engine=chosen_engine(flags),
        reuse_memory=True,
    )
    log.info("Performing Forward")
    log.info("Initial loss: %s", number(net.run_forward()))
    log.info("Performing Backward")
    net.run_backward()
    log.info("*** Benchmark begins ***")
    log.info("Testing for %d iterations.", flags.iterations)
    _benchmark(net, flags.iterations)
    log.info("*** Benchmark ends ***")
    return 0


def _benchmark(net: Net, iterations: int) -> None:
    """Time every layer over that many iterations and print the mean milliseconds."""
    layers = range(len(net.layers))
    forward, backward = np.zeros(len(layers)), np.zeros(len(layers))
    start = perf_counter()
    for iteration in range(1, iterations + 1):
        net.clear_param_diffs()
        before = perf_counter()
        _time_each(net.forward_layer, layers, forward)
        _time_each(net.backward_layer, reversed(layers), backward)
        spent = _milliseconds(perf_counter() - before)
        log.info("Iteration: %d forward-backward time: %s ms.", iteration, spent)
    total = perf_counter() - start
    log.info("Average time per layer: ")
    for name, there, back in zip(net.layer_names, forward, backward, strict=True):
        log.info("%10s\tforward: %s ms.", name, _milliseconds(there / iterations))
        log.info("%10s\tbackward: %s ms.", name, _milliseconds(back / iterations))
    log.info("Average Forward pass: %s ms.", _milliseconds(forward.sum() / iterations))
    log.info("Average Backward pass: %s ms.", _milliseconds(backward.sum() / iterations))
    log.info("Average Forward-Backward: %s ms.", _milliseconds(total / iterations))
    log.info("Total Time: %s ms.", _milliseconds(total))


def _time_each(
    work: Callable[[int], object], layers: Iterable[int], seconds: npt.NDArray[np.float64]
) -> None:
    """Run the work of each layer and add what it took."""
    for index in layers:
        before = perf_counter()
        work(index)
        seconds[index] += perf_counter() - before


def _milliseconds(seconds: float) -> str:
    """Milliseconds to the microsecond, as Caffe's timer has them."""
    return number(round(seconds * 1000, 3))
