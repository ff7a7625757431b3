"""The sides of a comparison of inference; started by ``inference``, each with its own Python.

Only NumPy and what a side itself needs are imported: OpenCV 4 may live in an environment of its
own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.worker import milliseconds, serve

TEXT_FILE, WEIGHTS_FILE, ONNX_FILE = "net.prototxt", "net.caffemodel", "net.onnx"
INPUT_FILE = "input.npy"
PART = "forward"

Array = npt.NDArray[Any]


class Side(Protocol):
    """A net ready to run."""

    version: str

    def __call__(self, images: Array) -> Array:
        """Return the net's one output, as a user of the library gets it."""


class Protocaffe:
    """The net in protocaffe, as ``protocaffe classify`` and the Classifier make it."""

    def __init__(self, folder: Path, threads: int, engine: str | None) -> None:
        import protocaffe

        self.version = protocaffe.__version__
        self._net = protocaffe.Net(
            folder / TEXT_FILE,
            protocaffe.TEST,
            weights=folder / WEIGHTS_FILE,
            engine=engine,
            forward_only=True,
            reuse_memory=True,
        )
        self._input, self._output = self._net.inputs[0], self._net.outputs[0]

    def __call__(self, images: Array) -> Array:
        """Return the net's one output."""
        return self._net.forward(**{self._input: images})[self._output]


class OnnxRuntime:
    """The exported net in ONNX Runtime, all its optimizations on."""

    def __init__(self, folder: Path, threads: int, engine: str | None) -> None:
        import onnxruntime

        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Array) -> Array:
        """Return the net's one output."""
        (output,) = self._session.run(None, {self._input: images})
        return np.asarray(output)


class OpenCv:
    """The prototxt and its weights in OpenCV's dnn, on the CPU."""

    def __init__(self, folder: Path, threads: int, engine: str | None) -> None:
        import cv2

        self.version = cv2.__version__
        cv2.setNumThreads(threads)
        self._net = cv2.dnn.readNetFromCaffe(str(folder / TEXT_FILE), str(folder / WEIGHTS_FILE))

    def __call__(self, images: Array) -> Array:
        """Return the net's one output."""
        self._net.setInput(images)
        return np.asarray(self._net.forward())


SIDES = {"protocaffe": Protocaffe, "onnxruntime": OnnxRuntime, "opencv": OpenCv}


class InferenceWorker:
    """Runs the prepared net on one side.

    Args:
        side: a name of ``SIDES``.
        folder: where the net, its weights and the images are.
        threads: how many threads it may use.
        engine: protocaffe's engine, None for its fastest.
    """

    def __init__(self, side: str, folder: Path, threads: int, engine: str | None) -> None:
        self._folder = folder
        self._name = side
        self._images = np.load(folder / INPUT_FILE)
        self._side: Side = SIDES[side](folder, threads, engine)

    def check(self) -> dict[str, str]:
        """Run once; leave the result in the folder and say which version computed it."""
        np.save(self._folder / f"{self._name}.npy", self._side(self._images))
        return {"version": self._side.version}

    def time(self, iterations: int) -> dict[str, list[float]]:
        """Return the milliseconds per batch; one run goes ahead untimed."""
        self._side(self._images)
        return {PART: [milliseconds(lambda: self._side(self._images)) for _ in range(iterations)]}


def main() -> None:
    """Serve orders; arguments are the side, the folder, the threads and perhaps the engine."""
    side, folder, threads, *engine = sys.argv[1:]
    worker = InferenceWorker(side, Path(folder), int(threads), *(engine or [None]))
    serve({"check": worker.check, "time": worker.time}, refusals=())


if __name__ == "__main__":
    main()
