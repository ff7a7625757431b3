"""Time layers' own code, as the numpy engine runs it, against the same operations in PyTorch.

Both sides compute the same numbers on one thread, forward and backward, turn by turn; the table
has the minimum of each. Run it as ``python -m benchmarks.layers [name of a layer ...]``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from protocaffe.layers.normalization import BatchNorm
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

ROUNDS = 9
GOAL = 3.0
"""How many times PyTorch's time a layer may take."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""One thread; and freed memory is used again, else new pages cost more than many a layer."""

LOSS = 'layer { name: "sum" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }'
"""Gives a layer something to learn from."""

Operation = Callable[..., Tensor]


@dataclass
class Case:
    """A layer, with a shape from a published net, and what it is in PyTorch.

    Attributes:
        layer: its type and settings, in prototxt.
        shapes: of the bottoms.
        operation: the same from the bottoms and the layer's parameters.
        classes: for a last bottom of labels, how many; 0 if there is none.
        random: whether its numbers are drawn, so that the two sides differ.
        differentiable: whether it has a backward pass.
    """

    layer: str
    shapes: Sequence[tuple[int, ...]]
    operation: Operation
    classes: int = 0
    random: bool = False
    differentiable: bool = True

    @property
    def type(self) -> str:
        """The layer's type."""
        return self.layer.split('"')[1]


def max_pool(x: Tensor) -> Tensor:
    """Pool as Caffe does by default: the last window may reach over the edge."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """Normalize by the batch's statistics and update running ones."""
    return F.batch_norm(x, mean, variance, training=True)


def mean_squares(a: Tensor, b: Tensor) -> Tensor:
    """Return EuclideanLoss."""
    return ((a - b) ** 2).sum() / (2 * len(a))


def lstm(x: Tensor, cont: Tensor, w_x: Tensor, bias: Tensor, w_h: Tensor) -> Tensor:
    """Unroll an LSTM; the gates are ordered i, f, o, g in Caffe and i, f, g, o in PyTorch."""
    d = w_h.shape[1]
    order = torch.cat([torch.arange(2 * d), torch.arange(3 * d, 4 * d), torch.arange(2 * d, 3 * d)])
    zeros = torch.zeros(1, x.shape[1], d)
    weights = [w_x[order], w_h[order], bias[order], torch.zeros(4 * d)]
    return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, True, False, False)[0]


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right labels."""
    return (scores.argmax(dim=1) == labels).float().mean()


def convolution(
    num_output: int,
    kernel: int,
    shape: tuple[int, ...],
    stride: int = 1,
    pad: int = 0,
    group: int = 1,
) -> Case:
    """Return a convolution without bias."""
    return Case(
        f'type: "Convolution" convolution_param {{ num_output: {num_output} bias_term: false '
        f"kernel_size: {kernel} stride: {stride} pad: {pad} group: {group} "
        f'weight_filler {{ type: "xavier" }} }}',
        [shape],
        partial(F.conv2d, stride=stride, padding=pad, groups=group),
    )


CASES = {
    "AlexNet conv1": convolution(96, 11, (8, 3, 227, 227), stride=4),
    "VGG conv3_2": convolution(256, 3, (2, 256, 56, 56), pad=1),
    "ResNet 1x1": convolution(64, 1, (8, 256, 56, 56)),
    "MobileNet depthwise": convolution(256, 3, (8, 256, 28, 28), pad=1, group=256),
    "FCN upscore": Case(
        'type: "Deconvolution" convolution_param { num_output: 21 kernel_size: 4 stride: 2 '
        'bias_term: false weight_filler { type: "xavier" } }',
        [(4, 21, 64, 64)],
        partial(F.conv_transpose2d, stride=2),
    ),
    "VGG fc7": Case(
        'type: "InnerProduct" inner_product_param { num_output: 4096 '
        'weight_filler { type: "xavier" } }',
        [(32, 4096)],
        F.linear,
    ),
    "GoogLeNet pool1": Case(
        'type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 }',
        [(8, 64, 112, 112)],
        max_pool,
    ),
    "cifar10_quick pool2": Case(
        'type: "Pooling" pooling_param { pool: AVE kernel_size: 2 stride: 2 }',
        [(100, 32, 16, 16)],
        partial(F.avg_pool2d, kernel_size=2),
    ),
    "GoogLeNet pool5": Case(
        'type: "Pooling" pooling_param { pool: AVE global_pooling: true }',
        [(32, 1024, 7, 7)],
        partial(F.adaptive_avg_pool2d, output_size=1),
    ),
    "AlexNet norm1": Case(
        'type: "LRN" lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }',
        [(8, 96, 55, 55)],
        partial(F.local_response_norm, size=5, alpha=0.0001, beta=0.75),
    ),
    "ResNet bn2a": Case('type: "BatchNorm"', [(8, 256, 56, 56)], batch_norm),
    "ResNet scale2a": Case(
        'type: "Scale" scale_param { bias_term: true }',
        [(8, 256, 56, 56)],
        lambda x, a, b: x * a[:, None, None] + b[:, None, None],
    ),
    "MVN": Case('type: "MVN" mvn_param { eps: 0.00001 }', [(8, 64, 64, 64)], F.instance_norm),
    "VGG relu1": Case('type: "ReLU"', [(4, 64, 224, 224)], F.relu),
    "PReLU-net": Case('type: "PReLU"', [(8, 64, 112, 112)], F.prelu),
    "ELU": Case('type: "ELU"', [(8, 64, 112, 112)], F.elu),
    "Sigmoid": Case('type: "Sigmoid"', [(8, 64, 112, 112)], torch.sigmoid),
    "TanH": Case('type: "TanH"', [(8, 64, 112, 112)], torch.tanh),
    "AlexNet drop6": Case('type: "Dropout"', [(256, 4096)], F.dropout, random=True),
    "ResNet res2a": Case('type: "Eltwise"', [(8, 256, 56, 56)] * 2, torch.add),
    "Maxout": Case(
        'type: "Eltwise" eltwise_param { operation: MAX }', [(8, 64, 112, 112)] * 2, torch.maximum
    ),
    "GoogLeNet inception_3a": Case(
        'type: "Concat"',
        [(32, channels, 28, 28) for channels in (64, 128, 32, 32)],
        lambda *bottoms: torch.cat(bottoms, dim=1),
    ),
    "FCN score crop": Case(
        'type: "Crop" crop_param { offset: 19 }',
        [(2, 21, 568, 568), (2, 21, 500, 500)],
        lambda x, size: x[:, :, 19:519, 19:519].contiguous(),
    ),
    "FCN softmax": Case('type: "Softmax"', [(4, 21, 128, 128)], partial(torch.softmax, dim=1)),
    "AlexNet loss": Case('type: "SoftmaxWithLoss"', [(256, 1000), (256,)], F.cross_entropy, 1000),
    "FCN loss": Case(
        'type: "SoftmaxWithLoss"', [(4, 21, 128, 128), (4, 128, 128)], F.cross_entropy, 21
    ),
    "AlexNet accuracy": Case(
        'type: "Accuracy"', [(256, 1000), (256,)], accuracy, 1000, differentiable=False
    ),
    "HED loss": Case(
        'type: "SigmoidCrossEntropyLoss"',
        [(4, 1, 400, 400), (4, 1, 400, 400)],
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="sum") / len(x),
    ),
    "SRCNN loss": Case('type: "EuclideanLoss"', [(64, 1, 100, 100)] * 2, mean_squares),
    "LRCN lstm": Case(
        'type: "LSTM" recurrent_param { num_output: 256 weight_filler { type: "xavier" } }',
        [(16, 24, 512), (16, 24)],
        lstm,
    ),
    "LRCN embedding": Case(
        'type: "Embed" embed_param { input_dim: 8801 num_output: 1000 bias_term: false '
        'weight_filler { type: "xavier" } }',
        [(20, 100)],
        lambda index, weight: F.embedding(index, weight),
        8801,
    ),
}


class Numpy:
    """The layer in a net of its own."""

    def __init__(self, case: Case, values: Sequence[np.ndarray]) -> None:
        inputs = "\n".join(
            f'layer {{ name: "b{i}" type: "Input" top: "b{i}" input_param {{ shape {{ '
            + " ".join(f"dim: {extent}" for extent in value.shape)
            + " } } }"
            for i, value in enumerate(values)
        )
        bottoms = " ".join(f'bottom: "b{i}"' for i in range(len(values)))
        text = f'{inputs} layer {{ name: "it" {case.layer} {bottoms} top: "y" }}'
        force = case.differentiable
        if case.classes and len(values) == 1:  # no gradient for indices, only for parameters
            text, force = text + LOSS, False
        param = parse_text(text, caffe_pb2.NetParameter(force_backward=force))
        self.net = Net(param, caffe_pb2.TRAIN, engine="numpy", seed=1)
        for i, value in enumerate(values):
            self.net.blobs[f"b{i}"].data[...] = value
        self.net.run_forward()
        self.index = len(values)  # behind the layers of its bottoms
        self.layer = self.net.layers[self.index]

    @property
    def parameters(self) -> list[np.ndarray]:
        """The layer's parameters."""
        return [blob.data for blob in self.layer.blobs]

    @property
    def wanted(self) -> list[bool]:
        """Per bottom and parameter, whether backward computes its gradient."""
        if isinstance(self.layer, BatchNorm):
            return [True, False, False, False]
        wanted = self.net.bottom_needs_backward[self.index]
        return [*wanted, *self.layer.param_propagate_down]

    def forward(self) -> None:
        """Run the layer forward."""
        self.net.forward_layer(self.index)

    def backward(self) -> None:
        """Run the layer backward."""
        self.net.backward_layer(self.index)


class Torch:
    """The operation with its inputs.

    Args:
        case: what to compute.
        values: the bottoms'.
        parameters: the layer's.
        wanted: per bottom and parameter, whether its gradient is computed.
    """

    def __init__(
        self,
        case: Case,
        values: Sequence[np.ndarray],
        parameters: Sequence[np.ndarray],
        wanted: Sequence[bool],
    ) -> None:
        self.operation = case.operation
        self.inputs = [torch.from_numpy(value.copy()) for value in (*values, *parameters)]
        if case.classes:
            self.inputs[len(values) - 1] = self.inputs[len(values) - 1].long()
        for tensor, want in zip(self.inputs, wanted, strict=True):
            tensor.requires_grad_(want)
        self.forward()
        self.gradient = torch.ones_like(self.y)

    def forward(self) -> None:
        """Compute y."""
        for tensor in self.inputs:
            tensor.grad = None
        self.y = self.operation(*self.inputs)

    def backward(self) -> None:
        """Compute the gradients."""
        self.y.backward(self.gradient)


def measure(case: Case) -> tuple[list[float], list[float]]:
    """Return the minimum milliseconds (forward, backward) of the layer and of PyTorch."""
    rng = np.random.default_rng(1)
    values = [rng.normal(size=shape).astype(np.float32) for shape in case.shapes]
    if case.classes:
        values[-1] = rng.integers(0, case.classes, case.shapes[-1]).astype(np.float32)
    if case.type == "LSTM":
        values[-1][...] = 1
        values[-1][0] = 0
    ours = Numpy(case, values)
    theirs = Torch(case, values, ours.parameters, ours.wanted)
    check(case, ours, theirs)
    times: list[list[float]] = [[], [], [], []]
    for _ in range(ROUNDS):
        for place, side in enumerate((ours, theirs)):
            times[place].append(milliseconds(side.forward))
            if case.differentiable:
                times[place + 2].append(milliseconds(side.backward))
    best = [min(each, default=0.0) for each in times]
    return best[::2], best[1::2]


def check(case: Case, ours: Numpy, theirs: Torch) -> None:
    """Refuse to time two sides that do not compute the same."""
    y = ours.net.blobs["y"]
    ours.forward()
    theirs.forward()
    if case.random:
        return
    np.testing.assert_allclose(y.data, theirs.y.detach().numpy(), rtol=1e-3, atol=1e-4)
    if not case.differentiable:
        return
    y.diff[...] = np.random.default_rng(2).normal(size=y.shape)
    theirs.gradient = torch.from_numpy(y.diff.copy())
    ours.net.clear_param_diffs()
    ours.backward()
    theirs.backward()
    gradients = [ours.net.blobs[f"b{i}"].diff for i in range(len(case.shapes))]
    gradients += [blob.diff for blob in ours.layer.blobs]
    for mine, tensor in zip(gradients, theirs.inputs, strict=True):
        if tensor.grad is not None:
            scale = float(tensor.grad.abs().max())
            np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-3, atol=1e-3 * scale)


def milliseconds(work: Callable[[], None]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def main(names: Sequence[str]) -> None:
    """Print one row per case."""
    print("| case | layer | forward ms | PyTorch | ratio | backward ms | PyTorch | ratio | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, case in CASES.items():
        if names and not {name, case.type} & set(names):
            continue
        ours, theirs = measure(case)
        cells, ratios = [], []
        for mine, other in zip(ours, theirs, strict=True):
            ratios.append(mine / other if other else 0.0)
            cells += [f"{mine:.2f}", f"{other:.2f}", f"{ratios[-1]:.1f}"] if other else ["", "", ""]
        mark = "slow" if max(ratios) > GOAL else ""
        print("| " + " | ".join([name, case.type, *cells, mark]) + " |", flush=True)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.layers", *sys.argv[1:]],
            {**os.environ, **ENVIRONMENT},
        )
    torch.set_num_threads(1)
    main(sys.argv[1:])
