"""Time the weight update of CaffeNet's 61 million parameters in protocaffe and in PyTorch.

``python -m benchmarks.update`` prints a row per solver: SGD with momentum, and Adam. PyTorch runs
its faster one of ``foreach`` and ``fused``. As in ``compare_torch``, the two sides are processes
that take turns.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks.compare_torch import Worker, available_cores, positive, started
from benchmarks.nets import NETS
from benchmarks.worker import milliseconds, serve

SOLVERS = ("SGD", "Adam")
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4


def protocaffe_update(kind: str) -> Callable[[], object]:
    """Return protocaffe's update of CaffeNet with random gradients."""
    from protocaffe.proto import caffe_pb2
    from protocaffe.solvers import get_solver

    param = caffe_pb2.SolverParameter(
        type=kind, base_lr=RATE, lr_policy="fixed", momentum=MOMENTUM, weight_decay=DECAY
    )
    param.net_param.CopyFrom(NETS["caffenet"](batch=1))
    solver = get_solver(param)
    rng = np.random.default_rng(1)
    for learnable in solver.net.learnable:
        rng.standard_normal(out=learnable.blob.diff, dtype=np.float32)
    return solver.apply_update


def torch_updates(kind: str) -> list[Callable[[], object]]:
    """Return PyTorch's implementations of the same update."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from protocaffe.net import Net

    shapes = [each.blob.shape for each in Net(NETS["caffenet"](batch=1), 0).learnable]
    updates = []
    for implementation in ("foreach", "fused"):
        weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        options = {"lr": RATE, "weight_decay": DECAY, implementation: True}
        if kind == "SGD":
            updates.append(torch.optim.SGD(weights, momentum=MOMENTUM, **options).step)
        else:
            updates.append(torch.optim.Adam(weights, **options).step)
    return updates


def work(side: str, kind: str) -> None:
    """Answer the parent's orders: time some updates, the fastest implementation of each side."""
    updates = [protocaffe_update(kind)] if side == "protocaffe" else torch_updates(kind)
    for update in updates:
        update()
    fastest = min(updates, key=lambda update: min(milliseconds(update) for _ in range(3)))
    serve({"time": lambda count: [milliseconds(fastest) for _ in range(count)]}, ())


def compare(kind: str, rounds: int, threads: int) -> str:
    """Return a row: milliseconds of both sides and PyTorch / protocaffe, minimum and median."""
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    with (
        started("benchmarks.update", ["--side", "protocaffe", "--solver", kind], threads) as one,
        started("benchmarks.update", ["--side", "torch", "--solver", kind], threads) as other,
    ):
        for _ in range(rounds):
            ours.append(_turn(one))
            theirs.append(_turn(other))
    minima = [min(map(min, times)) for times in (ours, theirs)]
    medians = [median(map(median, times)) for times in (ours, theirs)]
    return (
        f"{kind:5s} {minima[0]:10.1f} {medians[0]:10.1f} {minima[1]:10.1f} {medians[1]:10.1f} "
        f"{minima[1] / minima[0]:9.2f}x {medians[1] / medians[0]:9.2f}x"
    )


def _turn(worker: Worker) -> list[float]:
    times: list[float] = worker.ask("time", count=5)
    return times


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.update", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=available_cores())
    parser.add_argument("--solver", choices=SOLVERS)
    parser.add_argument("--side", choices=("protocaffe", "torch"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        work(flags.side, flags.solver)
        return
    print(f"      {'protocaffe':>21s} {'PyTorch':>21s} {'PyTorch / protocaffe':>21s}")
    print("ms   " + f" {'min':>10s} {'median':>10s}" * 3)
    for kind in [flags.solver] if flags.solver else SOLVERS:
        print(compare(kind, flags.rounds, flags.threads), flush=True)


if __name__ == "__main__":
    sys.exit(main())
