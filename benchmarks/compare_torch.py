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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.nets import GPU_BATCHES, NETS
from benchmarks.worker import PARTS
from protocaffe.engines import PRECISIONS
from protocaffe.errors import did_you_mean

LAYOUTS = ("contiguous", "channels_last")
"""PyTorch's memory formats, all of which are tried."""

LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 0.03}
"""How far, relatively, the two first losses may lie apart."""

GRADIENT_TOLERANCE = {"float32": 0.005, "tf32": 0.03, "fp16": 0.03, "bf16": 0.1}
"""The same for the lengths of their gradients."""

CHANGE_TOLERANCE = 0.02
"""The same for how much one update changes the loss, in float32; elsewhere that is too little."""

ROUNDING = 1e-5
"""What a loss may lose to rounding, relatively; a smaller change cannot be compared."""

TURN_MS = 1000.0
MOST_ITERATIONS = {"cpu": 100, "cuda": 1000}
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


def torch_started(
    folder: str, precision: str, options: argparse.Namespace
) -> AbstractContextManager[Worker]:
    """Start PyTorch's side in its Python."""
    arguments = [folder, str(options.threads), options.device, precision]
    return started("benchmarks.torch_worker", arguments, options.threads, options.torch_python)


def lacks_torch(options: argparse.Namespace) -> bool:
    """Say what to install if PyTorch should be in this Python and is not."""
    lacks = options.torch_python == sys.executable and find_spec("torch") is None
    if lacks:
        print("PyTorch is not installed; get it with: pip install -e '.[bench]'", file=sys.stderr)
    return lacks


@dataclass
class Result:
    """One net's comparison.

    Attributes:
        net: what was asked for.
        precision: what both sides compute with.
        batch: images per iteration.
        parameters: how many numbers are learned.
        threads: threads on either side.
        iterations: iterations per turn, of the parts and again of the whole step.
        first: per side, the first loss, its gradient's length and the loss after one update,
            dropout off.
        protocaffe: one ``Times`` per round; on a GPU, of those beside the best variant.
        torch: the same for every variant of PyTorch.
        about: facts about each variant.
    """

    net: str
    precision: str
    batch: int
    parameters: int
    threads: int
    iterations: int
    first: dict[str, dict[str, float]]
    protocaffe: list[Times]
    torch: dict[str, list[Times]]
    about: dict[str, dict[str, str]]

    @property
    def best(self) -> str:
        """The variant of PyTorch with the fastest step."""
        return fastest(self.torch)


def fastest(variants: Mapping[str, Sequence[Times]]) -> str:
    """Return the variant with the fastest step."""
    return min(variants, key=lambda variant: middle(variants[variant], "step"))


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


def compare(net: str, precision: str, options: argparse.Namespace) -> Result:
    """Check that both sides compute the same, then time them in turns.

    Raises:
        BenchmarkError: the results differ, or one side cannot run the net.
    """
    threads, on_gpu = options.threads, options.device == "cuda"
    if net not in NETS and not Path(net).is_file():
        guess = did_you_mean(net, NETS)
        raise BenchmarkError(f"neither a file nor one of {', '.join(NETS)}{guess}")
    with (
        tempfile.TemporaryDirectory(prefix="compare_torch") as folder,
        started("benchmarks.protocaffe_worker", [folder], threads) as protocaffe,
        torch_started(folder, precision, options) as torch,
    ):
        engine = "cuda" if on_gpu else options.engine
        protocaffe.ask("use", engine=engine, precision=precision)
        facts = protocaffe.ask(
            "prepare",
            net=net if net in NETS else str(Path(net).resolve()),
            batch=batch_size(net, options),
            image=options.input_shape,
        )
        first = first_results(protocaffe, torch)
        check_results(first, precision)
        measure = time_one_by_one if on_gpu else time_together
        iterations, ours, theirs, about = measure(protocaffe, torch, options)
        return Result(
            *(net, precision, facts["batch"], facts["parameters"], threads, iterations),
            *(first, ours, theirs, about),
        )


def first_results(protocaffe: Worker, torch: Worker) -> dict[str, dict[str, float]]:
    """Return what every side computes in the first iteration."""
    first = {"protocaffe": protocaffe.ask("check")}
    for layout in LAYOUTS:
        first[f"torch {layout}"] = torch.ask("check", layout=layout)
    return first


Measured = tuple[int, list[Times], dict[str, list[Times]], dict[str, dict[str, str]]]
"""Iterations per turn, protocaffe's times, and for every variant of PyTorch times and facts."""


def time_together(protocaffe: Worker, torch: Worker, options: argparse.Namespace) -> Measured:
    """Time every variant of PyTorch in each round."""
    variants = [*LAYOUTS, *(f"{each} compiled" for each in LAYOUTS if options.compile)]
    warm = [protocaffe.ask("time", iterations=1)]
    warm += [torch.ask("time", variant=each, iterations=1) for each in variants]
    iterations = options.iterations or fitting_iterations(warm)
    ours, theirs = take_turns(protocaffe, torch, variants, options.rounds, iterations)
    about = {variant: torch.ask("about", variant=variant) for variant in variants}
    return iterations, ours, theirs, about


def time_one_by_one(protocaffe: Worker, torch: Worker, options: argparse.Namespace) -> Measured:
    """Time all rounds of one variant of PyTorch after the other: a GPU does not hold them all.

    A variant that cannot run is reported and left out.

    Raises:
        BenchmarkError: none can run.
    """
    iterations: int | None = options.iterations
    ours: dict[str, list[Times]] = {}
    theirs: dict[str, list[Times]] = {}
    about = {}
    for variant in gpu_variants(theirs, options.compile):
        try:
            warm = [protocaffe.ask("time", iterations=1)]
            warm.append(torch.ask("time", variant=variant, iterations=1))
            iterations = iterations or fitting_iterations(warm, MOST_ITERATIONS["cuda"])
            turns = take_turns(protocaffe, torch, [variant], options.rounds, iterations)
            about[variant] = torch.ask("about", variant=variant)
            ours[variant], theirs[variant] = turns[0], turns[1][variant]
        except BenchmarkError as error:
            print(f"  PyTorch's {variant} is left out: {error}", file=sys.stderr)
        torch.ask("drop", variant=variant)
    if not theirs or iterations is None:
        raise BenchmarkError("PyTorch ran in none of its variants")
    return iterations, ours[fastest(theirs)], theirs, about


def gpu_variants(done: Mapping[str, Sequence[Times]], compiles: bool) -> Iterator[str]:
    """Yield the variants to try; the last, which takes minutes to compile, in the best layout."""
    yield from LAYOUTS
    yield from (f"{layout} graph" for layout in LAYOUTS)
    if compiles and done:
        yield f"{fastest(done).split()[0]} compiled"


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


def fitting_iterations(
    warm: Sequence[Times], most: int = MOST_ITERATIONS["cpu"], part: str = "step"
) -> int:
    """Return how many steps of the fastest side make a turn of about ``TURN_MS``."""
    step = min(least([times], part) for times in warm)
    return max(FEWEST_ITERATIONS, min(most, round(TURN_MS / step)))


def check_results(first: Mapping[str, Mapping[str, float]], precision: str = "float32") -> None:
    """Print what all sides computed and refuse to go on if it differs.

    Raises:
        BenchmarkError: it does, so the two sides do not compute the same.
    """
    for side, found in first.items():
        print(
            f"  loss {found['loss']:.6f}, its gradient's length {found['gradient']:.6g}, "
            f"loss after one update {found['updated']:.6f}: {side}"
        )
    ours = first["protocaffe"]
    for side, theirs in first.items():
        _check_close(f"the loss of {side}", theirs["loss"], ours["loss"], LOSS_TOLERANCE[precision])
        lengths = theirs["gradient"], ours["gradient"]
        _check_close(f"the gradient's length of {side}", *lengths, GRADIENT_TOLERANCE[precision])
        if precision == "float32":
            what = f"what one update changes the loss of {side} by"
            changes = [each["updated"] - each["loss"] for each in (theirs, ours)]
            _check_close(what, *changes, CHANGE_TOLERANCE, ROUNDING * abs(ours["loss"]))


def _check_close(
    what: str, theirs: float, ours: float, tolerance: float, rounding: float = 0.0
) -> None:
    if not math.isclose(theirs, ours, rel_tol=tolerance, abs_tol=rounding):
        raise BenchmarkError(
            f"nothing was timed: {what} is {theirs:.6g}, with protocaffe {ours:.6g}; they may "
            f"differ by {tolerance:g} of that"
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


def precisions(text: str) -> tuple[str, ...]:
    """Read ``fp16,bf16``."""
    names = tuple(text.split(","))
    for name in names:
        if name not in PRECISIONS:
            guess = did_you_mean(name, PRECISIONS)
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(PRECISIONS)}{guess}")
    return names


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


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what both sides compute on; see :func:`fill_in_defaults`."""
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="the CPU (the default), or an NVIDIA GPU",
    )
    parser.add_argument(
        "--torch-python",
        metavar="PYTHON",
        default=sys.executable,
        help="the Python that has PyTorch, NumPy and protobuf (default: this one)",
    )
    parser.add_argument("--batch", type=positive, help="batch size (default: the net's)")
    parser.add_argument(
        "--precision",
        type=precisions,
        metavar="P,P",
        help=f"what to compute with, {', '.join(PRECISIONS)} (default: float32; on a GPU all, one "
        f"after the other)",
    )


def fill_in_defaults(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Choose nets and precisions for the device where none were given."""
    on_gpu = options.device == "cuda"
    options.nets = options.nets or [*(GPU_BATCHES if on_gpu else NETS)]
    options.precision = options.precision or (PRECISIONS if on_gpu else ("float32",))
    if not on_gpu and {"tf32", "fp16"} & {*options.precision}:
        parser.error("--precision tf32 and fp16 are a GPU's; they take --device cuda")


def batch_size(net: str, options: argparse.Namespace) -> int | None:
    """Return the batch size that was given, else a GPU's, else None for the net's own."""
    given: int | None = options.batch
    return given or (GPU_BATCHES.get(net) if options.device == "cuda" else None)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_torch",
        description="Time training in protocaffe and in PyTorch.",
    )
    parser.add_argument(
        "nets",
        nargs="*",
        metavar="NET",
        help=f"{', '.join(NETS)}, or a training prototxt (default: all of these; on a GPU "
        f"{', '.join(GPU_BATCHES)})",
    )
    add_device_flags(parser)
    parser.add_argument(
        "--input-shape",
        type=image_shape,
        metavar="C,H,W",
        help="shape of an image (default: the net's)",
    )
    add_turn_flags(parser)
    parser.add_argument(
        "--compile", action="store_true", help="try torch.compile as well (compiling takes minutes)"
    )
    options = parser.parse_args(arguments)
    fill_in_defaults(options, parser)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for; return the exit code, 1 if any could not be compared."""
    options = parse(arguments)
    if lacks_torch(options):
        return 1
    results: list[Result] = []
    failed = False
    for net, precision in product(options.nets, options.precision):
        print(f"{net}, {precision}", flush=True)
        try:
            results.append(compare(net, precision, options))
        except BenchmarkError as error:
            print(f"{net}, {precision}: {error}", file=sys.stderr)
            failed = True
            continue
        print(table(results[-1]), end="\n\n", flush=True)
        if options.json:
            content = {"machine": machine(), "results": [asdict(result) for result in results]}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
