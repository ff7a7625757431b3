"""Several blobs of one shape, combined element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.saved import SavedInput
from protocaffe.proto.caffe_pb2 import EltwiseParameter


@register("Eltwise")
class Eltwise(Layer):
    """The SUM (weighted by ``coeff``), product (PROD) or maximum (MAX) of the bottoms.

    MAX: between bottoms 0 and 1 a tie goes to 1, later bottoms must be greater; the winner gets
    the gradient. PROD: the gradient is the product of the others, or y / x with
    ``stable_prod_grad: false`` (NaN where x is 0).

    Bottoms: two or more of one shape. Tops: y, the same shape.
    Reference: Caffe's EltwiseLayer.

    Example:
        layer { name: "sum" type: "Eltwise" bottom: "shortcut" bottom: "residual" top: "sum"
            eltwise_param { operation: SUM } }

    Attributes:
        operation: ``EltwiseParameter.SUM``, ``PROD`` or ``MAX``.
        coeffs: one per bottom.
    """

    bottoms = (2, None)
    tops = (1, 1)
    in_place = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.eltwise_param
        self.operation = param.operation
        self.stable_prod_grad = param.stable_prod_grad
        self.coeffs = list(param.coeff) or [1.0] * len(bottom)
        if len(self.coeffs) != len(bottom):
            raise self.error(
                f"needs one coeff per bottom ({len(bottom)}) or none, got {len(self.coeffs)}"
            )
        if self.operation == EltwiseParameter.PROD and param.coeff:
            raise self.error("PROD takes no coeff; use SUM, or a Scale layer")
        self._first = SavedInput()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for index, blob in enumerate(bottom):
            if blob.shape != bottom[0].shape:
                raise self.error(
                    f"all bottoms need one shape; bottom 0 has {bottom[0].shape} and "
                    f"bottom {index} has {blob.shape}"
                )
        top[0].reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        first = self._first.save(bottom[0], top[0])
        values, y = [first, *(blob.data for blob in bottom[1:])], top[0].data
        if self.operation == EltwiseParameter.SUM:
            self.xp.multiply(values[0], self.coeffs[0], out=y)
            for x, coeff in zip(values[1:], self.coeffs[1:], strict=True):
                y += x if coeff == 1 else coeff * x
        elif self.operation == EltwiseParameter.PROD:
            self.xp.multiply(values[0], values[1], out=y)
            for x in values[2:]:
                y *= x
        else:
            self._maximum(values, y)

    def _maximum(self, values: list[Array], y: Array) -> None:
        # maximum and fmax instead of copies under a mask, which are several times as slow. Of
        # the two that are compared, the first stays if either is NaN.
        xp = self.xp
        self._winner: Array = ~(values[0] > values[1])  # 0 or 1; more with more bottoms
        xp.fmax(values[1], values[0], out=y)
        xp.maximum(values[1], y, out=y)
        for index, x in enumerate(values[2:], 2):
            self._winner = xp.maximum(self._winner, (x > y) * np.int16(index))
            xp.maximum(y, xp.fmax(y, x), out=y)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        dy = top[0].diff
        # In place, bottom 0's diff is the top's: it comes last, when all others have read it.
        for index in reversed(range(len(bottom))):
            if propagate_down[index]:
                self.xp.multiply(dy, self._slope(index, bottom, top), out=bottom[index].diff)

    def _slope(self, index: int, bottom: list[Blob], top: list[Blob]) -> Any:
        """Return the derivative of y by one bottom: an array or a number."""
        if self.operation == EltwiseParameter.SUM:
            return self.coeffs[index]
        if self.operation == EltwiseParameter.MAX:
            return self._winner == index
        values = [self._first.load(bottom[0]), *(blob.data for blob in bottom[1:])]
        if not self.stable_prod_grad:
            with np.errstate(divide="ignore", invalid="ignore"):
                return top[0].data / values[index]
        others = [x for other, x in enumerate(values) if other != index]
        product = others[0]
        for x in others[1:]:
            product = product * x
        return product
