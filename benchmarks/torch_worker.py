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
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        problem: Problem,
        layout: str,
        *,
        compiled: bool = False,
        dropout: bool = True,
        device: str = "cpu",
    ) -> None:
        parameters = problem.net if dropout else without_dropout(problem.net)
        self.net = TorchNet(parameters, problem.weights)
        for weight in self.net.weights:
            weight.data = in_layout(weight.data.to(device), layout)
        self.on_gpu = device == "cuda"
        # On a GPU this mode launches CUDA graphs.
        mode = "reduce-overhead" if self.on_gpu else "default"
        self.run: Callable[..., Tensor] = (
            torch.compile(self.net, mode=mode) if compiled else self.net
        )
        self.inputs = [
            in_layout(torch.from_numpy(problem.inputs[name]).to(device), layout)
            for name in self.net.inputs
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
            times[kind] = min(milliseconds(self._updated) for _ in range(OPTIMIZER_TRIALS))
        self.use_optimizer(min(times, key=times.__getitem__))

    def forward(self) -> float:
        """Compute the loss."""
        self._forward()
        return float(self.loss.item())

    def _forward(self) -> None:
        self.loss = self.run(*self.inputs)

    def backward(self) -> None:
        """Compute all gradients."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss)

    def update(self) -> None:
        """Run the optimiser."""
        self.optimizer.step()

    def _updated(self) -> None:
        self.update()
        self.synchronize()

    def step(self) -> None:
        """One iteration of the usual training loop."""
        self._forward()
        self.backward()
        self.update()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor; in the named memory format if it has four axes."""
    return tensor.to(memory_format=LAYOUTS[layout]) if tensor.dim() == 4 else tensor


class TorchWorker:
    """Trains the prepared problem in one variant or another.

    A variant is a layout's name, with " compiled" behind it for ``torch.compile``.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = device
        self.trainers: dict[str, TorchTrainer] = {}

    def check(self, layout: str) -> list[float]:
        """Return the losses before and after one update, without dropout."""
        problem = Problem.load(self.folder)
        return first_losses(TorchTrainer(problem, layout, dropout=False, device=self.device))

    def time(self, variant: str, iterations: int) -> dict[str, list[float]]:
        """Return the milliseconds of each part, per iteration; the first call builds the net."""
        if variant not in self.trainers:
            layout, _, compiled = variant.partition(" ")
            problem = Problem.load(self.folder)
            trainer = TorchTrainer(
                problem, layout, compiled=compiled == "compiled", device=self.device
            )
            trainer.choose_optimizer()
            self.trainers[variant] = trainer
        return time_trainer(self.trainers[variant], iterations, on_gpu=self.device == "cuda")

    def peak_memory(self, layout: str, steps: int) -> float:
        """Train with the fused optimiser; return this process' peak in MiB."""
        trainer = TorchTrainer(Problem.load(self.folder), layout, device=self.device)
        trainer.use_optimizer("fused")
        return peak_memory(trainer, steps)

    def about(self, variant: str) -> dict[str, str]:
        """Return the optimiser chosen for a variant, and PyTorch's version."""
        return {"optimizer": self.trainers[variant].kind, "torch": torch.__version__}


def main() -> None:
    """Serve orders; arguments: the shared folder, the number of threads, perhaps a device."""
    torch.set_num_threads(int(sys.argv[2]))
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # as protocaffe, unless it is told otherwise
    worker = TorchWorker(Path(sys.argv[1]), *sys.argv[3:])
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
