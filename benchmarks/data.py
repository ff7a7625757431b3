"""Time what comes before a net: records of a database, to batches of transformed floats.

``python -m benchmarks.data`` makes two databases, one of raw 32 x 32 images as CIFAR's and one of
256 x 256 JPEGs as ImageNet's, and prints images per second of one core, in the Data layer and in a
PyTorch DataLoader over the same records (if PyTorch is there), beside what no reader can beat:
copying the finished floats, or decoding the JPEGs alone. Then it compares training on a database
with training on constants.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.compare_torch import BenchmarkError, Worker, available_cores, positive, started
from benchmarks.nets import NETS
from benchmarks.worker import milliseconds, serve
from protocaffe.data.database import open_database
from protocaffe.data.datum import datum_array, parse_datum
from protocaffe.data.writer import create_database
from protocaffe.proto import caffe_pb2

MEAN = (104.0, 117.0, 123.0)
TOLERANCE, RANDOM_TOLERANCE = 1e-4, 2.0
"""How far mean and spread of the first batches may lie apart; they are numbers up to 255."""
UNTIMED = 8
"""Batches that are thrown away at the start of a turn: some were made before it began."""
TRAINING_NET = "cifar10_quick"


@dataclass(frozen=True)
class Case:
    """What is read.

    Attributes:
        database: its name in the folder of the benchmark.
        batch: images per batch.
        crop: side of a random crop with random mirroring; 0 for whole images.
        batches: how many make a turn.
    """

    database: str
    batch: int
    crop: int
    batches: int


CASES = {
    "raw 32 x 32": Case("raw", 100, 0, 200),
    "raw 32 x 32, crop 28, mirror": Case("raw", 100, 28, 200),
    "JPEG 256 x 256": Case("jpeg", 32, 0, 12),
    "JPEG 256 x 256, crop 227, mirror": Case("jpeg", 32, 227, 12),
}


def photo(rng: np.random.Generator, size: int = 256) -> npt.NDArray[np.uint8]:
    """Return a random image with the spectrum of a photo: each octave has half the amplitude."""
    import cv2

    image = np.full((size, size, 3), 120.0, np.float32)
    for octave in range(2, 9):
        coarse = rng.normal(0, 120 / 2 ** (0.7 * octave), (1 << octave, 1 << octave, 3))
        image += cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def make_databases(folder: Path, raw: int = 10000, photos: int = 500) -> None:
    """Write the databases ``raw`` and ``jpeg`` with this many records."""
    import cv2

    rng = np.random.default_rng(1)
    with create_database(folder / "raw") as writer:
        for number in range(raw):
            datum = caffe_pb2.Datum(channels=3, height=32, width=32, label=number % 10)
            datum.data = rng.bytes(3 * 32 * 32)
            writer.put(b"%08d" % number, datum.SerializeToString())
    with create_database(folder / "jpeg") as writer:
        for number in range(photos):
            _, code = cv2.imencode(".jpg", photo(rng), [cv2.IMWRITE_JPEG_QUALITY, 90])
            datum = caffe_pb2.Datum(data=code.tobytes(), encoded=True, label=number % 1000)
            writer.put(b"%08d" % number, datum.SerializeToString())


def data_layer(folder: Path, case: Case) -> caffe_pb2.LayerParameter:
    """Return the Data layer of a case."""
    layer = caffe_pb2.LayerParameter(name="data", type="Data", top=["data", "label"])
    layer.data_param.source = str(folder / case.database)
    layer.data_param.batch_size = case.batch
    layer.data_param.backend = caffe_pb2.DataParameter.LMDB
    layer.transform_param.mean_value.extend(MEAN)
    layer.transform_param.crop_size = case.crop
    layer.transform_param.mirror = bool(case.crop)
    return layer


class Reader:
    """One side: makes batches, on one core."""

    def batches(self, folder: Path, case: Case) -> Iterator[Any]:
        """Yield batches without end: images, float32."""
        raise NotImplementedError


class ProtocaffeReader(Reader):
    """The Data layer, in a net of its own."""

    def batches(self, folder: Path, case: Case) -> Iterator[npt.NDArray[np.float32]]:
        """Yield batches without end."""
        from protocaffe.net import Net

        net = Net(caffe_pb2.NetParameter(layer=[data_layer(folder, case)]), caffe_pb2.TRAIN, seed=1)
        while True:
            net.forward()
            yield net.blobs["data"].data


class TorchReader(Reader):
    """A DataLoader that makes finished floats of each image, as most programs have it.

    It has no worker processes, which cannot help on one core.
    """

    per_image = True

    def batches(self, folder: Path, case: Case) -> Iterator[Any]:
        """Yield batches without end."""
        import torch

        torch.set_num_threads(1)
        mean = torch.tensor(MEAN).reshape(3, 1, 1)
        records = _records(folder, case, mean if self.per_image else None)
        loader = torch.utils.data.DataLoader(records, batch_size=case.batch)
        while True:
            for images, _ in loader:
                yield images if self.per_image else images.float().sub_(mean)


class TorchBytesReader(TorchReader):
    """A DataLoader whose images stay bytes until the batch is complete, as they do here."""

    per_image = False


def _records(folder: Path, case: Case, mean: Any) -> Any:
    """Return a map-style data set of a database's images and labels; bytes where mean is None."""
    import lmdb
    import torch

    database = lmdb.open(str(folder / case.database), readonly=True, lock=False)
    transaction = database.begin()
    keys = list(transaction.cursor().iternext(values=False))

    class Records(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(keys)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            datum = parse_datum(transaction.get(keys[index]))
            image = torch.from_numpy(datum_array(datum).copy())
            if case.crop:
                room = image.shape[-1] - case.crop
                y, x = torch.randint(room + 1, (2,)).tolist()
                image = image[:, y : y + case.crop, x : x + case.crop]
                if torch.rand(()) < 0.5:
                    image = image.flip(2)
            return image if mean is None else image.float().sub_(mean), datum.label

    return Records()


def ceiling(folder: Path, case: Case) -> Iterator[None]:
    """Decode the JPEGs of a batch, or copy a finished batch, and yield; without end."""
    import cv2

    with open_database(folder / case.database) as database:
        datums = [parse_datum(value) for _, value in database.records()]
    if datums[0].encoded:
        codes = cycle([np.frombuffer(datum.data, np.uint8) for datum in datums])
        while True:
            for code in islice(codes, case.batch):
                cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
            yield
    side = case.crop or datums[0].height
    batches = np.ones((UNTIMED, case.batch, 3, side, side), np.float32)
    target = np.empty_like(batches[0])
    for batch in cycle(batches):
        np.copyto(target, batch)
        yield


SIDES: dict[str, type[Reader]] = {
    "protocaffe": ProtocaffeReader,
    "torch": TorchReader,
    "torch, bytes": TorchBytesReader,
}


class Bench:
    """Answers the parent's orders about one case, on one core."""

    def __init__(self, side: str, folder: Path, case: Case) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        reader = SIDES[side]()
        self.case = case
        self.streams = {"batches": reader.batches(folder, case), "ceiling": ceiling(folder, case)}

    def check(self) -> list[float]:
        """Return the mean and the spread of the first batch, which random choices hardly change."""
        batch = np.asarray(next(self.streams["batches"]))
        return [*batch.shape, float(batch.mean()), float(batch.std())]

    def time(self, stream: str) -> float:
        """Return milliseconds of processor time per image, those of all threads together."""
        self._take(stream, UNTIMED)
        start = process_time()
        self._take(stream, self.case.batches)
        return (process_time() - start) * 1000 / (self.case.batches * self.case.batch)

    def _take(self, stream: str, count: int) -> None:
        for _ in range(count):
            next(self.streams[stream])


def check_same(case: Case, answers: Sequence[Sequence[float]]) -> None:
    """Refuse to go on if the sides read different things.

    Raises:
        BenchmarkError: shapes differ, or values do (much, where crops are random).
    """
    tolerance = RANDOM_TOLERANCE if case.crop else TOLERANCE
    if not all(np.allclose(each, answers[0], rtol=0, atol=tolerance) for each in answers):
        raise BenchmarkError(f"nothing was timed: the first batches differ: {answers}")


def measure(name: str, folder: Path, sides: Sequence[str], rounds: int) -> str:
    """Return a row: images per second of the sides, and how they compare.

    Raises:
        BenchmarkError: the sides do not read the same.
    """
    case = CASES[name]
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(
                started(
                    "benchmarks.data", ["--side", side, "--case", name, "--folder", str(folder)], 1
                )
            )
            for side in sides
        }
        check_same(case, [worker.ask("check") for worker in workers.values()])
        turns: list[tuple[Worker, str]] = [(workers["protocaffe"], "ceiling")]
        turns += [(worker, "batches") for worker in workers.values()]
        times = [
            [worker.ask("time", stream=stream) for worker, stream in turns] for _ in range(rounds)
        ]
    return _row(name, times)


def _row(name: str, times: Sequence[Sequence[float]]) -> str:
    """Format milliseconds per image of each round: of the ceiling, of protocaffe, of others."""
    best = [min(column) for column in zip(*times, strict=True)]
    row = f"{name:34s}" + "".join(f"{1000 / value:14,.0f}" for value in best)
    row += f"{best[0] / best[1]:9.0%}{median(turn[0] / turn[1] for turn in times):8.0%}"
    for other in range(2, len(best)):
        ratio = median(turn[other] / turn[1] for turn in times)
        row += f"{best[other] / best[1]:9.2f}x{ratio:7.2f}x"
    return row


def training_steps(folder: Path) -> dict[str, Callable[[int], None]]:
    """Return the ``step`` of two solvers of the same net, on a database and on constants."""
    from benchmarks.protocaffe_worker import solver_param
    from protocaffe.solvers import get_solver

    steps = {}
    for name in ("Data", "DummyData"):
        net = NETS[TRAINING_NET]()
        if name == "Data":
            batch = net.layer[0].dummy_data_param.shape[0].dim[0]
            net.layer[0].CopyFrom(data_layer(folder, Case("raw", batch, 0, 0)))
        else:
            for filler in net.layer[0].dummy_data_param.data_filler:
                filler.type = "constant"  # filled once
        steps[name] = get_solver(solver_param(net)).step
    return steps


class Training:
    """Answers the parent's order to compare training on both kinds of data."""

    def __init__(self, folder: Path) -> None:
        self.steps = training_steps(folder)
        for step in self.steps.values():
            step(UNTIMED)

    def time(self, iterations: int) -> list[list[float]]:
        """Return milliseconds of some iterations on a database, and of as many on constants."""
        times = []
        for step in self.steps.values():
            step(1)
            times.append([milliseconds(lambda: step(1)) for _ in range(iterations)])  # noqa: B023
        return times


def compare_training(folder: Path, rounds: int, threads: int) -> str:
    """Return a row: milliseconds per iteration on both kinds of data, and their ratio."""
    arguments = ["--side", "training", "--folder", str(folder)]
    with started("benchmarks.data", arguments, threads) as worker:
        ours, floor = np.array([worker.ask("time", iterations=20) for _ in range(rounds)]).swapaxes(
            0, 1
        )
    ratio = median(np.median(ours, axis=1) / np.median(floor, axis=1))
    return (
        f"{TRAINING_NET + f', {threads} thread(s)':34s}"
        f"{ours.min():12.2f}{np.median(ours):10.2f}{floor.min():12.2f}{np.median(floor):10.2f}"
        f"{ours.min() / floor.min():12.3f}{ratio:8.3f}"
    )


def serve_side(side: str, case: str | None, folder: Path) -> None:
    """Answer the parent's orders until it is done."""
    if side == "training":
        serve({"time": Training(folder).time}, ())
    elif case:
        bench = Bench(side, folder, CASES[case])
        serve({"check": bench.check, "time": bench.time}, ())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=9, help="default: %(default)s")
    parser.add_argument(
        "--threads", type=positive, default=available_cores(), help="of the training (default: all)"
    )
    parser.add_argument("--side", choices=(*SIDES, "training"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return 1 if something could not be compared, else 0."""
    options = parse(arguments)
    if options.side:
        serve_side(options.side, options.case, options.folder)
        return 0
    sides = list(SIDES) if find_spec("torch") is not None else ["protocaffe"]
    status = 0
    with tempfile.TemporaryDirectory(prefix="benchmarks_data") as place:
        folder = Path(place)
        make_databases(folder)
        print(f"{'images/s of one core':34s}", end="")
        print("".join(f"{side:>14s}" for side in ["ceiling", *sides]), end="")
        print("  protocaffe / ceiling, then PyTorch's time / protocaffe's (each min, median)")
        for name in CASES:
            try:
                print(measure(name, folder, sides, options.rounds), flush=True)
            except BenchmarkError as error:
                print(f"{name}: {error}", file=sys.stderr)
                status = 1
        print(
            f"\n{'ms per iteration: min, median':34s}{'LMDB':>22s}{'constants':>22s}{'ratio':>20s}"
        )
        print(compare_training(folder, options.rounds, options.threads), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
