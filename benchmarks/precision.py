"""Time training steps with bfloat16 numbers against steps with float32 ones.

``python -m benchmarks.precision caffenet`` prints a row per net. Both solvers are in one process,
start from the same weights and take turns. Without names all nets are compared.

``--device cuda`` times all precisions of an NVIDIA GPU, each in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.compare_torch import (
    BenchmarkError,
    available_cores,
    batch_size,
    middle,
    positive,
    started,
)
from benchmarks.nets import GPU_BATCHES, NETS
from benchmarks.problem import Problem
from benchmarks.protocaffe_worker import ProtocaffeTrainer, ProtocaffeWorker
from benchmarks.worker import milliseconds
from protocaffe.engines import PRECISIONS, get_engine

TOLERANCE = 0.02
"""How far the first losses may lie apart, relative to float32's: bfloat16 has 8 bits."""

GPU_ITERATIONS = 200

STEPS = 3
"""Steps per turn, after one that counts for nothing."""


def compare(net: str, rounds: int) -> str:
    """Return a row of milliseconds and float32 / bf16, minimum and median."""
    problem = prepared(net)
    trainers = [ProtocaffeTrainer(problem, get_engine(None, each)) for each in ("float32", "bf16")]
    exact, rough = (trainer.forward() for trainer in trainers)
    if abs(rough - exact) > TOLERANCE * abs(exact):
        return f"{net}: nothing was timed, for the losses differ: {exact:.4f} and {rough:.4f}"
    turns = [[_turn(trainer) for trainer in trainers] for _ in range(rounds)]
    best = [min(map(min, times)) for times in zip(*turns, strict=True)]
    usual = [[median(times) for times in turn] for turn in turns]
    ratio = median(one / other for one, other in usual)
    columns = [
        f"{a:10.1f}{median(b):10.1f}" for a, b in zip(best, zip(*usual, strict=True), strict=True)
    ]
    return f"{net:15}" + "".join(columns) + f"{best[0] / best[1]:9.2f}x{ratio:9.2f}x"


def compare_on_gpu(net: str, options: argparse.Namespace) -> str:
    """Return a row of milliseconds per step, and how many times as fast as float32 they are."""
    times, losses = [], []
    with tempfile.TemporaryDirectory(prefix="precision") as folder:
        for precision in PRECISIONS:
            with started("benchmarks.protocaffe_worker", [folder], available_cores()) as worker:
                worker.ask("use", engine="cuda", precision=precision)
                worker.ask("prepare", net=net, batch=batch_size(net, options), image=None)
                losses.append(worker.ask("check")["loss"])
                rounds = [
                    worker.ask("time", iterations=GPU_ITERATIONS) for _ in range(options.rounds)
                ]
                times.append(middle(rounds, "step"))
    if any(abs(loss - losses[0]) > TOLERANCE * abs(losses[0]) for loss in losses):
        return f"{net}: not compared, for the losses differ: {losses}"
    columns = [f"{time:9.2f}{times[0] / time:7.2f}x" for time in times]
    return f"{net:15}{''.join(columns)}"


def prepared(net: str) -> Problem:
    """Return the net with weights and random data."""
    with tempfile.TemporaryDirectory(prefix="precision") as folder:
        worker = ProtocaffeWorker(Path(folder))
        worker.prepare(net, batch=None, image=None)
        return worker.problem


def _turn(trainer: ProtocaffeTrainer) -> list[float]:
    trainer.step()
    return [milliseconds(trainer.step) for _ in range(STEPS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("nets", nargs="*", choices=[[], *NETS], metavar="NET")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=positive, help="on a GPU; default: the net's there")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        return _print_gpu_rows(options)
    print(f"{'ms per step':15}{'float32':>20}{'bf16':>20}{'float32 / bf16':>20}")
    print(" " * 15 + f"{'min':>10}{'median':>10}" * 3)
    for net in options.nets or NETS:
        print(compare(net, options.rounds), flush=True)
    return 0


def _print_gpu_rows(options: argparse.Namespace) -> int:
    print(f"{'ms per step':15}" + "".join(f"{precision:>17}" for precision in PRECISIONS))
    failed = False
    for net in options.nets or GPU_BATCHES:
        try:
            print(compare_on_gpu(net, options), flush=True)
        except BenchmarkError as error:
            print(f"{net}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
