"""Layers that pool regions of interest: ROIPooling and PSROIPooling.

A region is a row (image, x1, y1, x2, y2) in pixels of the net's input, both ends inside.
Regions have no gradient: it is 0 wherever it exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import bottom_name, whole_numbers

CHUNK = 1 << 18
"""How many numbers of the image are looked at in one step; they stay in the cache."""


@dataclass(frozen=True)
class Bins:
    """Parts of images, end excluded, one per region, row and column: (R, rows, columns) each.

    Attributes:
        image: which image of the batch, (R, 1, 1).
        top, bottom: rows of the image.
        left, right: columns of the image.
    """

    image: Array
    top: Array
    bottom: Array
    left: Array
    right: Array

    @property
    def area(self) -> Array:
        """The number of pixels of each, 0 for those outside the image."""
        height, width = self.bottom - self.top, self.right - self.left
        area: Array = np.maximum(height, 0) * np.maximum(width, 0)
        return area


class RegionPooling(Layer):
    """A layer over bottom 0, images (N, C, H, W), and bottom 1, regions (R, 5)."""

    on_host = True
    bottoms = (2, 2)
    tops = (1, 1)
    rows: int
    columns: int

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        images, regions = bottom[0].shape, bottom[1].shape
        if len(images) != 4:
            raise self.error(f"bottom 0 must have 4 axes (N, C, H, W), got shape {images}")
        if not regions or math.prod(regions[1:]) != 5:
            raise self.error(
                f"regions are rows of 5 numbers (image, x1, y1, x2, y2); blob "
                f"{bottom_name(self, 1)} has shape {regions}"
            )
        top[0].reshape(regions[0], self.output_channels(images[1]), self.rows, self.columns)

    def output_channels(self, channels: int) -> int:
        """Return the top's channels for a bottom's."""
        return channels

    def edges(self, regions: Array) -> tuple[Array, Array, Array, Array]:
        """Return where bins start and end, (R, rows) twice and (R, columns) twice."""
        raise NotImplementedError

    def bins(self, bottom: list[Blob]) -> Bins:
        """Return the bins of all regions, cut at the edges of their image."""
        regions = bottom[1].data.reshape(-1, 5)
        height, width = bottom[0].shape[2:]
        image, _ = whole_numbers(
            self, regions[:, 0], bottom[0].shape[0], bottom_index=1, what="image"
        )
        top, end, left, right = self.edges(regions)
        shape = (len(regions), self.rows, self.columns)
        parts = [
            np.broadcast_to(np.clip(edge, 0, limit).astype(np.int64).reshape(view), shape)
            for edge, limit, view in (
                (top, height, (-1, self.rows, 1)),
                (end, height, (-1, self.rows, 1)),
                (left, width, (-1, 1, self.columns)),
                (right, width, (-1, 1, self.columns)),
            )
        ]
        return Bins(np.broadcast_to(image.reshape(-1, 1, 1), shape), *parts)

    def clear_region_diff(self, propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Give the regions the gradient 0, where what proposed them asks for one."""
        if propagate_down[1]:
            bottom[1].diff[...] = 0


def _round(values: Array) -> Array:
    """Round halves away from 0, as C does."""
    exact = values.astype(np.float64)
    rounded: Array = np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    return rounded


@register("ROIPooling")
class ROIPooling(RegionPooling):
    """The maxima over a grid of ``pooled_h`` x ``pooled_w`` bins laid over each region.

    A region's corners are multiplied by ``spatial_scale`` and rounded; it is at least one pixel
    high and wide. With b its height / pooled_h, row i of the grid holds pixels floor(i b) to
    ceil((i + 1) b), end excluded: bins may overlap. What lies outside the image does not count,
    and a bin wholly outside gives 0. Backward: the first pixel (in row order) with the maximum
    gets the gradient.

    Bottoms: x (N, C, H, W), regions (R, 5). Tops: y (R, C, pooled_h, pooled_w).
    Reference: Girshick, "Fast R-CNN", ICCV 2015; ROIPoolingLayer of its fork of Caffe.

    Example:
        layer { name: "pool5" type: "ROIPooling" bottom: "conv5" bottom: "rois" top: "pool5"
            roi_pooling_param { pooled_h: 7 pooled_w: 7 spatial_scale: 0.0625 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.roi_pooling_param
        both = param.pooled_size if param.HasField("pooled_size") else 0
        self.rows, self.columns = both or param.pooled_h, both or param.pooled_w
        if min(self.rows, self.columns) < 1:
            raise self.error("pooled_h and pooled_w must be at least 1")
        self.spatial_scale = self.dtype.type(param.spatial_scale)

    def edges(self, regions: Array) -> tuple[Array, Array, Array, Array]:
        left, top, right, end = _round(regions[:, 1:] * self.spatial_scale).T
        rows = _steps(np.maximum(end - top + 1, 1), self.rows, self.dtype)
        columns = _steps(np.maximum(right - left + 1, 1), self.columns, self.dtype)
        return (
            *(np.floor(rows[:, :-1]) + top[:, None], np.ceil(rows[:, 1:]) + top[:, None]),
            *(np.floor(columns[:, :-1]) + left[:, None], np.ceil(columns[:, 1:]) + left[:, None]),
        )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._bins = self.bins(bottom)
        pixels = self._pixels(bottom[0].data)
        maxima = np.zeros((*self._bins.image.shape, pixels.shape[1]), self.dtype)
        rows = maxima.reshape(-1, pixels.shape[1])
        for chosen, places in self._windows(bottom[0]):
            rows[chosen] = np.fmax.reduce(pixels[places], axis=1)
        top[0].data[...] = maxima.transpose(0, 3, 1, 2)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.clear_region_diff(propagate_down, bottom)
        if not propagate_down[0]:
            return
        n, channels, height, width = bottom[0].shape
        pixels = self._pixels(bottom[0].data)
        dy = top[0].diff.transpose(0, 2, 3, 1).reshape(-1, channels)
        hits = np.full(dy.shape, pixels.size)  # one number behind the image, for empty bins
        column = np.arange(channels)
        for chosen, places in self._windows(bottom[0]):
            window = pixels[places]
            first = (window == np.fmax.reduce(window, axis=1, keepdims=True)).argmax(axis=1)
            hits[chosen] = np.take_along_axis(places, first, axis=1) * channels + column
        sums = np.bincount(hits.ravel(), dy.ravel(), minlength=pixels.size + 1)[:-1]
        bottom[0].diff[...] = sums.reshape(n, height, width, channels).transpose(0, 3, 1, 2)

    @staticmethod
    def _pixels(images: Array) -> Array:
        """Return images as rows of channels, one row per pixel: windows are rows then."""
        rows: Array = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return rows.reshape(-1, images.shape[1])

    def _windows(self, images: Blob) -> Iterator[tuple[Array, Array]]:
        """Yield numbers of bins of one size, and their pixels' numbers (bins, pixels)."""
        _, channels, height, width = images.shape
        bins = self._bins
        start = ((bins.image * height + bins.top) * width + bins.left).ravel()
        heights, widths = (bins.bottom - bins.top).ravel(), (bins.right - bins.left).ravel()
        filled = np.flatnonzero(bins.area.ravel())
        sizes, kind = np.unique(heights[filled] * (width + 1) + widths[filled], return_inverse=True)
        order, ends = np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))
        for size, group in zip(sizes, np.split(filled[order], ends[:-1]), strict=False):
            high, wide = divmod(int(size), width + 1)
            offsets = (np.arange(high)[:, None] * width + np.arange(wide)).ravel()
            step = max(1, CHUNK // (offsets.size * channels))
            for first in range(0, len(group), step):
                chosen = group[first : first + step]
                yield chosen, start[chosen][:, None] + offsets


def _steps(length: Array, count: int, dtype: np.dtype[np.floating]) -> Array:
    """Return the edges (R, count + 1) of equal parts, in the arithmetic that Caffe used."""
    part = length.astype(dtype) / dtype.type(count)
    edges: Array = np.arange(count + 1, dtype=dtype) * part[:, None]
    return edges


@register("PSROIPooling")
class PSROIPooling(RegionPooling):
    """Averages over a grid of ``group_size`` x ``group_size`` bins, each from channels of its own.

    Bin (i, j) of output channel c averages input channel (c g + i) g + j, g = ``group_size``. A
    region's corners are rounded, the lower right one moved by a pixel, and then multiplied by
    ``spatial_scale``; it is at least 0.1 pixels high and wide. Bins reach from floor to ceil of
    their edges within the image; one wholly outside gives 0. Backward spreads the gradient
    evenly over a bin.

    Bottoms: x (N, output_dim g^2, H, W), regions (R, 5). Tops: y (R, output_dim, g, g).
    Reference: Dai et al., "R-FCN", NIPS 2016; PSROIPoolingLayer of its fork of Caffe.

    Example:
        layer { name: "cls" type: "PSROIPooling" bottom: "rfcn_cls" bottom: "rois" top: "cls"
            psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 7 } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.psroi_pooling_param
        self.rows = self.columns = param.group_size
        self.output_dim = param.output_dim
        if min(self.rows, self.output_dim) < 1:
            raise self.error("output_dim and group_size must be at least 1")
        self.spatial_scale = self.dtype.type(param.spatial_scale)

    def output_channels(self, channels: int) -> int:
        if channels != self.output_dim * self.rows**2:
            raise self.error(
                f"output_dim {self.output_dim} and group_size {self.rows} need "
                f"{self.output_dim * self.rows**2} channels, got {channels}"
            )
        return self.output_dim

    def edges(self, regions: Array) -> tuple[Array, Array, Array, Array]:
        corners = _round(regions[:, 1:]) + np.array([0, 0, 1, 1])
        left, top, right, end = (corners.astype(self.dtype) * self.spatial_scale).T
        smallest = self.dtype.type(np.float32(0.1))
        rows = _steps(np.maximum(end - top, smallest), self.rows, self.dtype) + top[:, None]
        columns = _steps(np.maximum(right - left, smallest), self.rows, self.dtype) + left[:, None]
        return (
            *(np.floor(rows[:, :-1]), np.ceil(rows[:, 1:])),
            *(np.floor(columns[:, :-1]), np.ceil(columns[:, 1:])),
        )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._bins = bins = self.bins(bottom)
        images = bottom[0].data
        # A bin's sum is that up to its lower right corner, less two, plus one: four numbers.
        sums = np.zeros((*images.shape[:2], images.shape[2] + 1, images.shape[3] + 1))
        images.cumsum(axis=2, dtype=np.float64).cumsum(axis=3, out=sums[:, :, 1:, 1:])
        total = sum(sign * sums[place] for sign, place in self._corners(bins))
        top[0].data[...] = total / np.maximum(bins.area, 1)[:, None]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        self.clear_region_diff(propagate_down, bottom)
        if not propagate_down[0]:
            return
        n, channels, height, width = bottom[0].shape
        share = top[0].diff / np.maximum(self._bins.area, 1)[:, None]
        shape = (n, channels, height + 1, width + 1)
        jumps = np.zeros(math.prod(shape))
        for sign, place in self._corners(self._bins):
            flat = np.ravel_multi_index(np.broadcast_arrays(*place), shape)
            jumps += np.bincount(flat.ravel(), sign * share.ravel(), minlength=jumps.size)
        spread = jumps.reshape(shape).cumsum(axis=2).cumsum(axis=3)
        bottom[0].diff[...] = spread[:, :, :-1, :-1]

    def _corners(self, bins: Bins) -> Iterator[tuple[int, tuple[Array, ...]]]:
        """Yield a sign and places (R, output_dim, g, g) in sums, for the four corners."""
        g = self.rows
        channel = np.arange(self.output_dim * g**2).reshape(1, -1, g, g)
        image = bins.image[:, None]
        filled = bins.area[:, None] > 0
        for row_sign, row in ((1, bins.bottom), (-1, bins.top)):
            for column_sign, column in ((1, bins.right), (-1, bins.left)):
                # A bin outside the image counts four times the same number, which is nothing.
                place = (np.where(filled, each[:, None], 0) for each in (row, column))
                yield row_sign * column_sign, (image, channel, *place)
