"""The PyTorch side of a comparison; started by ``compare_torch``."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
from benchmarks.worker import first_losses, milliseconds, peak_memory, serve, time_trainer

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

OPTIMIZERS = ("foreach", "fused")

OPTIMIZER_TRIALS = 5


class TorchTrainer:
    """The problem's net with its weights and data, trained by ``torch.optim.SGD``.

    Args:
        problem: what to train.
        layout: the memory format of weights and images, a name of ``LAYOUTS``.
        compiled: whether ``torch.compile`` compiles the net.
        dropout: whether dropout layers drop anything.
    """

    def __init__(
        self, problem: Problem, layout: str, *, compiled: bool = False, dropout: bool = True
    ) -> None:
        parameters = problem.net if dropout else without_dropout(problem.net)
        self.net = TorchNet(parameters, problem.weights)
        for weight in self.net.weights:
            weight.data = in_layout(weight.data, layout)
        self.run: Callable[..., Tensor] = torch.compile(self.net) if compiled else self.net
        self.inputs = [
            in_layout(torch.from_numpy(problem.inputs[name]), layout) for name in self.net.inputs
        ]
        self.loss: Tensor
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
            times[kind] = min(milliseconds(self.update) for _ in range(OPTIMIZER_TRIALS))
        self.use_optimizer(min(times, key=times.__getitem__))

    def forward(self) -> float:
        """Compute the loss."""
        self.loss = self.run(*self.inputs)
        return float(self.loss.item())

    def backward(self) -> None:
        """Compute all gradients."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss)

    def update(self) -> None:
        """Run the optimiser."""
        self.optimizer.step()

    def step(self) -> None:
        """One iteration of the usual training loop."""
        self.forward()
        self.backward()
        self.update()


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor; in the named memory format if it has four axes."""
    return tensor.to(memory_format=LAYOUTS[layout]) if tensor.dim() == 4 else tensor


class TorchWorker:
    """Trains the prepared problem in one variant or another.

    A variant is a layout's name, with " compiled" behind it for ``torch.compile``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainers: dict[str, TorchTrainer] = {}

    def check(self, layout: str) -> list[float]:
        """Return the losses before and after one update, without dropout."""
        return first_losses(TorchTrainer(Problem.load(self.folder), layout, dropout=False))

    def time(self, variant: str, iterations: int) -> dict[str, list[float]]:
        """Return the milliseconds of each part, per iteration; the first call builds the net."""
        if variant not in self.trainers:
            layout, _, compiled = variant.partition(" ")
            problem = Problem.load(self.folder)
            trainer = TorchTrainer(problem, layout, compiled=compiled == "compiled")
            trainer.choose_optimizer()
            self.trainers[variant] = trainer
        return time_trainer(self.trainers[variant], iterations)

    def peak_memory(self, layout: str, steps: int) -> float:
        """Train with the fused optimiser; return this process' peak in MiB."""
        trainer = TorchTrainer(Problem.load(self.folder), layout)
        trainer.use_optimizer("fused")
        return peak_memory(trainer, steps)

    def about(self, variant: str) -> dict[str, str]:
        """Return the optimiser chosen for a variant, and PyTorch's version."""
        return {"optimizer": self.trainers[variant].kind, "torch": torch.__version__}


def main() -> None:
    """Serve orders; arguments are the shared folder and the number of threads."""
    torch.set_num_threads(int(sys.argv[2]))
    worker = TorchWorker(Path(sys.argv[1]))
    serve(
        {
            "check": worker.check,
            "time": worker.time,
            "about": worker.about,
            "peak_memory": worker.peak_memory,
        },
        refusals=(TranslationError,),
    )


if __name__ == "__main__":
    main()
