"""The training net of a prototxt as a PyTorch module, the way a PyTorch user would write it.

The module is PyTorch at its best, not a transcript: BatchNorm and the Scale behind it are one
``batch_norm``, ReLU and sums write over what nobody needs any more, splits cost nothing and
every value is let go after its last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protocaffe.proto import caffe_pb2

Array = npt.NDArray[Any]
Layer = caffe_pb2.LayerParameter
Op = Callable[..., Tensor]
"""Maps a layer's bottoms, followed by its weights, to its one top."""


class TranslationError(Exception):
    """The net uses something that has no translation here."""


def untranslatable(layer: Layer, what: str) -> TranslationError:
    """Return an error that names the layer."""
    return TranslationError(
        f"layer '{layer.name}' ({layer.type}): {what} has no translation to PyTorch here"
    )


def pair(values: Sequence[int], height: int, width: int, default: int) -> tuple[int, int]:
    """Return (height, width) of a setting that Caffe takes once, per axis, or as _h and _w."""
    if height or width:
        return height, width
    if not values:
        return default, default
    return values[0], values[-1]


def convolution(layer: Layer, owned: Sequence[bool]) -> Op:
    """Cross-correlation with groups and dilation, over two spatial axes."""
    p = layer.convolution_param
    stride = pair(p.stride, p.stride_h, p.stride_w, 1)
    padding = pair(p.pad, p.pad_h, p.pad_w, 0)
    dilation = pair(p.dilation, 0, 0, 1)
    groups = p.group

    def op(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    return op


def inner_product(layer: Layer, owned: Sequence[bool]) -> Op:
    """An inner product over all axes but the first."""
    if layer.inner_product_param.axis != 1 or layer.inner_product_param.transpose:
        raise untranslatable(layer, "another axis than 1, or 'transpose',")

    def op(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x.flatten(1), weight, bias)

    return op


def pooling(layer: Layer, owned: Sequence[bool]) -> Op:
    """MAX and AVE pooling with Caffe's rule for the output size.

    PyTorch's ``ceil_mode`` drops a last window that starts in the right padding, as Caffe does,
    and ``count_include_pad`` divides as Caffe does. Only padding beyond half a window, which
    PyTorch refuses, is written out.
    """
    p = layer.pooling_param
    kernel = pair([p.kernel_size] if p.kernel_size else [], p.kernel_h, p.kernel_w, 0)
    stride = pair([p.stride], p.stride_h, p.stride_w, 1)
    pad = pair([p.pad], p.pad_h, p.pad_w, 0)
    ceil_mode = p.round_mode == caffe_pb2.PoolingParameter.CEIL
    if p.pool == caffe_pb2.PoolingParameter.STOCHASTIC or len(layer.top) > 1:
        raise untranslatable(layer, "STOCHASTIC pooling, or a second top,")
    ave = p.pool == caffe_pb2.PoolingParameter.AVE
    whole_image = F.adaptive_avg_pool2d if ave else F.adaptive_max_pool2d
    if not p.global_pooling and any(s > k for s, k in zip(stride, kernel, strict=True)):
        raise untranslatable(layer, "a stride beyond the window")

    def pool(x: Tensor, pad: tuple[int, int]) -> Tensor:
        if ave:
            return F.avg_pool2d(x, kernel, stride, pad, ceil_mode, count_include_pad=True)
        return F.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil_mode)

    def op(x: Tensor) -> Tensor:
        if p.global_pooling or (kernel == tuple(x.shape[2:]) and pad == (0, 0)):
            return whole_image(x, 1)
        if all(2 * side <= k for side, k in zip(pad, kernel, strict=True)):
            return pool(x, pad)
        height, width = (
            pooled_size(*each, ceil_mode)
            for each in zip(x.shape[2:], kernel, stride, pad, strict=True)
        )
        around = (pad[1], pad[1], pad[0], pad[0])
        padded = F.pad(x, around, value=0.0 if ave else float("-inf"))
        return pool(padded, (0, 0))[:, :, :height, :width]

    return op


def pooled_size(extent: int, kernel: int, stride: int, pad: int, ceil_mode: bool) -> int:
    """Return how many windows Caffe lays along an axis of ``extent`` pixels."""
    span = extent + 2 * pad - kernel
    size = (-(-span // stride) if ceil_mode else span // stride) + 1
    return size - 1 if pad and (size - 1) * stride >= extent + pad else size


def relu(layer: Layer, owned: Sequence[bool]) -> Op:
    """max(x, 0), in place where x is not needed any more."""
    slope, inplace = layer.relu_param.negative_slope, owned[0]
    if slope:
        return lambda x: F.leaky_relu(x, slope, inplace)
    return lambda x: F.relu(x, inplace)


def lrn(layer: Layer, owned: Sequence[bool]) -> Op:
    """Local response normalisation across channels; PyTorch's formula is Caffe's."""
    p = layer.lrn_param
    if p.norm_region != caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        raise untranslatable(layer, "'norm_region: WITHIN_CHANNEL'")
    return lambda x: F.local_response_norm(x, p.local_size, p.alpha, p.beta, p.k)


def batch_norm(layer: Layer, owned: Sequence[bool]) -> Op:
    """Normalisation by batch statistics, with the weight and bias of the Scale behind it."""
    p = layer.batch_norm_param
    momentum, training, eps = 1 - p.moving_average_fraction, not p.use_global_stats, p.eps

    def op(
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)

    return op


def scale(layer: Layer, owned: Sequence[bool]) -> Op:
    """One factor, and perhaps one bias, per channel."""
    if not scales_channels(layer):
        raise untranslatable(layer, "anything but one learned factor per channel")

    def op(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        channels = (-1, *[1] * (x.dim() - 2))
        y = x * weight.view(channels)
        return y if bias is None else y + bias.view(channels)

    return op


def scales_channels(layer: Layer) -> bool:
    """Whether a Scale layer has one learned factor per channel."""
    p = layer.scale_param
    return len(layer.bottom) == 1 and p.axis == 1 and p.num_axes == 1


def dropout(layer: Layer, owned: Sequence[bool]) -> Op:
    """Dropout with the survivors scaled up."""
    ratio = layer.dropout_param.dropout_ratio
    return lambda x: F.dropout(x, ratio, training=True)


def eltwise(layer: Layer, owned: Sequence[bool]) -> Op:
    """The sum of all bottoms, written over one of them if it is not needed any more."""
    p = layer.eltwise_param
    if p.operation != caffe_pb2.EltwiseParameter.SUM or any(c != 1 for c in p.coeff):
        raise untranslatable(layer, "anything but a plain sum")
    first = owned.index(True) if True in owned else 0
    overwrite = owned[first]

    def op(*bottoms: Tensor) -> Tensor:
        total, *others = bottoms[first], *bottoms[:first], *bottoms[first + 1 :]
        total = total.add_(others[0]) if overwrite else total + others[0]
        for other in others[1:]:
            total.add_(other)
        return total

    return op


def concat(layer: Layer, owned: Sequence[bool]) -> Op:
    """All bottoms along one axis."""
    p = layer.concat_param
    axis = p.concat_dim if p.HasField("concat_dim") else p.axis
    return lambda *bottoms: torch.cat(bottoms, axis)


def flatten(layer: Layer, owned: Sequence[bool]) -> Op:
    """Several axes as one."""
    p = layer.flatten_param
    return lambda x: x.flatten(p.axis, p.end_axis)


def softmax(layer: Layer, owned: Sequence[bool]) -> Op:
    """Softmax along one axis."""
    axis = layer.softmax_param.axis
    return lambda x: F.softmax(x, axis)


def softmax_loss(layer: Layer, owned: Sequence[bool]) -> Op:
    """Cross-entropy of scores along axis 1 and integer labels, times the loss weight."""
    p = layer.loss_param
    modes = caffe_pb2.LossParameter
    mode = p.normalization
    if p.HasField("normalize") and not p.HasField("normalization"):
        mode = modes.VALID if p.normalize else modes.BATCH_SIZE
    if mode not in (modes.VALID, modes.BATCH_SIZE) or layer.softmax_param.axis != 1:
        raise untranslatable(layer, "another axis than 1, or 'normalization: FULL' or 'NONE',")
    ignore = p.ignore_label if p.HasField("ignore_label") else -100
    loss_weight = layer.loss_weight[0] if layer.loss_weight else 1.0

    def op(scores: Tensor, label: Tensor) -> Tensor:
        scores = scores.reshape(*scores.shape[:2], -1).squeeze(-1)
        label = label.reshape(scores.shape[0], *scores.shape[2:])
        if mode == modes.VALID:
            loss = F.cross_entropy(scores, label, ignore_index=ignore)
        else:
            total = F.cross_entropy(scores, label, ignore_index=ignore, reduction="sum")
            loss = total / scores.shape[0]
        return loss if loss_weight == 1 else loss * loss_weight

    return op


OPS: dict[str, Callable[[Layer, Sequence[bool]], Op]] = {
    "Convolution": convolution,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "ReLU": relu,
    "LRN": lrn,
    "BatchNorm": batch_norm,
    "Scale": scale,
    "Dropout": dropout,
    "Eltwise": eltwise,
    "Concat": concat,
    "Flatten": flatten,
    "Softmax": softmax,
    "SoftmaxWithLoss": softmax_loss,
}
"""Given a layer and, per bottom, whether it may be overwritten: the layer's operation."""

IGNORED = ("Accuracy", "Silence")

OVERWRITABLE = (
    "Convolution",
    "InnerProduct",
    "Pooling",
    "LRN",
    "BatchNorm",
    "Scale",
    "Eltwise",
    "Concat",
)
"""Layers whose gradient does not need their own output."""


@dataclass
class Step:
    """One operation on numbered values; ``release`` lists those that nobody reads later."""

    layer: Layer
    bottoms: list[int]
    top: int
    op: Op
    weights: list[int] = field(default_factory=list)
    release: list[int] = field(default_factory=list)


class TorchNet(nn.Module):
    """A net as PyTorch runs it: called with the inputs, it returns the loss.

    Args:
        net: the TRAIN net; data comes in by ``Input`` layers. Splits may be there or not.
        weights: every layer's parameters by layer name, in Caffe's order and shapes.

    Attributes:
        inputs: the names of the inputs, in the order in which a call takes them. Images are
            float32 of any memory format, labels int64.
        multipliers: per weight, its (``lr_mult``, ``decay_mult``).

    Raises:
        TranslationError: a layer, or a setting of one, has no translation.
    """

    def __init__(self, net: caffe_pb2.NetParameter, weights: Mapping[str, Sequence[Array]]) -> None:
        super().__init__()
        self.inputs: list[str] = []
        self.multipliers: list[tuple[float, float]] = []
        self.weights = nn.ParameterList()
        self.steps: list[Step] = []
        self._input_values: list[int] = []
        self._readers: Counter[int] = Counter()
        self._producer: dict[int, Step] = {}
        for layer, bottoms, top in self._numbered(net):
            self._add(layer, weights.get(layer.name, []), bottoms, top)
        self._losses = [s.top for s in self.steps if s.layer.type == "SoftmaxWithLoss"]
        if not self._losses:
            raise TranslationError(f"net '{net.name}' has no SoftmaxWithLoss layer to train with")
        self._mark_releases()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        values = dict(zip(self._input_values, inputs, strict=True))
        for step in self.steps:
            bottoms = [values[number] for number in step.bottoms]
            for number in step.release:
                del values[number]
            values[step.top] = step.op(*bottoms, *[self.weights[i] for i in step.weights])
            del bottoms
        return sum((values[number] for number in self._losses[1:]), values[self._losses[0]])

    def _numbered(self, net: caffe_pb2.NetParameter) -> list[tuple[Layer, list[int], int]]:
        """Number every version of every blob, count its readers, and drop what computes nothing."""
        current: dict[str, int] = {}
        numbered = []
        fresh = 0
        for layer in net.layer:
            if layer.type in IGNORED:
                continue
            bottoms = [current[name] for name in layer.bottom]
            if layer.type == "Split":
                current.update((name, bottoms[0]) for name in layer.top)
                continue
            if layer.type != "Input":
                numbered.append((layer, bottoms, fresh))
                self._readers.update(bottoms)
            for name in layer.top or ["(automatic)"]:
                current[name] = fresh
                if layer.type == "Input":
                    self.inputs.append(name)
                    self._input_values.append(fresh)
                fresh += 1
        return numbered

    def _add(self, layer: Layer, weights: Sequence[Array], bottoms: list[int], top: int) -> None:
        if layer.type not in OPS:
            raise untranslatable(layer, f"the type (those that have: {', '.join(OPS)})")
        producer = self._producer.get(bottoms[0])
        if (
            layer.type == "Scale"
            and scales_channels(layer)
            and self._readers[bottoms[0]] == 1
            and producer is not None
            and producer.layer.type == "BatchNorm"
        ):
            step = producer
            step.top = top
        else:
            step = Step(layer, bottoms, top, OPS[layer.type](layer, self._owned(bottoms)))
            self.steps.append(step)
        self._producer[top] = step
        step.weights += self._add_weights(layer, weights)

    def _owned(self, bottoms: list[int]) -> list[bool]:
        return [
            number in self._producer
            and self._readers[number] == 1
            and self._producer[number].layer.type in OVERWRITABLE
            for number in bottoms
        ]

    def _add_weights(self, layer: Layer, arrays: Sequence[Array]) -> list[int]:
        """Copy the layer's parameters; return their places in ``self.weights``."""
        specs = [(spec.lr_mult, spec.decay_mult) for spec in layer.param]
        specs += [(1.0, 1.0)] * (len(arrays) - len(specs))
        if any(spec.name for spec in layer.param):
            raise untranslatable(layer, "a shared parameter")
        if layer.type == "BatchNorm":
            mean, variance, factor = arrays
            divisor = float(factor[0]) or 1.0
            arrays, specs = [mean / divisor, variance / divisor], [(0.0, 0.0)] * 2
        start = len(self.weights)
        for array, spec in zip(arrays, specs, strict=True):
            tensor = torch.from_numpy(np.array(array, np.float32))
            self.weights.append(nn.Parameter(tensor, requires_grad=spec[0] != 0))
            self.multipliers.append(spec)
        return list(range(start, len(self.weights)))

    def _mark_releases(self) -> None:
        needed = set(self._losses)
        for step in reversed(self.steps):
            step.release = sorted(set(step.bottoms) - needed)
            needed.update(step.bottoms)


def sgd(net: TorchNet, lr: float, momentum: float, decay: float, **how: Any) -> torch.optim.SGD:
    """Return SGD with one parameter group per pair of multipliers.

    ``how`` is ``foreach=True`` or ``fused=True``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for weight, multipliers in zip(net.weights, net.multipliers, strict=True):
        if weight.requires_grad:
            groups.setdefault(multipliers, []).append(weight)
    return torch.optim.SGD(
        [
            {"params": weights, "lr": lr * lr_mult, "weight_decay": decay * decay_mult}
            for (lr_mult, decay_mult), weights in groups.items()
        ],
        lr=lr,
        momentum=momentum,
        **how,
    )
