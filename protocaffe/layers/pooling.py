"""Pooling over windows of an image, and the spatial pyramid made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.windows import window_offsets
from protocaffe.parallel import each_chunk
from protocaffe.proto.caffe_pb2 import PoolingParameter

Pair = tuple[int, int]

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
        for image, output, kernel, stride, pad in zip(
            geometry.input,
            geometry.output,
            geometry.kernel,
            geometry.stride,
            geometry.pad,
            strict=True,
        ):
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
        self._rows, self._columns = (
            window_offsets(*each)
            for each in zip(
                geometry.input,
                geometry.output,
                geometry.kernel,
                geometry.stride,
                geometry.pad,
                strict=True,
            )
        )
        starts = [
            np.arange(output) * stride - pad
            for output, stride, pad in zip(
                geometry.output, geometry.stride, geometry.pad, strict=True
            )
        ]
        heights, widths = (
            np.minimum(start + kernel, extent + pad) - start
            for start, kernel, extent, pad in zip(
                starts, geometry.kernel, geometry.input, geometry.pad, strict=True
            )
        )
        # A window that lies wholly outside the image averages nothing: 0, not 0 / 0.
        areas = np.maximum(np.outer(heights, widths), 1)
        self._divisors = xp.asarray(areas.astype(dtype))
        # A maximum's place is that of its window and that of its element within the window.
        self._code_type = np.dtype(np.min_scalar_type(math.prod(geometry.kernel)))
        width, (kernel_h, kernel_w) = geometry.input[1], geometry.kernel
        self._window_places = xp.asarray(np.add.outer(starts[0] * width, starts[1]), np.int32)
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


@register("Pooling")
class Pooling(Layer):
    """The maximum or the average of every window.

    Output extent: ceil((in + 2 pad - kernel) / stride) + 1, or floor with ``round_mode: FLOOR``
    (or ``ceil_mode: false``, its name in other software);
    with padding, a last window that starts at or beyond in + pad is dropped. MAX looks at real
    pixels only, and the first of equal ones gets the gradient. AVE divides by the window's area
    within the padded image. ``global_pooling`` makes the whole image one window.

    Bottoms: x (N, C, H, W). Tops: y (N, C, H', W'); with MAX, optionally the index h W + w of
    each maximum in its own plane.
    Reference: Caffe's PoolingLayer.

    Example:
        layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
            pooling_param { pool: MAX kernel_size: 3 stride: 2 } }

    Attributes:
        geometry: the windows, known after ``reshape``.
    """

    bottoms = (1, 1)
    tops = (1, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.pooling_param
        self.method = param.pool
        if self.method == PoolingParameter.STOCHASTIC:
            raise self.error("pool: STOCHASTIC is not available; use MAX or AVE")
        if self.method == PoolingParameter.AVE and len(top) > 1:
            raise self.error("only pool: MAX has a second top (the index of each maximum)")
        self.global_pooling = param.global_pooling
        self.floor = param.round_mode == PoolingParameter.FLOOR or not param.ceil_mode
        if not param.avg_include_pad:
            raise self.error("avg_include_pad: false is not available; averages count padding")
        self.pad = _pair(param, "pad", "pad_h", "pad_w", self.error)
        self.stride = _pair(param, "stride", "stride_h", "stride_w", self.error)
        self.kernel = self._kernel(param)

    def _kernel(self, param: PoolingParameter) -> Pair:
        given = [each for each in ("kernel_size", "kernel_h", "kernel_w") if param.HasField(each)]
        if self.global_pooling:
            if given:
                raise self.error(f"global_pooling takes no {given[0]}: the window is the image")
            if self.pad != (0, 0) or self.stride != (1, 1):
                raise self.error("global_pooling needs pad 0 and stride 1")
            return (0, 0)
        if not given:
            raise self.error("kernel_size is missing (or kernel_h and kernel_w)")
        kernel = _pair(param, "kernel_size", "kernel_h", "kernel_w", self.error)
        if not all(kernel) or not all(self.stride):
            raise self.error(
                f"kernel and stride must be at least 1, got {kernel} and {self.stride}"
            )
        if any(pad >= extent for pad, extent in zip(self.pad, kernel, strict=True)):
            raise self.error(f"pad {self.pad} must be smaller than the kernel {kernel}")
        return kernel

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        extents = (shape[2], shape[3])
        kernel = extents if self.global_pooling else self.kernel
        self.geometry = PoolingGeometry.fit(
            self.method, kernel, self.stride, self.pad, extents, self.floor
        )
        if min(self.geometry.output) < 1:
            raise self.error(
                f"kernel {kernel} with pad {self.pad} does not fit a bottom of shape {shape}"
            )
        self._planes = PlanePooling(self.geometry, self.xp, self.dtype)
        for blob in top:
            blob.reshape(*shape[:2], *self.geometry.output)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._planes.forward(_planes(bottom[0].data), _planes(top[0].data))
        if len(top) > 1:
            _planes(top[1].data)[...] = self._planes.index()

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            self._planes.backward(_planes(top[0].diff), _planes(bottom[0].diff))


def _planes(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _pair(
    param: PoolingParameter, both: str, high: str, wide: str, error: Callable[[str], Exception]
) -> Pair:
    """Read a setting that is given for both axes at once, or for each."""
    separate = [name for name in (high, wide) if param.HasField(name)]
    if not separate:
        value = getattr(param, both)
        return (value, value)
    if param.HasField(both):
        raise error(f"give either {both} or {high} and {wide}, not both")
    if len(separate) == 1:
        raise error(f"{high} and {wide} must be given together, got only {separate[0]}")
    return (getattr(param, high), getattr(param, wide))


@register("SPP")
class SPP(Layer):
    """Spatial pyramid: level l pools the image into 2^l x 2^l bins, all levels side by side.

    Per level and axis: kernel = stride = ceil(in / bins), pad = floor((kernel bins - in + 1) / 2),
    then as Pooling.

    Bottoms: x (N, C, H, W). Tops: y (N, C * sum of bins^2), each level channel by channel; with
    ``pyramid_height: 1`` it stays (N, C, 1, 1).
    Reference: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", ECCV 2014;
    Caffe's SPPLayer.

    Example:
        layer { name: "spp" type: "SPP" bottom: "conv5" top: "spp"
            spp_param { pyramid_height: 3 pool: MAX } }

    Attributes:
        levels: the poolings from coarse to fine, known after ``reshape``.
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.spp_param
        self.method = int(param.pool)
        if self.method == PoolingParameter.STOCHASTIC:
            raise self.error("pool: STOCHASTIC is not available; use MAX or AVE")
        if param.pyramid_height < 1:
            raise self.error("pyramid_height must be at least 1")
        self.pyramid_height = param.pyramid_height

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4 or not all(shape[2:]):
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        geometries = [
            self._level((shape[2], shape[3]), 2**level) for level in range(self.pyramid_height)
        ]
        self.levels = [PlanePooling(each, self.xp, self.dtype) for each in geometries]
        if self.pyramid_height == 1:
            top[0].reshape(*shape[:2], 1, 1)
        else:
            bins = sum(math.prod(each.output) for each in geometries)
            top[0].reshape(shape[0], shape[1] * bins)

    def _level(self, extents: Pair, bins: int) -> PoolingGeometry:
        kernel = (-(-extents[0] // bins), -(-extents[1] // bins))
        pad = ((kernel[0] * bins - extents[0] + 1) // 2, (kernel[1] * bins - extents[1] + 1) // 2)
        if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
            raise self.error(
                f"planes of {extents[0]}x{extents[1]} are too small for {bins} bins per axis; "
                f"lower pyramid_height ({self.pyramid_height}) or enlarge the input"
            )
        return PoolingGeometry.fit(self.method, kernel, kernel, pad, extents)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = _planes(bottom[0].data)
        for level, part in zip(self.levels, self._parts(top[0].data, bottom[0]), strict=True):
            y = self.xp.empty((len(x), *level.geometry.output), self.dtype)
            level.forward(x, y)
            part[...] = y.reshape(part.shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dx = _planes(bottom[0].diff)
        dx[...] = 0
        share = self.xp.empty_like(dx)
        for level, part in zip(self.levels, self._parts(top[0].diff, bottom[0]), strict=True):
            level.backward(part.reshape(len(dx), *level.geometry.output), share)
            dx += share

    def _parts(self, top: Array, bottom: Blob) -> list[Array]:
        """View the top as one (N, C * bins^2) array per level."""
        rows = top.reshape(bottom.shape[0], -1)
        sizes = [bottom.shape[1] * math.prod(level.geometry.output) for level in self.levels]
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return [rows[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]
