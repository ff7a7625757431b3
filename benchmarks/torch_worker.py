"""The PyTorch side of a comparison; started by ``compare_torch``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.problem import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Problem,
    without_dropout,
)
from benchmarks.torch_net import TorchNet, TranslationError, sgd
from benchmarks.worker import first_results, milliseconds, peak_memory, serve, time_trainer

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}

OPTIMIZERS = ("foreach", "fused")

OPTIMIZER_TRIALS = 5

LOSS_SCALE = 1024.0
"""What fp16's gradients are multiplied by at first; so little that none overflows."""

WARM_STEPS = 3
"""Steps before one is captured."""


class TorchTrainer:
    """The problem's net with its weights and data, trained by ``torch.optim.SGD``.

    Args:
        problem: what to train.
        layout: the memory format of weights and images, a name of ``LAYOUTS``.
        way: ``eager``; ``compiled`` by ``torch.compile``, which on a GPU launches CUDA graphs;
            or ``graph``: whole steps are one CUDA graph, but for what fp16 needs of the host.
        precision: float32 and tf32, or what autocast computes with.
        dropout: whether dropout layers drop anything.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        problem: Problem,
        layout: str,
        *,
        way: str = "eager",
        precision: str = "float32",
        dropout: bool = True,
        device: str = "cpu",
    ) -> None:
        parameters = problem.net if dropout else without_dropout(problem.net)
        self.net = TorchNet(parameters, problem.weights)
        for weight in self.net.weights:
            weight.data = in_layout(weight.data.to(device), layout)
        self.device, self.way, self.precision = device, way, precision
        mode = "reduce-overhead" if device == "cuda" else "default"
        self.run: Callable[..., Tensor] = (
            torch.compile(self.net, mode=mode) if way == "compiled" else self.net
        )
        self.inputs = [
            in_layout(torch.from_numpy(problem.inputs[name]).to(device), layout)
            for name in self.net.inputs
        ]
        self.scaler = torch.amp.GradScaler(
            device, init_scale=LOSS_SCALE, enabled=precision == "fp16"
        )
        self.loss: Tensor
        self.graph: torch.cuda.CUDAGraph | None = None
        self.use_optimizer("foreach")

    def use_optimizer(self, kind: str) -> None:
        """Start anew with one of PyTorch's two fast implementations of SGD."""
        self.kind = kind
        self.optimizer = sgd(self.net, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, **{kind: True})

    def choose_optimizer(self) -> None:
        """Use the implementation of SGD whose update is the fastest."""
        self.forward()
        self.backward()
        times = {}
        for kind in OPTIMIZERS:
            self.use_optimizer(kind)
            self.update()  # allocates the momentum
            times[kind] = min(milliseconds(self._updated) for _ in range(OPTIMIZER_TRIALS))
        self.use_optimizer(min(times, key=times.__getitem__))

    def forward(self) -> float:
        """Compute the loss."""
        self._forward()
        return float(self.loss.item())

    def _forward(self) -> None:
        if self.way == "compiled" and self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        with self._autocast():
            self.loss = self.run(*self.inputs)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision not in HALVES:
            return nullcontext()
        # What autocast remembers would be outside of a graph.
        remembers = self.way != "graph"
        dtype = HALVES[self.precision]
        return torch.autocast(self.device, dtype=dtype, cache_enabled=remembers)

    def backward(self) -> None:
        """Compute all gradients."""
        self.optimizer.zero_grad(set_to_none=self.graph is None)  # a graph's stay where they are
        self._backward()

    def _backward(self) -> None:
        torch.autograd.backward(self.scaler.scale(self.loss))

    def gradient_length(self) -> float:
        """Return the Euclidean norm of all gradients."""
        gradients = [weight.grad for weight in self.net.weights if weight.grad is not None]
        norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in gradients]
        return float(torch.stack(norms).norm()) / self.scaler.get_scale()

    def update(self) -> None:
        """Run the optimiser."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _updated(self) -> None:
        self.update()
        self.synchronize()

    def step(self) -> None:
        """One iteration of the usual training loop."""
        if self.way == "graph":
            self._launch()
            return
        self._forward()
        self.backward()
        self.update()

    def _launch(self) -> None:
        if self.graph is None:
            self.graph = self._captured()
        self.graph.replay()
        if self.scaler.is_enabled():
            self.update()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture a step; where gradients are scaled, all but its update, as the manual says."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self._forward()
                self.backward()
                self.update()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            self._forward()
            self._backward()
            if not self.scaler.is_enabled():
                self.optimizer.step()
        return graph

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def device_memory(self) -> tuple[int, int]:
        """Ask CUDA for free and total bytes."""
        return torch.cuda.mem_get_info()


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor; in the named memory format if it has four axes."""
    return tensor.to(memory_format=LAYOUTS[layout]) if tensor.dim() == 4 else tensor


class TorchWorker:
    """Trains the prepared problem in one variant or another.

    A variant is a layout's name, perhaps with "compiled" or "graph" behind it.
    """

    def __init__(self, folder: Path, device: str = "cpu", precision: str = "float32") -> None:
        self.folder = folder
        self.how = {"device": device, "precision": precision}
        self.on_gpu = device == "cuda"
        self.trainers: dict[str, TorchTrainer] = {}

    def check(self, layout: str) -> dict[str, float]:
        """Return what the first iteration computes, without dropout."""
        problem = Problem.load(self.folder)
        return first_results(TorchTrainer(problem, layout, dropout=False, **self.how))

    def time(self, variant: str, iterations: int) -> dict[str, list[float]]:
        """Return the milliseconds of each part, per iteration; the first call builds the net."""
        if variant not in self.trainers:
            layout, _, way = variant.partition(" ")
            problem = Problem.load(self.folder)
            trainer = TorchTrainer(problem, layout, way=way or "eager", **self.how)
            trainer.choose_optimizer()
            self.trainers[variant] = trainer
        return time_trainer(self.trainers[variant], iterations, self.on_gpu)

    def peak_memory(self, layout: str, steps: int) -> float:
        """Train with the fused optimiser; return this process' peak in MiB."""
        trainer = TorchTrainer(Problem.load(self.folder), layout, **self.how)
        trainer.use_optimizer("fused")
        return peak_memory(trainer, steps, self.on_gpu)

    def about(self, variant: str) -> dict[str, str]:
        """Return the optimiser chosen for a variant, and PyTorch's version."""
        return {"optimizer": self.trainers[variant].kind, "torch": torch.__version__}

    def drop(self, variant: str) -> None:
        """Let go of a variant and the memory that it takes on a GPU."""
        self.trainers.pop(variant, None)
        if variant.endswith("compiled"):
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Serve orders; arguments: the shared folder, threads, perhaps the device and the precision."""
    folder, threads, *how = sys.argv[1:]
    torch.set_num_threads(int(threads))
    worker = TorchWorker(Path(folder), *how)
    torch.backends.cudnn.benchmark = True
    exact = worker.how["precision"] == "float32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    serve(
        {
            "check": worker.check,
            "time": worker.time,
            "about": worker.about,
            "drop": worker.drop,
            "peak_memory": worker.peak_memory,
        },
        # On a GPU a variant may fail for want of memory, or of a compiler.
        refusals=(TranslationError, RuntimeError),
    )


if __name__ == "__main__":
    main()
