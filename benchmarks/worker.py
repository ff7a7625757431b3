"""The half of a comparison that runs in a process of its own and takes orders over pipes.

Orders come as lines of JSON on standard input, ``{"do": "time", ...}``; each is answered by one
line of JSON on standard output, ``{"result": ...}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Protocol

PARTS = ("forward", "backward", "update", "step")
"""What is timed; ``step`` is the three others in one go."""


class Trainer(Protocol):
    """A net with its solver and one batch of data."""

    def forward(self) -> float:
        """Compute the loss."""

    def backward(self) -> None:
        """Compute all gradients of the last ``forward``."""

    def gradient_length(self) -> float:
        """Return the Euclidean norm of all gradients together."""

    def update(self) -> None:
        """Change the weights by those gradients."""

    def step(self) -> None:
        """All three, as a user's training loop does them; may return before a device is done."""

    def synchronize(self) -> None:
        """Wait until a device has done all that was asked for."""

    def device_memory(self) -> tuple[int, int]:
        """Return how many bytes of the device's memory are free, and how many there are."""


def time_trainer(trainer: Trainer, iterations: int, on_gpu: bool = False) -> dict[str, list[float]]:
    """Return the milliseconds that each part took, ``iterations`` times.

    One step goes ahead untimed: it wakes the threads and brings the weights back to the cache.
    On a GPU it is three, in which both sides capture what they launch later; then the steps follow
    each other without a pause, as in training, and each counts for their mean. The single parts
    come behind them, for they are captured by themselves.
    """
    for _ in range(3 if on_gpu else 1):
        trainer.step()
    trainer.synchronize()
    times: dict[str, list[float]] = {}
    if on_gpu:
        steps = _whole(trainer, lambda: [trainer.step() for _ in range(iterations)])
        times["step"] = [milliseconds(steps) / iterations] * iterations
        _time_parts(trainer, 2)
    times.update(_time_parts(trainer, iterations))
    if not on_gpu:
        times["step"] = [milliseconds(trainer.step) for _ in range(iterations)]
    return times


def _time_parts(trainer: Trainer, iterations: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {part: [] for part in PARTS[:3]}
    for _ in range(iterations):
        for part, measured in times.items():
            measured.append(milliseconds(_whole(trainer, getattr(trainer, part))))
    return times


def _whole(trainer: Trainer, work: Callable[[], Any]) -> Callable[[], None]:
    """Return work that is over when its device has done it."""

    def run() -> None:
        work()
        trainer.synchronize()

    return run


def peak_memory(trainer: Trainer, steps: int, on_gpu: bool = False) -> float:
    """Train some steps; return the most memory that this process ever had resident, in MiB.

    On a GPU: what is taken there afterwards, for both sides keep what they once had. That counts
    the libraries, too, and other programs if there are any.
    """
    for _ in range(steps):
        trainer.step()
    if on_gpu:
        trainer.synchronize()
        free, total = trainer.device_memory()
        return (total - free) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def milliseconds(action: Callable[[], Any]) -> float:
    """Return how long the action takes."""
    start = perf_counter()
    action()
    return (perf_counter() - start) * 1000


def first_results(trainer: Trainer) -> dict[str, float]:
    """Return the loss, the length of its gradient, and the loss after one update."""
    loss = trainer.forward()
    trainer.backward()
    length = trainer.gradient_length()
    trainer.update()
    return {"loss": loss, "gradient": length, "updated": trainer.forward()}


def serve(actions: Mapping[str, Callable[..., Any]], refusals: tuple[type[Exception], ...]) -> None:
    """Carry out orders until standard input ends.

    Args:
        actions: what may be ordered; called with the order's other fields.
        refusals: exceptions whose message goes back to the parent; others end the process.
    """
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        action = actions[order.pop("do")]
        try:
            answer = {"result": action(**order)}
        except refusals as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
