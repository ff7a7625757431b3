"""Pooling of planes: where the windows lie, and what each makes of its pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from protocaffe.blob import Array
from protocaffe.layers.windows import window_offsets
from protocaffe.parallel import each_chunk
from protocaffe.proto.caffe_pb2 import PoolingParameter

Pair = tuple[int, int]
Slices = tuple[slice, slice, slice]

LOWEST = -float(np.finfo(np.float32).max)
"""What an empty window's maximum is: Caffe's -FLT_MAX."""


@dataclass(frozen=True)
class PoolingGeometry:
    """Windows over a plane of one size; pairs are (height, width).

    ``method`` is ``PoolingParameter.MAX`` or ``AVE``.
    """

    method: int
    kernel: Pair
    stride: Pair
    pad: Pair
    input: Pair
    output: Pair

    @classmethod
    def fit(
        cls,
        method: int,
        kernel: Pair,
        stride: Pair,
        pad: Pair,
        extents: Pair,
        floor: bool = False,
    ) -> PoolingGeometry:
        """Return the geometry for planes of the given extents.

        The output extent is ceil((in + 2 pad - kernel) / stride) + 1 (or floor). As soon as one
        axis is padded, a last window that would start at or beyond in + pad is dropped.
        """
        output = []
        for k, s, p, extent in zip(kernel, stride, pad, extents, strict=True):
            room = extent + 2 * p - k
            steps = room // s if floor else -(-room // s)
            dropped = any(pad) and steps * s >= extent + p
            output.append(steps + (0 if dropped else 1))
        return cls(method, kernel, stride, pad, extents, (output[0], output[1]))

    @property
    def axes(self) -> list[tuple[int, int, int, int, int]]:
        """For height and width: input, output, kernel, stride and pad."""
        pairs = (self.input, self.output, self.kernel, self.stride, self.pad)
        return list(zip(*pairs, strict=True))

    @property
    def starts(self) -> list[Array]:
        """For height and width: where each window begins; in the padding it is negative."""
        return [np.arange(output) * stride - pad for _, output, _, stride, pad in self.axes]

    @property
    def lengths(self) -> list[Array]:
        """For height and width: how far each window reaches within the padded image."""
        return [
            np.minimum(start + kernel, extent + pad) - start
            for start, (extent, _, kernel, _, pad) in zip(self.starts, self.axes, strict=True)
        ]

    @property
    def areas(self) -> Array:
        """What Caffe divides the sum of each window by, (H', W'): its area in the padded image."""
        # A window that lies wholly outside the image averages nothing: 0, not 0 / 0.
        return np.maximum(np.outer(*self.lengths), 1)


class Phases:
    """Takes planes apart by the stride, so that window elements are at flat offsets.

    With stride s, phase p of an axis holds places p, p + s, p + 2 s...: the same element of
    neighbouring windows stands side by side, and element e of all windows is phase e % s from
    place e // s on. So one operation on flat arrays does all rows at once, many times as fast as
    one on short rows. What it makes of the ends of rows is cut off at last.

    Attributes:
        rows, columns: per element of the kernel its phase, and where in the flat array of the
            phase it begins.
    """

    def __init__(self, geometry: PoolingGeometry, xp: Any) -> None:
        self._xp = xp
        self._output = geometry.output
        self._extents, self._counts, offsets, elements = [], [], [], []
        for image, output, kernel, stride, pad in geometry.axes:
            extent, phases = output + (kernel - 1) // stride, min(stride, kernel)
            self._extents.append(extent)
            self._counts.append(phases)
            offsets.append(window_offsets(image, extent, phases, stride, pad))
            elements.append([(e % stride, e // stride) for e in range(kernel)])
        self._offsets = list(product(*offsets))
        self.columns = elements[1]
        self.rows = [(phase, start * self._extents[1]) for phase, start in elements[0]]

    def split(self, x: Array, padding: float) -> Array:
        """Return x (planes, H, W) as (phases of rows, phases of columns, numbers)."""
        shape = (*self._counts, len(x), *self._extents)
        phases: Array = self._xp.full(shape, padding, x.dtype)
        for row, column in self._offsets:
            part = phases[row.element, column.element]
            part[:, row.grid, column.grid] = x[:, row.image, column.image]
        return phases.reshape(*self._counts, -1)

    def windows(self, numbers: Array) -> Array:
        """Return the flat numbers, one per window, as (planes, H', W')."""
        height, width = self._output
        return numbers.reshape(-1, *self._extents)[:, :height, :width]


class PlanePooling:
    """Pools (planes, H, W) arrays, one axis after the other.

    ``forward`` and ``backward`` take and overwrite arrays.

    Args:
        geometry: the windows.
        xp: the array module.
        dtype: the type of all values.
    """

    def __init__(self, geometry: PoolingGeometry, xp: Any, dtype: np.dtype[Any]) -> None:
        self.geometry = geometry
        self._xp = xp
        self._dtype = dtype
        self._phases = Phases(geometry, xp)
        self._rows, self._columns = (window_offsets(*axis) for axis in geometry.axes)
        self._divisors = xp.asarray(geometry.areas.astype(dtype))
        # A maximum's place is that of its window and that of its element within the window.
        self._code_type = np.dtype(np.min_scalar_type(math.prod(geometry.kernel)))
        width, (kernel_h, kernel_w) = geometry.input[1], geometry.kernel
        tops, lefts = geometry.starts
        self._window_places = xp.asarray(np.add.outer(tops * width, lefts), np.int32)
        elements = np.add.outer(np.arange(kernel_h) * width, np.arange(kernel_w))
        self._element_places = xp.asarray([-1, *elements.flat], np.int32)

    def forward(self, x: Array, y: Array) -> None:
        """Set y to each window's maximum or average."""
        if self.geometry.method == PoolingParameter.AVE:
            each_chunk(self._xp, self._average, x, y)
        else:
            self._codes = self._xp.empty(y.shape, self._code_type)
            each_chunk(self._xp, self._maximum, x, y, self._codes)

    def backward(self, dy: Array, dx: Array) -> None:
        """Set dx to what the last forward's windows pass on."""
        if self.geometry.method == PoolingParameter.AVE:
            each_chunk(self._xp, self._average_backward, dx, dy)
        else:
            each_chunk(self._xp, self._maximum_backward, dx, dy, self._codes)

    def index(self) -> Array:
        """Return where the last MAX forward found each maximum: h * W + w, or -1 for nowhere."""
        return self._index(self._codes)

    def _index(self, codes: Array) -> Array:
        found: Array = self._window_places * (codes > 0)
        found += self._xp.take(self._element_places, codes)
        return found

    def _maximum(self, x: Array, y: Array, codes: Array) -> None:
        # The first maximum in row order wins: the first column within each row, then the first
        # row. NaN never wins. Codes count the window's elements from 1; 0 is for none.
        number, width = self._code_type.type, self.geometry.kernel[1]
        rows = [
            self._greatest(
                (row[phase, start:], number(element))
                for element, (phase, start) in enumerate(self._phases.columns, 1)
            )
            for row in self._phases.split(x, LOWEST)
        ]
        best, code = self._greatest(
            (rows[phase][0][start:], rows[phase][1][start:] + number(element * width))
            for element, (phase, start) in enumerate(self._phases.rows)
        )
        y[...] = self._phases.windows(best)
        codes[...] = self._phases.windows(code)

    def _greatest(self, candidates: Iterable[tuple[Array, Any]]) -> tuple[Array, Array]:
        """Return the greatest of candidates and its code; both arrays may end early."""
        xp, (first, *others) = self._xp, candidates
        best = xp.fmax(first[0], self._dtype.type(LOWEST))
        where = (first[0] > LOWEST) * first[1]
        for values, code in others:
            end = len(values)
            # Later codes are larger; a product is much faster than a copy under a mask.
            xp.maximum(where[:end], (values > best[:end]) * code, out=where[:end])
            xp.fmax(best[:end], values, out=best[:end])
        return best, where

    def _maximum_backward(self, dx: Array, dy: Array, codes: Array) -> None:
        area = math.prod(self.geometry.input)
        # Every plane gets one number more, in front, for what empty windows pass on.
        start = self._xp.arange(len(dx)).reshape(-1, 1, 1) * (area + 1) + 1
        sums = self._xp.bincount(
            (self._index(codes) + start).ravel(), weights=dy.ravel(), minlength=len(dx) * (area + 1)
        )
        dx[...] = sums.reshape(-1, area + 1)[:, 1:].reshape(dx.shape)

    def _average(self, x: Array, y: Array) -> None:
        if self.geometry.kernel == self.geometry.input and self.geometry.pad == (0, 0):
            # One window: a product with ones sums several times as fast as sum does.
            ones = self._xp.ones((math.prod(self.geometry.input), 1), x.dtype)
            y[...] = (x.reshape(len(x), -1) @ ones).reshape(y.shape) / self._divisors
            return
        sums = self._xp.zeros((len(x), x.shape[1], self.geometry.output[1]), x.dtype)
        for offset in self._columns:
            sums[:, :, offset.grid] += x[:, :, offset.image]
        y[...] = 0
        for offset in self._rows:
            y[:, offset.grid] += sums[:, offset.image]
        y /= self._divisors

    def _average_backward(self, dx: Array, dy: Array) -> None:
        share = dy / self._divisors
        sums = self._xp.zeros((len(dx), dx.shape[1], self.geometry.output[1]), dx.dtype)
        for offset in self._rows:
            sums[:, offset.image] += share[:, offset.grid]
        dx[...] = 0
        for offset in self._columns:
            dx[:, :, offset.image] += sums[:, :, offset.grid]


class StochasticPooling(PlanePooling):
    """Takes one pixel per window at random; without random numbers, all pixels by their share.

    Where negative pixels keep the running sum below the threshold to the end, it takes 0.

    Args:
        geometry: the windows, without padding.
        xp: the array module.
        dtype: the type of all values.
        rng: where random numbers come from, in TRAIN.
    """

    def __init__(
        self,
        geometry: PoolingGeometry,
        xp: Any,
        dtype: np.dtype[Any],
        rng: np.random.Generator | None,
    ) -> None:
        super().__init__(geometry, xp, dtype)
        self._rng = rng

    def forward(self, x: Array, y: Array) -> None:
        """Set y to the drawn pixels, or to ``sum(x^2) / sum(x)``."""
        sums = self._xp.zeros(y.shape, self._dtype)
        for _, grid, image in self._elements():
            sums[grid] += x[image]
        if self._rng is None:
            self._weigh(x, y, sums)
        else:
            self._draw(x, y, sums, self._rng)

    def backward(self, dy: Array, dx: Array) -> None:
        """Set dx to what the last draw's windows pass on."""
        self._maximum_backward(dx, dy, self._codes)

    def _draw(self, x: Array, y: Array, sums: Array, rng: np.random.Generator) -> None:
        threshold = self._xp.asarray(rng.random(y.shape, np.float32)) * sums
        running, missing = self._xp.zeros_like(y), self._xp.ones(y.shape, bool)
        self._codes = self._xp.zeros(y.shape, self._code_type)
        y[...] = 0
        for code, grid, image in self._elements():
            running[grid] += x[image]
            now = missing[grid] & (running[grid] >= threshold[grid])
            y[grid] += x[image] * now
            self._codes[grid] += now * self._code_type.type(code)
            missing[grid] &= ~now

    def _weigh(self, x: Array, y: Array, sums: Array) -> None:
        y[...] = 0
        for _, grid, image in self._elements():
            y[grid] += x[image] ** 2
        y /= self._xp.where(sums > 0, sums, self._dtype.type(np.inf))

    def _elements(self) -> Iterator[tuple[int, Slices, Slices]]:
        """Every element of the window: its code, and where it lies in the grid and the image."""
        everything, width = slice(None), self.geometry.kernel[1]
        for row, column in product(self._rows, self._columns):
            code = row.element * width + column.element + 1
            yield (
                code,
                (everything, row.grid, column.grid),
                (everything, row.image, column.image),
            )
