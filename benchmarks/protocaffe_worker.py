"""The protocaffe side of a comparison; started by ``compare_torch``."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nets import NETS
from benchmarks.problem import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Array,
    Problem,
    ProblemError,
    with_inputs,
    without_dropout,
)
from benchmarks.worker import first_results, peak_memory, serve, time_trainer
from protocaffe.engines import Engine, get_engine
from protocaffe.errors import ProtocaffeError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_net
from protocaffe.solvers import get_solver

SEED = 1


class ProtocaffeTrainer:
    """A solver on the problem's net, with its weights and data.

    Args:
        problem: what to train.
        engine: an engine, what ``--engine`` names, or None for protocaffe's own choice.
        dropout: whether dropout layers drop anything.
    """

    def __init__(
        self, problem: Problem, engine: str | Engine | None, *, dropout: bool = True
    ) -> None:
        net = problem.net if dropout else without_dropout(problem.net)
        self.solver = get_solver(solver_param(net), engine=engine, reuse_memory=True)
        self.net = self.solver.net
        for layer, arrays in problem.weights.items():
            for blob, array in zip(self.net.params[layer], arrays, strict=True):
                blob.data[...] = array
        for name, array in problem.inputs.items():
            self.net.blobs[name].data[...] = array

    def forward(self) -> float:
        """Compute the loss."""
        return self.net.run_forward()

    def backward(self) -> None:
        """Compute all gradients."""
        self.net.clear_param_diffs()
        self.net.run_backward()

    def gradient_length(self) -> float:
        """Return the Euclidean norm of the gradients of what is learned."""
        diffs = [each.blob.diff_storage for each in self.net.learnable if each.lr_mult]
        return math.sqrt(self.net.engine.sum_of_squares(diffs))

    def update(self) -> None:
        """Run the solver's update rule."""
        self.solver.apply_update()

    def step(self) -> None:
        """One iteration of the solver, as ``protocaffe train`` runs it."""
        self.solver.step(1)

    def synchronize(self) -> None:
        """Wait for the engine."""
        self.net.engine.synchronize()

    def device_memory(self) -> tuple[int, int]:
        """Ask CUDA for free and total bytes."""
        free, total = self.net.engine.xp.cuda.runtime.memGetInfo()
        return free, total


def solver_param(net: caffe_pb2.NetParameter) -> caffe_pb2.SolverParameter:
    """Return SGD with momentum and weight decay that neither tests, prints nor saves."""
    return caffe_pb2.SolverParameter(
        type="SGD",
        net_param=net,
        base_lr=LEARNING_RATE,
        lr_policy="fixed",
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        random_seed=SEED,
    )


class ProtocaffeWorker:
    """Prepares the problem for both sides and trains it with protocaffe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine
        self.problem: Problem
        self.trainer: ProtocaffeTrainer

    def use(self, engine: str | None, precision: str = "float32") -> None:
        """Train with that engine."""
        self.engine = get_engine(engine, precision)

    def prepare(self, net: str, batch: int | None, image: list[int] | None) -> dict[str, Any]:
        """Fill weights and data, leave them in the folder, and say what will be trained."""
        parameters = NETS[net]() if net in NETS else read_net(net)[0]
        parameters, spread = with_inputs(parameters, batch, image)
        built = Net(parameters, caffe_pb2.TRAIN, engine="numpy", seed=SEED)
        weights = {layer: [blob.data for blob in blobs] for layer, blobs in built.params.items()}
        self.problem = Problem(built.graph.param, weights, draw_inputs(built, spread))
        self.problem.save(self.folder)
        return {
            "net": built.name,
            "batch": built.blobs[built.inputs[0]].shape[0],
            "parameters": sum(param.blob.count for param in built.learnable if param.lr_mult),
        }

    def check(self) -> dict[str, float]:
        """Return what the first iteration computes, without dropout."""
        results = first_results(ProtocaffeTrainer(self.problem, self.engine, dropout=False))
        gc.collect()  # a GPU would not hold the next net beside this one
        return results

    def time(self, iterations: int) -> dict[str, list[float]]:
        """Return the milliseconds of each part, per iteration; the first call builds the net."""
        if not hasattr(self, "trainer"):
            self.trainer = ProtocaffeTrainer(self.problem, self.engine)
        return time_trainer(self.trainer, iterations, on_gpu=self.engine.name == "cuda")

    def peak_memory(self, steps: int) -> float:
        """Train a problem that another process prepared; return this process' peak in MiB."""
        trainer = ProtocaffeTrainer(Problem.load(self.folder), self.engine)
        return peak_memory(trainer, steps, on_gpu=self.engine.name == "cuda")


def draw_inputs(net: Net, spread: dict[str, float]) -> dict[str, Array]:
    """Return images drawn from N(0, std²) and labels drawn from the net's classes."""
    rng = np.random.default_rng(SEED)
    classes = label_classes(net)
    inputs: dict[str, Array] = {}
    for name in net.inputs:
        shape = net.blobs[name].shape
        if name in classes:
            inputs[name] = rng.integers(classes[name], size=shape)
        else:
            inputs[name] = spread[name] * rng.standard_normal(shape, np.float32)
    return inputs


def label_classes(net: Net) -> dict[str, int]:
    """Return the number of classes for every input that a softmax loss reads as labels."""
    origin: dict[str, str] = {}
    classes: dict[str, int] = {}
    for node in net.graph.nodes:
        if node.param.type == "Split":
            name = node.bottoms[0]
            origin.update(dict.fromkeys(node.tops, origin.get(name, name)))
        elif node.param.type == "SoftmaxWithLoss":
            scores, label = node.bottoms
            axis = node.param.softmax_param.axis
            classes[origin.get(label, label)] = net.blobs[scores].shape[axis]
    return classes


def main() -> None:
    """Serve orders; the one argument is the folder for what both sides share."""
    worker = ProtocaffeWorker(Path(sys.argv[1]))
    serve(
        {
            "use": worker.use,
            "prepare": worker.prepare,
            "check": worker.check,
            "time": worker.time,
            "peak_memory": worker.peak_memory,
        },
        refusals=(ProtocaffeError, ProblemError),
    )


if __name__ == "__main__":
    main()
