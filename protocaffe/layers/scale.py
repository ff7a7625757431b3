"""Scale, Bias and Axpy: an operand, learned or a bottom, spread over another."""

from __future__ import annotations

import math
from functools import reduce

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.saved import SavedInput
from protocaffe.parallel import each_chunk
from protocaffe.proto.caffe_pb2 import BiasParameter, FillerParameter, ScaleParameter


class SpreadOperand(Layer):
    """A layer whose second operand covers some axes of bottom 0 and repeats over the others.

    The operand is bottom 1, or a learned blob shaped like the axes ``axis`` (1) to
    ``axis + num_axes`` (1; -1: to the end; 0: one number).
    """

    bottoms = (1, 2)
    tops = (1, 1)
    in_place = True

    def read_operand(
        self, param: ScaleParameter | BiasParameter, bottom: list[Blob], default: float
    ) -> None:
        """Read the axes; make the learned blob if there is no bottom 1."""
        self.axis = param.axis
        self.num_axes = bottom[1].num_axes if len(bottom) > 1 else param.num_axes
        if self.num_axes < -1:
            raise self.error(f"num_axes must be -1 or more, got {self.num_axes}")
        if self.num_axes != 0:
            self.axis = self.canonical_axis(param.axis, bottom[0])
        elif len(bottom) > 1:
            self.axis = 0
        if len(bottom) == 1:
            filler = FillerParameter(type="constant", value=default)
            self.add_blob(
                self._covered(bottom[0]), param.filler if param.HasField("filler") else filler
            )

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        operand = self.operand(bottom)
        shape, covered = bottom[0].shape, self._covered(bottom[0])
        if operand.shape != covered:
            raise self.error(
                f"an operand of shape {operand.shape} does not cover bottom 0 {shape} from axis "
                f"{self.axis} on, which is {covered}"
            )
        before = math.prod(shape[: self.axis]) if covered else 1
        self.extents = (before, operand.count, bottom[0].count // max(1, before * operand.count))
        top[0].reshape(shape)

    def _covered(self, bottom: Blob) -> tuple[int, ...]:
        if self.num_axes == -1:
            return bottom.shape[self.axis :]
        end = self.axis + self.num_axes
        if end > bottom.num_axes:
            raise self.error(
                f"axis {self.axis} and the operand's {self.num_axes} axes reach beyond bottom 0 "
                f"of shape {bottom.shape}"
            )
        return bottom.shape[self.axis : end] if self.num_axes else ()

    def operand(self, bottom: list[Blob]) -> Blob:
        """Return the blob that is spread."""
        return bottom[1] if len(bottom) > 1 else self.blobs[0]

    def view(self, array: Array) -> Array:
        """View an array of bottom 0's shape as (before, operand, after)."""
        return array.reshape(self.extents)

    def spread(self, operand: Array) -> Array:
        """View an operand so that it meets ``view`` element by element."""
        return operand.reshape(1, -1, 1)

    def add_operand_diff(
        self, factors: list[Array], bottom: list[Blob], propagate_down: list[bool]
    ) -> None:
        """Hand the operand's gradient, the sum of the factors' products, to its owner."""
        if len(bottom) > 1:
            if propagate_down[1]:
                bottom[1].diff[...] = self.summed(factors).reshape(bottom[1].shape)
        elif self.param_propagate_down[0]:
            self.blobs[0].diff[...] += self.summed(factors).reshape(self.blobs[0].shape)

    def summed(self, factors: list[Array]) -> Array:
        """Return the sum of the factors' products over what the operand was spread over."""
        sums: Array = self.xp.empty(self.extents[1], self.dtype)

        def work(*arrays: Array) -> None:
            *parts, total = arrays
            reduce(self.xp.multiply, parts).sum(axis=(1, 2), out=total)

        each_chunk(self.xp, work, *(self.view(each).swapaxes(0, 1) for each in factors), sums)
        return sums


@register("Bias")
class Bias(SpreadOperand):
    """y = x + b, b spread over x.

    Bottoms: x, optionally b. Tops: y, x's shape. Parameter without a second bottom: b, filled
    with 0.
    Reference: Caffe's BiasLayer.

    Example:
        layer { name: "shift" type: "Bias" bottom: "conv1" top: "shifted" bias_param { axis: 1 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.read_operand(self.param.bias_param, bottom, default=0)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        b = self.spread(self.operand(bottom).data)
        self.xp.add(self.view(bottom[0].data), b, out=self.view(top[0].data))

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.add_operand_diff([top[0].diff], bottom, propagate_down)
        if propagate_down[0] and top[0] is not bottom[0]:
            bottom[0].diff[...] = top[0].diff


@register("Scale")
class Scale(SpreadOperand):
    """y = x * a, or x * a + b with ``bias_term``; a and b spread over x.

    Bottoms: x, optionally a. Tops: y, x's shape. Parameters: a (filled with 1) if it is not a
    bottom; b (filled with 0), shaped like a.
    Reference: Caffe's ScaleLayer.

    Example:
        layer { name: "scale1" type: "Scale" bottom: "bn1" top: "bn1"
            scale_param { bias_term: true } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.scale_param
        self.bias_term = param.bias_term
        self.read_operand(param, bottom, default=1)
        if self.bias_term:
            self.add_blob(self.operand(bottom).shape, param.bias_filler)
        self._x = SavedInput()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        operand = self.operand(bottom)
        if self.bias_term and self.blobs[-1].shape != operand.shape:
            raise self.error(
                f"its bias was set up for an operand of shape {self.blobs[-1].shape}; bottom 1 "
                f"now has shape {operand.shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = self._x.save(bottom[0], top[0])
        a = self.spread(self.operand(bottom).data)
        b = self.spread(self.blobs[-1].data) if self.bias_term else None

        def work(x: Array, y: Array) -> None:
            self.xp.multiply(x, a, out=y)
            if b is not None:
                y += b

        each_chunk(self.xp, work, self.view(x), self.view(top[0].data))

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        dy = top[0].diff
        if self.bias_term and self.param_propagate_down[-1]:
            bias = self.blobs[-1]
            bias.diff[...] += self.summed([dy]).reshape(bias.shape)
        learned = len(bottom) == 1
        if self.param_propagate_down[0] if learned else propagate_down[1]:
            self.add_operand_diff([dy, self._x.load(bottom[0])], bottom, propagate_down)
        if propagate_down[0]:
            a = self.spread(self.operand(bottom).data)
            each_chunk(
                self.xp,
                lambda dy, dx: self.xp.multiply(dy, a, out=dx),
                self.view(dy),
                self.view(bottom[0].diff),
            )


@register("Axpy")
class Axpy(Layer):
    """y = a x + b, with one number of a per channel: the end of a squeeze-and-excitation block.

    Backward: da = sum of dy x over the image, dx = a dy, db = dy.

    Bottoms: a (N, C) or (N, C, 1, ...); x (N, C, ...); b, as x. Tops: y, as x.
    Reference: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; AxpyLayer of its fork of
    Caffe.

    Example:
        layer { name: "conv2_1" type: "Axpy" bottom: "gate" bottom: "branch" bottom: "shortcut"
            top: "conv2_1" }
    """

    bottoms = (3, 3)
    tops = (1, 1)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        a, x, b = (blob.shape for blob in bottom)
        if x != b or len(x) < 2 or a[:2] != x[:2] or math.prod(a[2:]) != 1:
            raise self.error(f"needs shapes (N, C), (N, C, ...) and the same; got {a}, {x} and {b}")
        self._extents = (*x[:2], math.prod(x[2:]))
        top[0].reshape(x)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        y = top[0].data.reshape(self._extents)
        self.xp.multiply(bottom[1].data.reshape(self._extents), self._gate(bottom), out=y)
        y += bottom[2].data.reshape(self._extents)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        dy = top[0].diff.reshape(self._extents)
        if propagate_down[0]:
            products = dy * bottom[1].data.reshape(self._extents)
            bottom[0].diff[...] = products.sum(axis=2).reshape(bottom[0].shape)
        if propagate_down[1]:
            dx = bottom[1].diff.reshape(self._extents)
            self.xp.multiply(dy, self._gate(bottom), out=dx)
        if propagate_down[2]:
            bottom[2].diff[...] = top[0].diff

    def _gate(self, bottom: list[Blob]) -> Array:
        return bottom[0].data.reshape(*self._extents[:2], 1)
