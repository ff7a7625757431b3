"""Layers that judge scores and have no gradient."""

from __future__ import annotations

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import bottom_name, whole_numbers
from protocaffe.layers.softmax import outer_axis_inner


@register("Accuracy")
class Accuracy(Layer):
    """The share of positions whose true class is among the ``top_k`` (1) best.

    A position is right if fewer than top_k other classes score at least as much as the true
    one, so ties count against it. Positions labelled ``ignore_label`` do not count; 0 if none do.

    Bottoms: scores (N, K, ...) with classes along ``axis`` (1), labels, one per position.
    Tops: the accuracy, no axes; optionally the recall of every class (K), 0 for unseen ones.
    Reference: Caffe's AccuracyLayer.

    Example:
        layer { name: "accuracy" type: "Accuracy" bottom: "fc8" bottom: "label" top: "accuracy"
            include { phase: TEST } accuracy_param { top_k: 5 } }
    """

    bottoms = (2, 2)
    tops = (1, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.accuracy_param
        self.top_k = param.top_k
        self.ignore_label = param.ignore_label if param.HasField("ignore_label") else None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        axis = self.canonical_axis(self.param.accuracy_param.axis, bottom[0])
        self._extents = outer, classes, inner = outer_axis_inner(bottom[0].shape, axis)
        if not 1 <= self.top_k <= classes:
            raise self.error(f"top_k must be 1 to {classes} (the classes), got {self.top_k}")
        if bottom[1].count != outer * inner:
            raise self.error(
                f"scores of shape {bottom[0].shape} with classes along axis {axis} need "
                f"{outer * inner} label(s), one per position; blob {bottom_name(self, 1)} has "
                f"shape {bottom[1].shape}"
            )
        top[0].reshape(())
        if len(top) > 1:
            top[1].reshape(classes)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xp = self.xp
        outer, classes, inner = self._extents
        scores = bottom[0].data.reshape(self._extents)
        label, counted = whole_numbers(self, bottom[1].data, classes, ignore=self.ignore_label)
        label, counted = label.reshape(outer, inner), counted.reshape(outer, inner)
        true = scores[xp.arange(outer).reshape(outer, 1), label, xp.arange(inner).reshape(1, inner)]
        # The true class itself is one of those that score at least as much.
        right = counted & ((scores >= true[:, None]).sum(axis=1) <= self.top_k)
        top[0].data[...] = float(right.sum()) / max(1, int(counted.sum()))
        if len(top) > 1:
            hits, seen = (xp.bincount(label[mask], minlength=classes) for mask in (right, counted))
            top[1].data[...] = hits / xp.maximum(seen, 1)


@register("ArgMax")
class ArgMax(Layer):
    """The indices of the ``top_k`` (1) largest values, largest first, larger index first on ties.

    Bottoms: x. Tops: with ``axis``, x's shape with top_k at that axis, holding indices, or with
    ``out_max_val`` the values instead. Without ``axis``, over all axes but the first:
    (N, 1, top_k), or with ``out_max_val`` (N, 2, top_k), indices then values; trailing axes of
    1 follow if x has more than 3.
    Reference: Caffe's ArgMaxLayer.

    Example:
        layer { name: "best" type: "ArgMax" bottom: "prob" top: "best" argmax_param { axis: 1 } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.argmax_param
        self.top_k = param.top_k
        self.out_max_val = param.out_max_val
        self.has_axis = param.HasField("axis")

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if self.has_axis:
            axis = self.canonical_axis(self.param.argmax_param.axis, bottom[0])
            self._extents = outer_axis_inner(shape, axis)
            top_shape: tuple[int, ...] = (*shape[:axis], self.top_k, *shape[axis + 1 :])
        else:
            if not shape:
                raise self.error("needs a bottom with at least one axis")
            self._extents = (shape[0], bottom[0].count // max(1, shape[0]), 1)
            rows = 2 if self.out_max_val else 1
            top_shape = (shape[0], rows, self.top_k) + (1,) * (len(shape) - 3)
        if not 1 <= self.top_k <= self._extents[1]:
            raise self.error(
                f"top_k must be 1 to {self._extents[1]} (the values to choose from), "
                f"got {self.top_k}"
            )
        top[0].reshape(top_shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        values = bottom[0].data.reshape(self._extents)
        best = self._best(values)
        y = top[0].data
        if self.has_axis:
            chosen = self._at(values, best) if self.out_max_val else best
            y[...] = chosen.reshape(y.shape)
            return
        y = y.reshape(len(best), -1, self.top_k)
        y[:, 0] = best[:, :, 0]
        if self.out_max_val:
            y[:, 1] = self._at(values, best)[:, :, 0]

    def _best(self, values: Array) -> Array:
        """Return (outer, top_k, inner) indices of the largest values."""
        # A stable ascending sort puts the larger index last among equals; read from the end.
        order: Array = self.xp.argsort(values, axis=1, kind="stable")
        return order[:, : -self.top_k - 1 : -1]

    def _at(self, values: Array, index: Array) -> Array:
        chosen: Array = self.xp.take_along_axis(values, index, axis=1)
        return chosen
