"""Time training steps with bfloat16 numbers against steps with float32 ones.

``python -m benchmarks.precision caffenet`` prints a row per net. Both solvers are in one process,
start from the same weights and take turns. Without names all nets are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.compare_torch import positive
from benchmarks.nets import NETS
from benchmarks.problem import Problem
from benchmarks.protocaffe_worker import ProtocaffeTrainer, ProtocaffeWorker
from benchmarks.worker import milliseconds
from protocaffe.engines import get_engine

TOLERANCE = 0.02
"""How far the first losses may lie apart, relative to float32's: bfloat16 has 8 bits."""

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


def prepared(net: str) -> Problem:
    """Return the net with weights and random data."""
    with tempfile.TemporaryDirectory(prefix="precision") as folder:
        worker = ProtocaffeWorker(Path(folder))
        worker.prepare(net, batch=None, image=None, engine=None)
        return worker.problem


def _turn(trainer: ProtocaffeTrainer) -> list[float]:
    trainer.step()
    return [milliseconds(trainer.step) for _ in range(STEPS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("nets", nargs="*", choices=[[], *NETS], metavar="NET")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    options = parser.parse_args(arguments)
    print(f"{'ms per step':15}{'float32':>20}{'bf16':>20}{'float32 / bf16':>20}")
    print(" " * 15 + f"{'min':>10}{'median':>10}" * 3)
    for net in options.nets or NETS:
        print(compare(net, options.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
