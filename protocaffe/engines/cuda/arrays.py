"""Eltwise sums, Split, Concat and Slice on the device: arrays added up, put together, cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import DIVISOR, WIDE_BYTES, Device, divisor
from protocaffe.engines.cuda.forms import ChannelsLast, Form
from protocaffe.engines.cuda.overrides import (
    AnyLayer,
    OfOneForm,
    Override,
    override,
    telling_slope,
)
from protocaffe.layers.eltwise import Eltwise
from protocaffe.layers.shape import Concat, Slice, Split
from protocaffe.proto.caffe_pb2 import EltwiseParameter

MOST = 4
"""How many arrays the kernels take at once."""

PARTS = np.dtype(
    [("columns", DIVISOR), ("ends", np.int32, MOST)]
    + [(name, np.int32) for name in ("start", "pitch", "wide")]
)
"""The kernels' struct ``Parts``."""


def _filled(values: Sequence[Any]) -> list[Any]:
    """Repeat the last value, as often as is needed for a kernel that looks at the first only."""
    return [*values, *[values[-1]] * (MOST - len(values))]


def add_arrays(
    device: Device, xs: Sequence[Any], y: Any, factors: Sequence[float], slope: float = 1.0
) -> None:
    """Set y, which may be the first, to the sum of factors times arrays; sums below 0 are bent."""
    while True:
        xs, more = xs[:MOST], xs[MOST:]
        bent = 1.0 if more else slope
        arguments = (*_filled(xs), y, *_filled(factors[:MOST]), len(xs), bent, y.size)
        device.run_wide("add_arrays", y.size, *arguments)
        if not more:
            return
        xs, factors = [y, *more], [1.0, *factors[MOST:]]


@override(Eltwise)
class CudaEltwise(Override[Eltwise]):
    """Sums, and an in-place ReLU behind them. Products and maxima are left to the layer."""

    def __init__(self, device: Device, node: LayerNode[Eltwise]) -> None:
        super().__init__(device, node)
        self._form = self.top_form(device, node)
        self._slope = 1.0

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Eltwise]) -> bool:
        return bool(node.layer.operation == EltwiseParameter.SUM)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[Eltwise]) -> Form:
        forms = [device.form(blob.data_storage) for blob in node.bottoms]
        if node.tops[0] is node.bottoms[0]:
            return forms[0]
        return next(filter(None, forms), None)

    def absorb(self, node: LayerNode[Any]) -> bool:
        """Bend the sum; the top's sign says in backward what was bent."""
        slope = telling_slope(node.layer)
        if self._slope != 1 or slope is None:
            return False
        self._slope = slope
        return True

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        xs = [self.data(blob, self._form) for blob in bottom]
        y = self.data(top[0], self._form)
        add_arrays(self.device, xs, y, self.layer.coeffs, self._slope)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        y = self.data(top[0], self._form) if self._slope != 1 else None
        dy = self.diff(top[0], self._form)
        parts = [
            (self.diff(blob, self._form, overwrites=True), coeff)
            for blob, coeff, wanted in zip(bottom, self.layer.coeffs, propagate_down, strict=True)
            if wanted
        ]
        if y is not None and not (top[0] is bottom[0] and propagate_down[0]):
            parts.insert(0, (dy, 1.0))  # what the ReLU would have made of it
        # What is dy itself comes last, when all others have read it.
        parts.reverse()
        for start in range(0, len(parts), MOST):
            arrays, factors = zip(*parts[start : start + MOST], strict=True)
            arguments = (*_filled(arrays), *_filled(factors), len(arrays), self._slope, dy.size)
            self.device.run_wide("spread_gradient", dy.size, dy if y is None else y, dy, *arguments)


@override(Split)
class CudaSplit(OfOneForm[Split]):
    """The data is shared; the gradients are added up at once."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: there is one array."""

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dys = [self.diff(blob, self.form) for blob in top]
            dx = self.diff(bottom[0], self.form, overwrites=True)
            add_arrays(self.device, dys, dx, [1.0] * len(dys))


class CudaParts(Override[AnyLayer]):
    """Moves numbers between a whole and its parts along an axis.

    Args:
        device: the GPU.
        node: the layer.
        whole: the blob that has all numbers.
        parts: those that have some, in order.
        axis: along which.
    """

    def __init__(
        self,
        device: Device,
        node: LayerNode[AnyLayer],
        whole: Blob,
        parts: Sequence[Blob],
        axis: int,
    ) -> None:
        super().__init__(device, node)
        self.whole_form = device.image_form(whole) if axis == 1 else None
        self.part_forms = [ChannelsLast.of(p.shape) if self.whole_form else None for p in parts]
        inner = 1 if self.whole_form else math.prod(whole.shape[axis + 1 :])
        self._pitch = whole.shape[axis] * inner
        self._widths = [part.shape[axis] * inner for part in parts]

    def join(self, parts: Sequence[Any], whole: Any) -> None:
        """Set the whole from its parts."""
        for arrays, settings, wide, count in self._rows(parts):
            run = self.device.run_wide if wide else self.device.run
            run("join_parts", count, *arrays, whole, settings, count)

    def cut(self, whole: Any, parts: Sequence[Any]) -> None:
        """Set parts from the whole; None for one that is not wanted."""
        for arrays, settings, wide, count in self._rows(parts):
            run = self.device.run_wide if wide else self.device.run
            run("cut_parts", count, whole, *arrays, settings, count)

    def _rows(self, parts: Sequence[Any]) -> Iterator[tuple[list[Any], np.ndarray, bool, int]]:
        """Yield parts that stand side by side, as many as a kernel takes, and how they stand."""
        starts = [0, *accumulate(self._widths)]
        for wanted, group in groupby(range(len(parts)), lambda index: parts[index] is not None):
            row = list(group) if wanted else []
            for first in range(0, len(row), MOST):
                chosen = row[first : first + MOST]
                arrays, start = [parts[index] for index in chosen], starts[chosen[0]]
                ends = [starts[index + 1] - start for index in chosen]
                wide = WIDE_BYTES // arrays[0].itemsize
                is_wide = not any(length % wide for length in (*ends, start, self._pitch))
                place = (divisor(ends[-1]), _filled(ends), start, self._pitch, is_wide)
                count = sum(array.size for array in arrays)
                yield _filled(arrays), np.array(place, PARTS), is_wide, count


@override(Concat)
class CudaConcat(CudaParts[Concat]):
    """With one bottom there is nothing to do: the top shares its memory."""

    def __init__(self, device: Device, node: LayerNode[Concat]) -> None:
        super().__init__(device, node, node.tops[0], node.bottoms, node.layer.axis)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[Concat]) -> Form:
        images = any(device.image_form(blob) for blob in node.bottoms)
        return ChannelsLast.of(node.tops[0].shape) if images and node.layer.axis == 1 else None

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(bottom) > 1:
            xs = [self.data(*each) for each in zip(bottom, self.part_forms, strict=True)]
            self.join(xs, self.data(top[0], self.whole_form))

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if len(bottom) > 1:
            dxs = [
                self.diff(blob, form, overwrites=True) if wanted else None
                for blob, form, wanted in zip(bottom, self.part_forms, propagate_down, strict=True)
            ]
            self.cut(self.diff(top[0], self.whole_form), dxs)


@override(Slice)
class CudaSlice(CudaParts[Slice]):
    """With one top there is nothing to do: it shares the bottom's memory."""

    def __init__(self, device: Device, node: LayerNode[Slice]) -> None:
        super().__init__(device, node, node.bottoms[0], node.tops, node.layer.axis)

    @classmethod
    def top_forms(cls, device: Device, node: LayerNode[Slice]) -> Sequence[Form]:
        images = device.image_form(node.bottoms[0]) and node.layer.axis == 1
        return [ChannelsLast.of(top.shape) if images else None for top in node.tops]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(top) > 1:
            ys = [self.data(*each) for each in zip(top, self.part_forms, strict=True)]
            self.cut(self.data(bottom[0], self.whole_form), ys)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if len(top) > 1 and propagate_down[0]:
            dys = [self.diff(*each) for each in zip(top, self.part_forms, strict=True)]
            self.join(dys, self.diff(bottom[0], self.whole_form, overwrites=True))
