"""Time inference in protocaffe, ONNX Runtime and OpenCV on the CPU: same net, same weights.

``python -m benchmarks.inference resnet50`` prints a table; benchmarks/README.md tells how the
numbers are taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.compare_torch import (
    BenchmarkError,
    Times,
    Worker,
    add_turn_flags,
    fitting_iterations,
    least,
    machine,
    middle,
    paired_ratio,
    positive,
    started,
)
from benchmarks.inference_worker import (
    INPUT_FILE,
    ONNX_FILE,
    PART,
    TEXT_FILE,
    WEIGHTS_FILE,
    Array,
)
from benchmarks.problem import with_inputs
from protocaffe.errors import ProtocaffeError, did_you_mean
from protocaffe.export import export_onnx
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_text, read_net
from protocaffe.zoo.catalogue import models_folder

NETS = {
    "squeezenet": "squeezenet_v1.1",
    "resnet50": "resnet50",
    "mobilenet": "mobilenet_v1",
    "googlenet": "bvlc_googlenet",
}
"""The nets by the name that the command line knows them by, and their folders in models/."""

BATCHES = (1, 16)
SEED = 1

TOLERANCE = 1e-3
"""How far the outputs of two sides may lie apart, relative to the largest number in them."""

TITLES = {"protocaffe": "protocaffe", "onnxruntime": "ONNX Runtime", "opencv": "OpenCV"}
MODULE = "benchmarks.inference_worker"


@dataclass
class Result:
    """One net's comparison at one batch size.

    Attributes:
        net: what was asked for.
        batch: images per run.
        threads: threads on every side.
        iterations: runs per turn.
        versions: of every side.
        times: per side, one ``Times`` per round.
    """

    net: str
    batch: int
    threads: int
    iterations: int
    versions: dict[str, str]
    times: dict[str, list[Times]]


def compare(net: str, batch: int, options: argparse.Namespace) -> Result:
    """Check that all sides compute the same, then time them in turns.

    Raises:
        BenchmarkError: the outputs differ, or one side cannot run the net.
    """
    pythons = dict.fromkeys(("protocaffe", "onnxruntime"), sys.executable)
    if options.opencv_python:
        pythons["opencv"] = options.opencv_python
    engine = [options.engine] if options.engine else []
    with tempfile.TemporaryDirectory(prefix="inference") as folder, ExitStack() as stack:
        prepare(net, batch, Path(folder))
        workers = {}
        for side, python in pythons.items():
            arguments = [side, folder, str(options.threads), *engine]
            worker = started(MODULE, arguments, options.threads, python)
            workers[side] = stack.enter_context(worker)
        versions = {side: worker.ask("check")["version"] for side, worker in workers.items()}
        check_outputs({side: np.load(Path(folder) / f"{side}.npy") for side in workers})
        warm = [worker.ask("time", iterations=1) for worker in workers.values()]
        iterations = options.iterations or fitting_iterations(warm, PART)
        times = take_turns(workers, options.rounds, iterations)
        return Result(net, batch, options.threads, iterations, versions, times)


def prepare(net: str, batch: int, folder: Path) -> None:
    """Write the net with weights, as text and as ONNX, and a batch of images into a folder.

    Raises:
        BenchmarkError: there is no such net, or not one input and one output.
    """
    path = models_folder() / NETS[net] / "deploy.prototxt" if net in NETS else Path(net)
    if not path.is_file():
        guess = did_you_mean(net, NETS)
        raise BenchmarkError(f"neither a file nor one of {', '.join(NETS)}{guess}")
    param, _ = with_inputs(read_net(path)[0], batch, None)
    tested = Net(param, caffe_pb2.TEST, seed=SEED)
    if len(tested.inputs) != 1 or len(tested.outputs) != 1:
        raise BenchmarkError("a net with one input and one output is wanted")
    rng = np.random.default_rng(SEED)
    draw_weights(tested, rng)
    images = rng.standard_normal(tested.blobs[tested.inputs[0]].shape, np.float32)
    note_statistics(tested, param, images)
    (folder / TEXT_FILE).write_text(format_text(param))
    tested.save(folder / WEIGHTS_FILE)
    model = export_onnx(tested, batch=batch, fold=True).model
    (folder / ONNX_FILE).write_bytes(model.SerializeToString())
    np.save(folder / INPUT_FILE, images)


def draw_weights(net: Net, rng: np.random.Generator) -> None:
    """Draw weights that keep the spread of what flows through: N(0, 2 / inputs).

    He et al., "Delving Deep into Rectifiers", ICCV 2015. Published nets for inference name no
    fillers.
    """
    for layer in net.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            weights = layer.blobs[0].data
            inputs = weights[0].size
            weights[...] = np.sqrt(2 / inputs) * rng.standard_normal(weights.shape, np.float32)


def note_statistics(net: Net, param: caffe_pb2.NetParameter, images: Array) -> None:
    """Set the running statistics of BatchNorm to those of the images, by one pass of training."""
    trained = caffe_pb2.NetParameter()
    trained.CopyFrom(param)
    for layer in trained.layer:
        layer.batch_norm_param.ClearField("use_global_stats")
    Net(trained, caffe_pb2.TRAIN, shared=net).forward(**{net.inputs[0]: images})


def check_outputs(outputs: Mapping[str, Array]) -> None:
    """Refuse to go on if the sides' outputs differ.

    Raises:
        BenchmarkError: they do, so the sides do not compute the same.
    """
    ours = outputs["protocaffe"]
    largest = float(np.abs(ours).max())
    for side, theirs in outputs.items():
        title = TITLES[side]
        if theirs.size != ours.size:
            raise BenchmarkError(
                f"nothing was timed: {title} gives {theirs.size} numbers, protocaffe {ours.size}"
            )
        difference = float(np.abs(theirs.ravel() - ours.ravel()).max())
        if not difference <= TOLERANCE * largest:
            raise BenchmarkError(
                f"nothing was timed: the outputs of {title} differ from those of protocaffe by "
                f"up to {difference:.3g}; they may by {TOLERANCE:g} of {largest:.3g}, the largest"
            )


def take_turns(
    workers: Mapping[str, Worker], rounds: int, iterations: int
) -> dict[str, list[Times]]:
    """Return the times of all rounds for every side."""
    times: dict[str, list[Times]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            times[side].append(worker.ask("time", iterations=iterations))
    return times


def table(result: Result) -> str:
    """Return the result as a table for people."""
    ours = result.times["protocaffe"]
    lines = [
        f"  batch {result.batch}, {result.threads} threads, "
        f"{len(ours)} round(s) of {result.iterations} run(s)",
        "",
        f"  {'':20}{'ms':>20}{'images/s':>20}{'its time / protocaffe':>25}",
        f"  {'':20}{'min':>10}{'median':>10}{'most':>10}{'median':>10}{'min':>13}{'median':>12}",
    ]
    for side, rounds in result.times.items():
        best, usual = least(rounds, PART), middle(rounds, PART)
        rates = [1000 * result.batch / each for each in (best, usual)]
        lines.append(
            f"  {TITLES[side] + ' ' + result.versions[side]:20}{best:10.2f}{usual:10.2f}"
            f"{rates[0]:10.1f}{rates[1]:10.1f}"
            f"{best / least(ours, PART):12.2f}x{paired_ratio(rounds, ours, PART):11.2f}x"
        )
    return "\n".join(lines)


def reads_caffe_nets(python: str) -> bool:
    """Whether this Python has an OpenCV that reads prototxt files (OpenCV 5 does no more)."""
    code = "import cv2; cv2.dnn.readNetFromCaffe"
    try:
        ended = subprocess.run([python, "-c", code], capture_output=True, check=False)
    except OSError:
        return False
    return ended.returncode == 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference",
        description="Time inference in protocaffe, ONNX Runtime and OpenCV on the CPU.",
    )
    parser.add_argument(
        "nets",
        nargs="*",
        metavar="NET",
        default=list(NETS),
        help=f"{', '.join(NETS)} (default: all), or a prototxt with one input and one output",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        nargs="+",
        default=list(BATCHES),
        metavar="N",
        help=f"images per run, one or several sizes (default: {' '.join(map(str, BATCHES))})",
    )
    add_turn_flags(parser)
    parser.add_argument(
        "--opencv-python",
        default=sys.executable,
        metavar="PYTHON",
        help="a Python with NumPy and OpenCV 4 (default: the one that runs this)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net at every batch size; return 1 if any could not be compared, else 0."""
    options = parse(arguments)
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        print("ONNX Runtime is missing; get it with: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    if not reads_caffe_nets(options.opencv_python):
        print(
            f"OpenCV is left out: {options.opencv_python} has no cv2.dnn.readNetFromCaffe "
            f"(pip install 'opencv-python-headless<5', perhaps in another environment, which "
            f"--opencv-python names)\n"
        )
        options.opencv_python = None
    results = []
    for net in options.nets:
        for batch in options.batch:
            print(net, flush=True)
            try:
                results.append(compare(net, batch, options))
            except (BenchmarkError, ProtocaffeError) as error:
                print(f"{net}: {error}", file=sys.stderr)
                continue
            print(table(results[-1]), end="\n\n", flush=True)
    if options.json:
        content = {"machine": machine(), "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if len(results) == len(options.nets) * len(options.batch) else 1


if __name__ == "__main__":
    sys.exit(main())
