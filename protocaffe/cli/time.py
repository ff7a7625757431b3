"""Measure how long each layer of a net takes, forward and backward, and how much memory.

--verbose adds what each layer's time goes into: which code of the engine, and every reorder, the
copies between layouts that a good plan has few of. --batch_sweep=1,8,32 runs the net with each of
these batch sizes instead, and prints one row for each.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from protocaffe.cli.common import (
    COMPUTING,
    ITERATIONS,
    LEVEL,
    STAGE,
    chosen_engine,
    log_warnings_only,
    stages,
)
from protocaffe.cli.flags import Flag
from protocaffe.engines import Engine
from protocaffe.engines.base import Work
from protocaffe.errors import UsageError
from protocaffe.log import log, number
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_net

FLAGS = [
    Flag("model", "the net prototxt", required=True),
    ITERATIONS,
    Flag("phase", "the net's phase", default="TRAIN", choices=("TRAIN", "TEST")),
    Flag("verbose", "tell what each layer's time goes into, with every reorder", default=False),
    Flag("batch_sweep", "batch sizes to compare, separated by commas"),
    *COMPUTING,
    LEVEL,
    STAGE,
]

MIB = 1 << 20


def run(flags: Namespace) -> int:
    """Time as the flags say."""
    if flags.batch_sweep:
        return _sweep(flags)
    net = _net(flags.model, flags, chosen_engine(flags))
    log.info("Performing Forward")
    log.info("Initial loss: %s", number(net.run_forward()))
    log.info("Performing Backward")
    net.run_backward()
    _log_memory(net)
    log.info("*** Benchmark begins ***")
    log.info("Testing for %d iterations.", flags.iterations)
    _benchmark(net, flags.iterations)
    if flags.verbose:
        _tell_pieces(net, flags.iterations)
    log.info("*** Benchmark ends ***")
    return 0


def _net(source: str | caffe_pb2.NetParameter, flags: Namespace, engine: Engine) -> Net:
    return Net(
        source,
        caffe_pb2.Phase.Value(flags.phase),
        level=flags.level,
        stages=stages(flags.stage),
        engine=engine,
        reuse_memory=True,
    )


def _log_memory(net: Net) -> None:
    """Say what blobs and parameters take, in MiB."""
    taken, unshared = net.plan.bytes.taken, net.plan.bytes.unshared
    log.info(
        "Memory: %s MiB for activations and gradients (%s without sharing), %s MiB for parameters "
        "and their gradients",
        *(number(round(size / MIB, 1)) for size in (taken, unshared, _parameter_bytes(net))),
    )


def _parameter_bytes(net: Net) -> int:
    return sum(2 * p.blob.count * p.blob.dtype.itemsize for p in net.learnable)


def _benchmark(net: Net, iterations: int) -> None:
    """Time every layer over that many iterations and print the mean milliseconds."""
    layers = range(len(net.layers))
    forward, backward = np.zeros(len(layers)), np.zeros(len(layers))
    start = perf_counter()
    for iteration in range(1, iterations + 1):
        spent = _time_pass(net, forward, backward)
        log.info("Iteration: %d forward-backward time: %s ms.", iteration, _milliseconds(spent))
    total = perf_counter() - start
    log.info("Average time per layer: ")
    for place, name in enumerate(net.layer_names):
        there, back = (
            _milliseconds(forward[place] / iterations),
            _milliseconds(backward[place] / iterations),
        )
        log.info("%10s\tforward: %s ms.%s", name, there, _elsewhere(net, place, net.plan.forward))
        log.info("%10s\tbackward: %s ms.%s", name, back, _elsewhere(net, place, net.plan.backward))
    log.info("Average Forward pass: %s ms.", _milliseconds(forward.sum() / iterations))
    log.info("Average Backward pass: %s ms.", _milliseconds(backward.sum() / iterations))
    log.info("Average Forward-Backward: %s ms.", _milliseconds(total / iterations))
    log.info("Total Time: %s ms.", _milliseconds(total))


def _elsewhere(net: Net, place: int, works: Sequence[Sequence[Work]]) -> str:
    """Say where a layer's time stands, if its work is done with another's."""
    doer = net.plan.doer(place, works)
    return "" if doer == place else f" (in {net.layer_names[doer]})"


def _time_pass(
    net: Net, forward: npt.NDArray[np.float64], backward: npt.NDArray[np.float64]
) -> float:
    """Run both passes once, adding each layer's seconds to the arrays; return the whole time."""
    layers = range(len(net.layers))
    net.clear_param_diffs()
    net.engine.synchronize()
    before = perf_counter()
    _time_each(_until_done(net, net.forward_layer), layers, forward)
    _time_each(_until_done(net, net.backward_layer), reversed(layers), backward)
    return perf_counter() - before


def _until_done(net: Net, work: Callable[[int], object]) -> Callable[[int], None]:
    """Return work that ends when its device has done it."""

    def run(index: int) -> None:
        work(index)
        net.engine.synchronize()

    return run


def _time_each(
    work: Callable[[int], object], layers: Iterable[int], seconds: npt.NDArray[np.float64]
) -> None:
    """Run the work of each layer and add what it took."""
    for index in layers:
        before = perf_counter()
        work(index)
        seconds[index] += perf_counter() - before


def _tell_pieces(net: Net, iterations: int) -> None:
    """Log the mean time of every piece of work, and of all reorders together."""
    plan, layers = net.plan, range(len(net.layers))
    pieces = [("forward", i, work) for i in layers for work in plan.forward[i]]
    pieces += [("backward", i, work) for i in layers[::-1] for work in plan.backward[i]]
    seconds = np.zeros(len(pieces))
    works = [work for _, _, work in pieces]
    for _ in range(iterations):
        net.clear_param_diffs()
        plan.begin()
        _time_each(_until_done(net, lambda place: works[place]()), range(len(works)), seconds)
    seconds /= iterations
    log.info("Average time per piece of work: ")
    reorders = 0.0
    for (way, index, work), spent in zip(pieces, seconds, strict=True):
        title = plan.describe(work)
        log.info("%10s\t%s: %s ms: %s", net.layer_names[index], way, _milliseconds(spent), title)
        reorders += spent if title.startswith("reorder") else 0
    share = 100 * reorders / seconds.sum()
    log.info("Reorders: %s ms, %s %% of all", _milliseconds(reorders), number(round(share, 1)))


def _sweep(flags: Namespace) -> int:
    """Print time and memory for several batch sizes."""
    batches = _batches(flags.batch_sweep)
    text, _ = read_net(flags.model)
    engine = chosen_engine(flags)
    log_warnings_only()
    title = (
        f"{'batch':>6} {'forward ms':>11} {'backward ms':>12} {'images/s':>9} {'memory MiB':>11}"
    )
    for index, batch in enumerate(batches):
        set_batch(text, batch)
        net = _net(text, flags, engine)
        if index == 0:
            print(title)
        passes = _sweep_passes(net, flags.iterations)
        memory = net.plan.bytes.taken + _parameter_bytes(net)
        net.close()
        forward, backward = (1000 * seconds for seconds in passes)
        speed = 1000 * batch / (forward + backward)
        print(f"{batch:6} {forward:11.2f} {backward:12.2f} {speed:9.1f} {memory / MIB:11.2f}")
        sys.stdout.flush()
    return 0


def _sweep_passes(net: Net, iterations: int) -> tuple[float, float]:
    """The median seconds forward and backward, after one pass that counts for nothing."""
    seconds = np.zeros((iterations + 1, 2, len(net.layers)))
    for forward, backward in seconds:
        _time_pass(net, forward, backward)
    return tuple(np.median(seconds[1:].sum(axis=2), axis=0))


def _batches(flag: str) -> Sequence[int]:
    try:
        batches = [int(word) for word in flag.split(",")]
    except ValueError:
        batches = [0]
    if min(batches) < 1:
        raise UsageError(f"--batch_sweep: expected batch sizes such as 1,8,32, got '{flag}'")
    return batches


def set_batch(net: caffe_pb2.NetParameter, batch: int) -> None:
    """Give every layer that brings data into the net another batch size."""
    for layer in net.layer:
        for name in BATCH_PARAMS:
            if layer.HasField(name):
                getattr(layer, name).batch_size = batch
        for name in ("input_param", "dummy_data_param"):
            for shape in getattr(layer, name).shape:
                shape.dim[0] = batch


BATCH_PARAMS = (
    "data_param",
    "image_data_param",
    "window_data_param",
    "hdf5_data_param",
    "memory_data_param",
)
"""The settings that have a batch size."""


def _milliseconds(seconds: float) -> str:
    """Milliseconds to the microsecond, as Caffe's timer has them."""
    return number(round(seconds * 1000, 3))
