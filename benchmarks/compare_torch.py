"""Time training in protocaffe and in PyTorch: same net, weights, data, and threads or GPU.

``python -m benchmarks.compare_torch caffenet`` prints a table; benchmarks/README.md tells how
the numbers are taken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.nets import NETS
from benchmarks.worker import PARTS
from protocaffe.errors import did_you_mean

LAYOUTS = ("contiguous", "channels_last")
"""PyTorch's memory formats, all of which are tried."""

LOSS_TOLERANCE = 1e-4
"""How far, relatively, the two first losses may lie apart."""

CHANGE_TOLERANCE = 0.02
"""The same for how much one update changes the loss: roughly the length of the gradient."""

ROUNDING = 1e-5
"""What a loss may lose to rounding, relatively; a smaller change cannot be compared."""

TURN_MS = 1000.0
MOST_ITERATIONS = 100
FEWEST_ITERATIONS = 3

ROOT = Path(__file__).resolve().parents[1]

Times = dict[str, list[float]]
"""Milliseconds of each part, per iteration of one turn."""


class BenchmarkError(Exception):
    """The comparison cannot be made; the message is meant for people."""


class Worker:
    """A process that computes only while it is asked something.

    Between questions it is stopped, so that no idle thread of it spins on a core that the
    other side is timed on.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], threads: int, python: str = sys.executable
    ) -> None:
        self.module = module
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, action: str, **arguments: Any) -> Any:
        """Return the worker's answer.

        Raises:
            BenchmarkError: the worker refused, or died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            print(json.dumps({"do": action, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(
                f"{self.module} ended with exit code {self.process.wait()} when asked to "
                f"'{action}'; its own messages are above"
            )
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def started(
    module: str, arguments: Sequence[str], threads: int, python: str = sys.executable
) -> Iterator[Worker]:
    """Start a worker, perhaps in another Python, and end it afterwards."""
    worker = Worker(module, arguments, threads, python)
    try:
        yield worker
    finally:
        worker.close()


@dataclass
class Result:
    """One net's comparison.

    Attributes:
        net: what was asked for.
        batch: images per iteration.
        parameters: how many numbers are learned.
        threads: threads on either side.
        iterations: iterations per turn, of the parts and again of the whole step.
        loss: per side, the loss before and after one update, dropout off.
        protocaffe: one ``Times`` per round.
        torch: the same for every variant of PyTorch.
        about: facts about each variant.
    """

    net: str
    batch: int
    parameters: int
    threads: int
    iterations: int
    loss: dict[str, list[float]]
    protocaffe: list[Times]
    torch: dict[str, list[Times]]
    about: dict[str, dict[str, str]]

    @property
    def best(self) -> str:
        """The variant of PyTorch with the fastest step."""
        return min(self.torch, key=lambda variant: middle(self.torch[variant], "step"))


def middle(rounds: Sequence[Times], part: str) -> float:
    """Return the median over the rounds of each round's median."""
    return median(median(times[part]) for times in rounds)


def least(rounds: Sequence[Times], part: str) -> float:
    """Return the shortest time of all rounds."""
    return min(min(times[part]) for times in rounds)


def paired_ratio(numerator: Sequence[Times], denominator: Sequence[Times], part: str) -> float:
    """Return the median over the rounds of the ratio within a round.

    What slows the machine down for a while slows both sides of a round.
    """
    return median(
        median(above[part]) / median(below[part])
        for above, below in zip(numerator, denominator, strict=True)
    )


def compare(net: str, options: argparse.Namespace) -> Result:
    """Check that both sides compute the same, then time them in turns.

    Raises:
        BenchmarkError: the losses differ, or one side cannot run the net.
    """
    threads = options.threads
    if net not in NETS and not Path(net).is_file():
        guess = did_you_mean(net, NETS)
        raise BenchmarkError(f"neither a file nor one of {', '.join(NETS)}{guess}")
    with (
        tempfile.TemporaryDirectory(prefix="compare_torch") as folder,
        started("benchmarks.protocaffe_worker", [folder], threads) as protocaffe,
        started(
            "benchmarks.torch_worker", [folder, str(threads), options.device], threads
        ) as torch,
    ):
        facts = protocaffe.ask(
            "prepare",
            net=net if net in NETS else str(Path(net).resolve()),
            batch=options.batch,
            image=options.input_shape,
            engine="cuda" if options.device == "cuda" else options.engine,
        )
        loss = first_losses(protocaffe, torch)
        check_losses(loss)
        variants = [*LAYOUTS, *(f"{each} compiled" for each in LAYOUTS if options.compile)]
        warm = [protocaffe.ask("time", iterations=1)]
        warm += [torch.ask("time", variant=each, iterations=1) for each in variants]
        iterations = options.iterations or fitting_iterations(warm)
        ours, theirs = take_turns(protocaffe, torch, variants, options.rounds, iterations)
        about = {variant: torch.ask("about", variant=variant) for variant in variants}
        return Result(
            net, facts["batch"], facts["parameters"], threads, iterations, loss, ours, theirs, about
        )


def first_losses(protocaffe: Worker, torch: Worker) -> dict[str, list[float]]:
    """Return every side's losses before and after one update."""
    loss = {"protocaffe": protocaffe.ask("check")}
    for layout in LAYOUTS:
        loss[f"torch {layout}"] = torch.ask("check", layout=layout)
    return loss


def take_turns(
    protocaffe: Worker, torch: Worker, variants: Sequence[str], rounds: int, iterations: int
) -> tuple[list[Times], dict[str, list[Times]]]:
    """Return the times of all rounds, protocaffe's and those of every variant of PyTorch."""
    ours: list[Times] = []
    theirs: dict[str, list[Times]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        ours.append(protocaffe.ask("time", iterations=iterations))
        for variant in variants:
            theirs[variant].append(torch.ask("time", variant=variant, iterations=iterations))
    return ours, theirs


def fitting_iterations(warm: Sequence[Times], part: str = "step") -> int:
    """Return how many steps of the fastest side make a turn of about ``TURN_MS``."""
    step = min(least([times], part) for times in warm)
    return max(FEWEST_ITERATIONS, min(MOST_ITERATIONS, round(TURN_MS / step)))


def check_losses(loss: Mapping[str, Sequence[float]]) -> None:
    """Print the losses of both sides and refuse to go on if they differ.

    Raises:
        BenchmarkError: they differ, so the two sides do not compute the same.
    """
    for side, (before, after) in loss.items():
        print(f"  loss {before:.6f}, after one update {after:.6f}: {side}")
    first, updated = loss["protocaffe"]
    for side, (before, after) in loss.items():
        if not math.isclose(before, first, rel_tol=LOSS_TOLERANCE):
            raise BenchmarkError(
                f"nothing was timed: the loss of {side} is {before:.6f}, that of protocaffe "
                f"{first:.6f}; they may differ by {LOSS_TOLERANCE:g} of that"
            )
        change, expected = after - before, updated - first
        if not math.isclose(
            change, expected, rel_tol=CHANGE_TOLERANCE, abs_tol=ROUNDING * abs(first)
        ):
            raise BenchmarkError(
                f"nothing was timed: one update changes the loss of {side} by {change:.6f}, that "
                f"of protocaffe by {expected:.6f}; they may differ by {CHANGE_TOLERANCE:g} of that"
            )


def table(result: Result) -> str:
    """Return the result as a table for people."""
    best = result.torch[result.best]
    about = result.about[result.best]
    lines = [
        f"  batch {result.batch}, {result.parameters / 1e6:.2f}M parameters, "
        f"{result.threads} threads, {len(best)} round(s) of {result.iterations} iteration(s)",
        f"  PyTorch {about['torch']} at its best: {result.best}, {about['optimizer']} SGD",
        "",
        f"  {'ms':10}{'protocaffe':>22}{'PyTorch':>22}{'PyTorch / protocaffe':>24}",
        f"  {'':10}{'min':>11}{'median':>11}{'min':>11}{'median':>11}{'min':>12}{'median':>12}",
    ]
    for part in PARTS:
        ours, theirs = least(result.protocaffe, part), least(best, part)
        lines.append(
            f"  {part:10}{ours:11.2f}{middle(result.protocaffe, part):11.2f}"
            f"{theirs:11.2f}{middle(best, part):11.2f}"
            f"{theirs / ours:11.2f}x{paired_ratio(best, result.protocaffe, part):11.2f}x"
        )
    others = [
        f"{variant} {middle(rounds, 'step'):.2f}"
        for variant, rounds in result.torch.items()
        if variant != result.best
    ]
    lines += ["", f"  median step of PyTorch's other variants: {'; '.join(others)}"]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers were taken on."""
    cpu_info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpu_info.read_text().splitlines() if cpu_info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "gpu": gpu_name(),
        "cores": available_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def gpu_name() -> str | None:
    """Return the first GPU's name and driver, or None without one."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.splitlines()[0]


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def image_shape(text: str) -> list[int]:
    """Read ``3,227,227``."""
    shape = [int(extent) for extent in text.split(",")]
    if len(shape) != 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected channels,height,width, got '{text}'")
    return shape


def positive(text: str) -> int:
    """Read a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return value


def add_turn_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a comparison whose sides take turns."""
    parser.add_argument(
        "--threads",
        type=positive,
        default=available_cores(),
        help="threads on every side (default: all cores, here %(default)s)",
    )
    parser.add_argument("--rounds", type=positive, default=7, help="default: %(default)s")
    parser.add_argument(
        "--iterations",
        type=positive,
        help="iterations per turn (default: as many as take about a second)",
    )
    parser.add_argument("--engine", help="protocaffe's engine (default: its fastest)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to a file")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_torch",
        description="Time training in protocaffe and in PyTorch.",
    )
    parser.add_argument(
        "nets", nargs="+", metavar="NET", help=f"{', '.join(NETS)}, or a training prototxt"
    )
    parser.add_argument("--batch", type=positive, help="batch size (default: the net's)")
    parser.add_argument(
        "--input-shape",
        type=image_shape,
        metavar="C,H,W",
        help="shape of an image (default: the net's)",
    )
    add_turn_flags(parser)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="what both sides compute on: the CPU, or an NVIDIA GPU in true float32",
    )
    parser.add_argument(
        "--compile", action="store_true", help="try torch.compile as well (compiling takes minutes)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for; return the exit code, 1 if any could not be compared."""
    options = parse(arguments)
    if find_spec("torch") is None:
        print("PyTorch is not installed; get it with: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    results = []
    for net in options.nets:
        print(net, flush=True)
        try:
            results.append(compare(net, options))
        except BenchmarkError as error:
            print(f"{net}: {error}", file=sys.stderr)
            continue
        print(table(results[-1]), end="\n\n", flush=True)
    if options.json:
        content = {"machine": machine(), "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if len(results) == len(options.nets) else 1


if __name__ == "__main__":
    sys.exit(main())
