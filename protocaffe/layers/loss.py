"""Losses: one number that says how wrong the net is.

Every loss reads its weight from ``top[0].diff``, where the net puts it. N is the extent of the
first axis, the batch.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import bottom_name, whole_numbers
from protocaffe.layers.softmax import outer_axis_inner, softmax
from protocaffe.proto.caffe_pb2 import HingeLossParameter, LossParameter

SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
"""The least probability whose logarithm SoftmaxWithLoss takes: Caffe's FLT_MIN."""

LOG_THRESHOLD = 1e-20
"""The same for MultinomialLogisticLoss and InfogainLoss."""


class Loss(Layer):
    """A layer whose top is one number, weighted 1 in the net's loss unless told otherwise."""

    bottoms = (2, 2)
    tops = (1, 1)
    is_loss = True
    no_gradient: ClassVar[tuple[int, ...]] = (1,)
    """Bottoms that never get a gradient: the labels."""

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index not in self.no_gradient

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.check_batch(bottom)
        top[0].reshape(())

    def check_batch(self, bottom: list[Blob]) -> None:
        """Refuse bottoms with different first extents."""
        first, second = bottom[0].shape[:1], bottom[1].shape[:1]
        if first != second or not first:
            raise self.error(
                f"prediction and label need the same first extent; blob {bottom_name(self, 0)} "
                f"has shape {bottom[0].shape} and {bottom_name(self, 1)} {bottom[1].shape}"
            )

    def refuse_label_gradient(self, propagate_down: list[bool]) -> None:
        """Refuse to compute what is not defined."""
        for index in self.no_gradient:
            if index < len(propagate_down) and propagate_down[index]:
                raise self.error(
                    f"cannot compute a gradient for {bottom_name(self, index)}, which only "
                    "labels the samples; set propagate_down: false for it, or put nothing "
                    "learnable below it"
                )

    def weight(self, top: list[Blob]) -> Array:
        """Return the loss weight as an array of no axes."""
        weight: Array = top[0].diff.reshape(())
        return weight


class Normalization:
    """What a loss over many positions is divided by: ``loss_param``'s rule.

    VALID: the positions that are not ignored. FULL: all positions. BATCH_SIZE: the batch.
    NONE: 1. Never less than 1.
    """

    def __init__(self, param: LossParameter, default: int) -> None:
        if param.HasField("normalization"):
            self.mode: int = param.normalization
        elif param.HasField("normalize"):
            self.mode = LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE
        else:
            self.mode = default

    def divisor(self, counted: Array, batch: int) -> float:
        """Return the divisor for a mask of the positions that count."""
        if self.mode == LossParameter.VALID:
            return max(1.0, float(counted.sum()))
        if self.mode == LossParameter.FULL:
            return max(1.0, float(counted.size))
        return max(1.0, float(batch)) if self.mode == LossParameter.BATCH_SIZE else 1.0


def ignored_label(param: LossParameter) -> int | None:
    """Return the label that does not count, if there is one."""
    return param.ignore_label if param.HasField("ignore_label") else None


class ScoreLoss(Loss):
    """A loss that takes scores through its own softmax, one label per position.

    Attributes:
        axis: where the K scores stand.
        ignore_label: the label of positions that do not count, or None.
        normalization: what the loss is divided by.
    """

    tops = (1, 2)
    settings: ClassVar[tuple[str, ...]] = ("loss_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.loss_param
        self.ignore_label = ignored_label(param)
        self.normalization = Normalization(param, default=LossParameter.VALID)

    def score_axis(self) -> int:
        """Return the prototxt's axis."""
        return self.param.softmax_param.axis

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        shape = bottom[0].shape
        self.axis = self.canonical_axis(self.score_axis(), bottom[0])
        self.extents = outer, _, inner = outer_axis_inner(shape, self.axis)
        if bottom[1].count != outer * inner:
            raise self.error(
                f"scores of shape {shape} with classes along axis {self.axis} need "
                f"{outer * inner} label(s), one per position; blob {bottom_name(self, 1)} has "
                f"shape {bottom[1].shape}, {bottom[1].count} label(s)"
            )
        self.probability: Array = self.xp.empty(self.extents, self.dtype)
        if len(top) > 1:
            top[1].reshape(shape)

    def classify(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Compute the probabilities (outer, K, inner) and read the labels (outer, inner)."""
        outer, classes, inner = self.extents
        softmax(self.xp, bottom[0].data.reshape(self.extents), self.probability, axis=1)
        label, counted = whole_numbers(self, bottom[1].data, classes, ignore=self.ignore_label)
        self.label = label.reshape(outer, inner)
        self.counted = counted.reshape(outer, inner)
        self.divisor = self.normalization.divisor(self.counted, outer)
        if len(top) > 1:
            top[1].data[...] = self.probability.reshape(top[1].shape)

    def at_label(self) -> tuple[Array, Array, Array]:
        """Return the index of every position's own class in an (outer, K, inner) array."""
        outer, _, inner = self.extents
        return (
            self.xp.arange(outer).reshape(outer, 1),
            self.label,
            self.xp.arange(inner).reshape(1, inner),
        )


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(ScoreLoss):
    """loss = -sum of log(p[label]) / Z, p = softmax of the scores along ``axis`` (1).

    Z by ``loss_param.normalization``, the number of positions not ignored by default.
    Backward: (p - [class is label]) * weight / Z, 0 where the label is ``ignore_label``.

    Bottoms: scores (N, K, ...), labels 0 .. K-1, one per position. Tops: the loss; optionally
    the probabilities.
    Reference: Caffe's SoftmaxWithLossLayer.

    Example:
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" top: "loss"
            loss_param { ignore_label: 255 } }
    """

    settings = ("softmax_param", "loss_param")

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.classify(bottom, top)
        likelihood = self.xp.maximum(self.probability[self.at_label()], SMALLEST_FLOAT)
        logs = self.xp.where(self.counted, self.xp.log(likelihood), 0)
        top[0].data[...] = -logs.sum() / self.divisor

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            dx = bottom[0].diff.reshape(self.extents)
            self.xp.multiply(self.probability, self.counted[:, None], out=dx)
            dx[self.at_label()] -= self.counted.astype(self.dtype)
            dx *= self.weight(top) / self.divisor


@register("EuclideanLoss")
class EuclideanLoss(Loss):
    """loss = sum of (a - b)^2 / 2N, with gradients for both bottoms.

    Bottoms: a (N, ...), b (N, ...) with as many numbers per sample. Tops: the loss.
    Reference: Caffe's EuclideanLossLayer.

    Example:
        layer { name: "loss" type: "EuclideanLoss" bottom: "predicted" bottom: "target"
            top: "loss" }
    """

    no_gradient = ()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        if bottom[0].count != bottom[1].count:
            raise self.error(
                f"both bottoms need as many numbers per sample, got shapes {bottom[0].shape} "
                f"and {bottom[1].shape}"
            )
        self._batch = bottom[0].num

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        a, b = bottom[0].data.ravel(), bottom[1].data.ravel()
        self._difference = a - b
        top[0].data[...] = self.xp.square(self._difference).sum() / (2 * self._batch)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        factor = self.weight(top) / self._batch
        for blob, sign, wanted in zip(bottom, (1, -1), propagate_down, strict=True):
            if wanted:
                difference = self._difference.reshape(blob.shape)
                self.xp.multiply(difference, sign * factor, out=blob.diff)


@register("SmoothL1Loss")
class SmoothL1Loss(Loss):
    """loss = sum of w_out f(w_in (a - b)) / N, f quadratic near 0 and linear beyond.

    f(d) = (sigma d)^2 / 2 where |d| < 1 / sigma^2, else |d| - 1 / (2 sigma^2); ``sigma`` is 1 by
    default. The weights are 1 if absent; they are taken for constants, with gradient 0.

    Bottoms: a (N, ...), b (N, ...), optionally w_in and w_out, all of one size. Tops: the loss.
    Reference: Girshick, "Fast R-CNN", ICCV 2015; SmoothL1LossLayer of its fork of Caffe.

    Example:
        layer { name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox_pred" bottom: "bbox_targets"
            bottom: "bbox_inside_weights" bottom: "bbox_outside_weights" top: "loss_bbox" }
    """

    bottoms = (2, 4)
    no_gradient = (2, 3)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(bottom) == 3:
            raise self.error("needs the outer weights too if there are inner ones (bottom 3)")
        self.sigma2 = self.param.smooth_l1_loss_param.sigma**2

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        for index, blob in enumerate(bottom):
            if blob.count != bottom[0].count:
                raise self.error(
                    f"all bottoms need as many numbers; blob {bottom_name(self, 0)} has shape "
                    f"{bottom[0].shape} and {bottom_name(self, index)} has {blob.shape}"
                )
        self._batch = bottom[0].num

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp, (a, b, *weights) = self.xp, (blob.data.ravel() for blob in bottom)
        difference = a - b
        if weights:
            difference *= weights[0]
        size = xp.abs(difference)
        small = size < 1 / self.sigma2
        losses = xp.where(small, self.sigma2 / 2 * size * size, size - 0.5 / self.sigma2)
        self._slope = xp.where(small, self.sigma2 * difference, xp.sign(difference))
        if weights:
            losses *= weights[1]
            self._slope *= weights[0] * weights[1]
        top[0].data[...] = losses.sum() / self._batch

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        factor = self.weight(top) / self._batch
        for blob, sign, wanted in zip(bottom, (1, -1, 0, 0), propagate_down, strict=False):
            if wanted:
                self.xp.multiply(self._slope.reshape(blob.shape), sign * factor, out=blob.diff)


@register("HingeLoss")
class HingeLoss(Loss):
    """One-versus-all hinge: m = max(0, 1 + x * (class is label ? -1 : 1)).

    loss = sum of m / N (``norm: L1``) or sum of m^2 / N (``L2``).

    Bottoms: scores (N, K), with any axes after the first flattened; labels (N). Tops: the loss.
    Reference: Caffe's HingeLossLayer.

    Example:
        layer { name: "loss" type: "HingeLoss" bottom: "fc8" bottom: "label" top: "loss"
            hinge_loss_param { norm: L2 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.squared = self.param.hinge_loss_param.norm == HingeLossParameter.L2

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        if bottom[1].count != bottom[0].num:
            raise self.error(
                f"needs one label per sample ({bottom[0].num}); blob {bottom_name(self, 1)} has "
                f"shape {bottom[1].shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp, n = self.xp, bottom[0].num
        scores = bottom[0].data.reshape(n, -1)
        label, _ = whole_numbers(self, bottom[1].data, scores.shape[1])
        self._sign = xp.ones(scores.shape, self.dtype)
        self._sign[xp.arange(n), label.ravel()] = -1
        self._margin = xp.maximum(0, 1 + scores * self._sign)
        losses = self._margin**2 if self.squared else self._margin
        top[0].data[...] = losses.sum() / n

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            slope = 2 * self._margin if self.squared else (self._margin > 0).astype(self.dtype)
            gradient = slope * self._sign * (self.weight(top) / bottom[0].num)
            bottom[0].diff[...] = gradient.reshape(bottom[0].shape)


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss):
    """loss = -sum of (t log p + (1 - t) log(1 - p)) / Z, p = sigmoid(x).

    Z by ``loss_param.normalization``; without it the batch size. Targets whose whole part is
    ``ignore_label`` do not count. Backward: (p - t) * weight / Z.

    Bottoms: x (N, ...), targets t with as many numbers, usually in [0, 1]. Tops: the loss.
    Reference: Caffe's SigmoidCrossEntropyLossLayer.

    Example:
        layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "predicted" bottom: "target"
            top: "loss" }
    """

    settings = ("loss_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.loss_param
        self.ignore_label = ignored_label(param)
        self.normalization = Normalization(param, default=LossParameter.BATCH_SIZE)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        if bottom[0].count != bottom[1].count:
            raise self.error(
                f"needs one target per score; blob {bottom_name(self, 1)} has shape "
                f"{bottom[1].shape} for scores of shape {bottom[0].shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp = self.xp
        x, target = bottom[0].data.ravel(), bottom[1].data.ravel()
        if self.ignore_label is None:
            self._counted = xp.ones(x.shape, bool)
        else:
            self._counted = xp.trunc(target) != self.ignore_label
        self._divisor = self.normalization.divisor(self._counted, bottom[0].shape[0])
        # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) never overflows.
        losses = xp.maximum(x, 0) - x * target + xp.log1p(xp.exp(-abs(x)))
        top[0].data[...] = xp.where(self._counted, losses, 0).sum() / self._divisor

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            x, target = bottom[0].data.ravel(), bottom[1].data.ravel()
            gradient = 0.5 * self.xp.tanh(0.5 * x) + 0.5 - target
            gradient *= self.weight(top) / self._divisor
            gradient = self.xp.where(self._counted, gradient, 0)
            bottom[0].diff[...] = gradient.reshape(bottom[0].shape)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Loss):
    """loss = -sum of log(p[label]) / N for given probabilities p.

    Backward: -weight / (N p) at the label, 0 elsewhere.

    Bottoms: probabilities (N, K), with any axes after the first flattened; labels (N).
    Tops: the loss.
    Reference: Caffe's MultinomialLogisticLossLayer.

    Example:
        layer { name: "loss" type: "MultinomialLogisticLoss" bottom: "prob" bottom: "label"
            top: "loss" }
    """

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        if bottom[1].count != bottom[0].num:
            raise self.error(
                f"needs one label per sample ({bottom[0].num}); blob {bottom_name(self, 1)} has "
                f"shape {bottom[1].shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        n = bottom[0].num
        probability = bottom[0].data.reshape(n, -1)
        label, _ = whole_numbers(self, bottom[1].data, probability.shape[1])
        self._at_label = (self.xp.arange(n), label.ravel())
        self._likelihood = self.xp.maximum(probability[self._at_label], LOG_THRESHOLD)
        top[0].data[...] = -self.xp.log(self._likelihood).sum() / n

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            n = bottom[0].num
            dx = bottom[0].diff.reshape(n, -1)
            dx[...] = 0
            dx[self._at_label] = -self.weight(top) / (n * self._likelihood)


@register("InfogainLoss")
class InfogainLoss(ScoreLoss):
    """loss = -sum over classes k of H[label, k] log(p[k]) / Z, p = softmax of the scores.

    The K x K matrix H is bottom 2, or read from ``source`` (a BlobProto file); the identity
    makes this SoftmaxWithLoss. Backward: (p * sum of H[label] - H[label]) * weight / Z.

    Bottoms: scores (N, K, ...), labels, optionally H. Tops: the loss; optionally the
    probabilities.
    Reference: Caffe's InfogainLossLayer.

    Example:
        layer { name: "loss" type: "InfogainLoss" bottom: "fc8" bottom: "label" bottom: "infogain"
            top: "loss" }
    """

    bottoms = (2, 3)
    no_gradient = (1, 2)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1  # as Caffe, which then stops because of bottom 2

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        if self.param.loss_param.HasField("normalize"):
            raise self.error("loss_param.normalize is not used here; give normalization")
        self._matrix: Array | None = None
        if len(bottom) < 3:
            self._matrix = self._read_matrix()

    def score_axis(self) -> int:
        return self.param.infogain_loss_param.axis

    def _read_matrix(self) -> Array:
        from protocaffe.proto.binary import blob_to_array, read_binary
        from protocaffe.proto.caffe_pb2 import BlobProto

        source = self.param.infogain_loss_param.source
        if not source:
            raise self.error("needs the matrix H as a third bottom or a file named by source")
        matrix = blob_to_array(read_binary(source, BlobProto()))
        on_device: Array = self.xp.asarray(matrix, self.dtype)
        return on_device

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        classes = self.extents[1]
        count = bottom[2].count if self._matrix is None else self._matrix.size
        if count != classes**2:
            raise self.error(
                f"the matrix H must be {classes} x {classes}, one row and column per class; "
                f"it has {count} numbers"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.classify(bottom, top)
        classes = self.extents[1]
        matrix = bottom[2].data if self._matrix is None else self._matrix
        # H[label], with the class axis where the scores have it
        self._rows = self.xp.moveaxis(matrix.reshape(classes, classes)[self.label], 2, 1)
        self._rows = self._rows * self.counted[:, None]
        logs = self.xp.log(self.xp.maximum(self.probability, LOG_THRESHOLD))
        top[0].data[...] = -(self._rows * logs).sum() / self.divisor

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        if propagate_down[0]:
            gradient = self.probability * self._rows.sum(axis=1, keepdims=True) - self._rows
            gradient *= self.weight(top) / self.divisor
            bottom[0].diff[...] = gradient.reshape(bottom[0].shape)


@register("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """Pulls similar pairs together and pushes others to a distance of at least ``margin`` (1).

    loss = sum of (similar: d^2; dissimilar: max(margin - d, 0)^2) / 2N, d = |a - b|; with
    ``legacy_version``, max(margin - d^2, 0) for dissimilar ones.

    Bottoms: a and b (N, C) or (N, C, 1, 1); whether the pair is similar (N), 0 or not 0.
    Tops: the loss.
    Reference: Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping",
    CVPR 2006; Caffe's ContrastiveLossLayer.

    Example:
        layer { name: "loss" type: "ContrastiveLoss" bottom: "feature_a" bottom: "feature_b"
            bottom: "similar" top: "loss" contrastive_loss_param { margin: 1 } }
    """

    bottoms = (3, 3)
    no_gradient = (2,)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.margin = self.param.contrastive_loss_param.margin
        self.legacy = self.param.contrastive_loss_param.legacy_version

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        shape = bottom[0].shape
        if len(shape) < 2 or math.prod(shape[2:]) != 1 or bottom[1].count != bottom[0].count:
            raise self.error(
                "bottoms 0 and 1 must both be (N, C) or (N, C, 1, 1), got shapes "
                f"{shape} and {bottom[1].shape}"
            )
        if bottom[2].count != bottom[0].num:
            raise self.error(
                f"needs one similarity per pair ({bottom[0].num}); blob "
                f"{bottom_name(self, 2)} has shape {bottom[2].shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp, n = self.xp, bottom[0].num
        self._difference = (bottom[0].data.ravel() - bottom[1].data.ravel()).reshape(n, -1)
        square = (self._difference**2).sum(axis=1)
        similar = xp.trunc(bottom[2].data.ravel()) != 0
        if self.legacy:
            slack = self.margin - square
            apart = xp.maximum(slack, 0)
            slope = xp.full_like(square, -1)
        else:
            distance = xp.sqrt(square)
            slack = self.margin - distance
            apart = xp.maximum(slack, 0) ** 2
            slope = -slack / (distance + self.dtype.type(1e-4))
        # The gradient of a pair is its slope times (a - b).
        self._slope = xp.where(similar, 1, xp.where(slack > 0, slope, 0)).astype(self.dtype)
        top[0].data[...] = xp.where(similar, square, apart).sum() / (2 * n)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.refuse_label_gradient(propagate_down)
        factor = self.weight(top) / bottom[0].num
        for blob, sign, wanted in zip(bottom[:2], (1, -1), propagate_down[:2], strict=True):
            if wanted:
                gradient = (sign * factor * self._slope)[:, None] * self._difference
                blob.diff[...] = gradient.reshape(blob.shape)
