"""Convolution, its transpose, and the im2col that both are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, ClassVar, TypeVar

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.windows import window_offsets
from protocaffe.parallel import each_part, matmul
from protocaffe.proto.caffe_pb2 import ConvolutionParameter

Extents = tuple[int, ...]
Index = tuple[Any, ...]
Result = TypeVar("Result")

BOTH = (slice(None), slice(None))
"""All images and all channels."""

MAX_COLUMN_COUNT = 1 << 19
"""How many numbers a column buffer may hold, unless a single image needs more."""


@dataclass(frozen=True)
class ConvolutionGeometry:
    """A convolution's settings, checked; one number per spatial axis where there are tuples."""

    channel_axis: int
    kernel: Extents
    stride: Extents
    pad: Extents
    dilation: Extents
    group: int
    num_output: int
    bias_term: bool

    @classmethod
    def read(cls, param: ConvolutionParameter, bottom: Blob, layer: Layer) -> ConvolutionGeometry:
        """Read and check ``convolution_param`` for a bottom of this shape."""
        axis = layer.canonical_axis(param.axis, bottom)
        spatial = bottom.num_axes - axis - 1
        error = layer.error
        pair = ("kernel_h", "kernel_w")
        geometry = cls(
            channel_axis=axis,
            kernel=_per_axis(param, "kernel_size", pair, spatial, None, error),
            stride=_per_axis(param, "stride", ("stride_h", "stride_w"), spatial, 1, error),
            pad=_per_axis(param, "pad", ("pad_h", "pad_w"), spatial, 0, error),
            dilation=_per_axis(param, "dilation", ("dilation_h", "dilation_w"), spatial, 1, error),
            group=param.group,
            num_output=param.num_output,
            bias_term=param.bias_term,
        )
        for what in ("kernel", "stride", "dilation"):
            extents = getattr(geometry, what)
            if not all(extents):
                raise error(f"{what} must be at least 1 along every axis, got {extents}")
        return geometry

    def grid_extents(self, image: Sequence[int]) -> Extents:
        """Return the number of window positions over an image along each spatial axis."""
        return tuple(
            (extent + 2 * pad - (dilation * (kernel - 1) + 1)) // stride + 1
            for extent, kernel, stride, pad, dilation in zip(
                image, self.kernel, self.stride, self.pad, self.dilation, strict=True
            )
        )

    def image_extents(self, grid: Sequence[int]) -> Extents:
        """Return the smallest image that has this many window positions."""
        return tuple(
            stride * (extent - 1) + dilation * (kernel - 1) + 1 - 2 * pad
            for extent, kernel, stride, pad, dilation in zip(
                grid, self.kernel, self.stride, self.pad, self.dilation, strict=True
            )
        )


def _per_axis(
    param: ConvolutionParameter,
    field: str,
    pair: tuple[str, ...],
    spatial: int,
    default: int | None,
    error: Callable[[str], Exception],
) -> Extents:
    """Read a setting that is given once, once per spatial axis, or as ``*_h`` and ``*_w``."""
    values = list(getattr(param, field))
    if any(param.HasField(name) for name in pair):
        if values:
            raise error(f"give either {field} or {pair[0]} and {pair[1]}, not both")
        if spatial != 2:
            raise error(
                f"{pair[0]} and {pair[1]} need 2 spatial axes, here there are {spatial}; "
                f"use {field} once per axis"
            )
        return tuple(getattr(param, name) for name in pair)
    if not values:
        if not spatial:
            return ()
        if default is None:
            raise error(f"{field} is missing (or {pair[0]} and {pair[1]})")
        values = [default]
    if len(values) not in (1, spatial):
        raise error(
            f"{field} must be given once or once per spatial axis ({spatial}), "
            f"got {len(values)} values"
        )
    return tuple(values * spatial if len(values) == 1 else values)


class Columns:
    """Moves image patches to columns and back: im2col and col2im in any number of axes.

    It takes two steps, the last axis first. Between them are strips: the image once for each
    element of the kernel along that axis. The second step, which moves all the numbers, then
    copies whole planes (if the stride is 1) instead of short rows.

    Args:
        geometry: kernel, stride, pad and dilation.
        image: spatial extents of the image.
        grid: spatial extents of the window positions.
        xp: the array module.

    Attributes:
        is_image: whether windows are single pixels, so that the columns are the image itself.
    """

    def __init__(
        self, geometry: ConvolutionGeometry, image: Extents, grid: Extents, xp: Any
    ) -> None:
        self._xp = xp
        self._is_padded = any(geometry.pad)
        self.is_image = image == grid and math.prod(geometry.kernel) == 1 and not self._is_padded
        self._only_element: Index = (*BOTH, *(0 for _ in geometry.kernel))
        if self.is_image:
            return
        settings = zip(
            grid, geometry.kernel, geometry.stride, geometry.pad, geometry.dilation, strict=True
        )
        *before, (width, kernel, stride, pad, dilation) = settings
        padded = [extent + 2 * pad for extent, pad in zip(image, geometry.pad, strict=True)][:-1]
        self._strip_shape = (kernel, *padded, width)
        inside = [
            slice(pad, pad + extent)
            for extent, pad in zip(image[:-1], geometry.pad[:-1], strict=True)
        ]
        self._along_rows: list[tuple[Index, Index]] = [
            ((*BOTH, each.element, *inside, each.grid), (..., each.image))
            for each in window_offsets(image[-1], width, kernel, stride, pad, dilation)
        ]
        per_axis = [
            window_offsets(extent, count, kernel, stride, 0, dilation)
            for extent, (count, kernel, stride, _, dilation) in zip(padded, before, strict=True)
        ]
        self._across_rows: list[tuple[Index, Index]] = [
            (
                (*BOTH, *(each.element for each in offset)),
                (*BOTH, slice(None), *(each.image for each in offset)),
            )
            for offset in product(*per_axis)
        ]

    def gather(self, image: Array, columns: Array) -> None:
        """Copy every window into columns (n, channel, *kernel, *grid); padding reads as 0."""
        if self.is_image:
            columns[self._only_element] = image
            return
        make = self._xp.zeros if self._is_padded else self._xp.empty
        strips = make((*image.shape[:2], *self._strip_shape), image.dtype)
        for strip, pixels in self._along_rows:
            strips[strip] = image[pixels]
        for element, rows in self._across_rows:
            columns[element] = strips[rows]

    def scatter(self, columns: Array, image: Array) -> None:
        """Overwrite the image (n, channel, *image) with the sum of its windows."""
        if self.is_image:
            image[...] = columns[self._only_element]
            return
        strips = self._xp.zeros((*image.shape[:2], *self._strip_shape), image.dtype)
        for element, rows in self._across_rows:
            strips[rows] += columns[element]
        image[...] = 0
        for strip, pixels in self._along_rows:
            image[pixels] += strips[strip]


class ConvolutionBase(Layer):
    """What Convolution and Deconvolution share.

    Both relate an *image* to the *grid* of window positions over it through the same weights
    of shape (grid channels, image channels / group, *kernel). Convolution computes the grid
    from the image, Deconvolution the image from the grid.
    """

    bottoms = (1, None)
    tops = (1, None)
    settings = ("convolution_param",)
    equal_bottoms_and_tops = True
    transposed: ClassVar[bool]

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.convolution_param
        self.geometry = geometry = ConvolutionGeometry.read(param, bottom[0], self)
        self.channels = bottom[0].shape[geometry.channel_axis]
        if geometry.num_output < 1:
            raise self.error("num_output must be at least 1")
        for what, count in (("num_output", geometry.num_output), ("channels", self.channels)):
            if geometry.group < 1 or count % geometry.group:
                raise self.error(f"group {geometry.group} does not divide {what} {count}")
        image_channels, grid_channels = self._image_and_grid(self.channels, geometry.num_output)
        shape = (grid_channels, image_channels // geometry.group, *geometry.kernel)
        self.add_blob(shape, param.weight_filler)
        if geometry.bias_term:
            self.add_blob((geometry.num_output,), param.bias_filler)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        axis = self.geometry.channel_axis
        shape = bottom[0].shape
        if len(shape) != axis + 1 + len(self.geometry.kernel) or shape[axis] != self.channels:
            raise self.error(
                f"was set up for {self.channels} channels at axis {axis} and "
                f"{len(self.geometry.kernel)} spatial axes; bottom 0 now has shape {shape}"
            )
        for index, blob in enumerate(bottom):
            if blob.shape != shape:
                raise self.error(
                    "all bottoms need one shape; bottom 0 has "
                    f"{shape} and bottom {index} has {blob.shape}"
                )
        extents = shape[axis + 1 :]
        outputs = self.output_extents(extents)
        if not all(extent > 0 for extent in outputs):
            raise self.error(
                f"the output would be empty, {outputs}: kernel {self.geometry.kernel} with pad "
                f"{self.geometry.pad} and dilation {self.geometry.dilation} does not fit a bottom "
                f"of shape {shape}"
            )
        for blob in top:
            blob.reshape(*shape[:axis], self.geometry.num_output, *outputs)
        self._image, self._grid = self._image_and_grid(extents, outputs)
        self._columns = Columns(self.geometry, self._image, self._grid, self.xp)
        channels, _ = self._image_and_grid(self.channels, self.geometry.num_output)
        self._column_shape = (channels, *self.geometry.kernel, *self._grid)

    def multiply_adds(self, bottom: list[Blob], top: list[Blob]) -> int:
        grid = bottom if self.transposed else top
        return sum(blob.count for blob in grid) * math.prod(self.blobs[0].shape[1:])

    def output_extents(self, extents: Extents) -> Extents:
        """Return the top's spatial extents for a bottom's."""
        if self.transposed:
            return self.geometry.image_extents(extents)
        return self.geometry.grid_extents(extents)

    def _image_and_grid(self, bottom: Any, top: Any) -> tuple[Any, Any]:
        """Tell which of the bottom's and the top's things belong to the image."""
        return (top, bottom) if self.transposed else (bottom, top)

    def _correlate(self, image: Array, grid: Array, bias: Array | None = None) -> None:
        """Set grid = W * im2col(image) + bias."""
        weights = self._weights(self.blobs[0].data)

        def work(part: slice) -> None:
            for images, grids, columns in self._chunks(image, grid, part):
                if self._columns.is_image:
                    columns = images
                else:
                    self._columns.gather(images, columns)
                matmul(self.xp, weights, self._matrices(columns), out=self._matrices(grids))
                if bias is not None:
                    grids += bias

        self._each_part(grid, work)

    def _spread(self, grid: Array, image: Array, bias: Array | None = None) -> None:
        """Set image = col2im(transposed W * grid) + bias."""
        weights = self._weights(self.blobs[0].data).swapaxes(1, 2)

        def work(part: slice) -> None:
            for images, grids, columns in self._chunks(image, grid, part):
                if self._columns.is_image:
                    columns = images
                if weights.shape[2] > 1:
                    matmul(self.xp, weights, self._matrices(grids), out=self._matrices(columns))
                else:  # a group for each channel: an outer product, which BLAS does slowly
                    self.xp.multiply(weights, self._matrices(grids), out=self._matrices(columns))
                if columns is not images:
                    self._columns.scatter(columns, images)
                if bias is not None:
                    images += bias

        self._each_part(grid, work)

    def _add_weight_diff(self, image: Array, grid: Array) -> None:
        """Add grid * transposed im2col(image) to the weights' diff."""
        diff = self._weights(self.blobs[0].diff)
        # BLAS prefers many rows and few columns; but adding what comes out transposed takes
        # longer than the product where there are more weights than columns.
        flip = diff.size < math.prod(self._column_shape)
        axis = len(self._column_shape) - len(self._grid)

        def work(part: slice) -> list[Array]:
            totals: list[Array] = []  # one, or none without images
            partial: Any = None
            for images, grids, room in self._chunks(image, grid, part):
                # The images of a chunk side by side: one product over long rows.
                columns = room.reshape(*self._column_shape[:axis], -1, *self._grid)
                self._columns.gather(images, self.xp.moveaxis(columns, axis, 0))
                columns = columns.reshape(diff.shape[0], diff.shape[2], -1)
                rows = grids.swapaxes(0, 1).reshape(*diff.shape[:2], -1)
                factors = (columns, rows) if flip else (rows, columns)
                partial = self.xp.matmul(factors[0], factors[1].swapaxes(1, 2), out=partial)
                if totals:
                    totals[0] += partial
                else:
                    totals.append(partial)
                    partial = None
            return totals

        for total in chain.from_iterable(self._each_part(grid, work)):
            diff += total.swapaxes(1, 2) if flip else total

    def _bias(self) -> Array | None:
        """Return the bias as it is added to (n, num_output, *spatial)."""
        if not self.geometry.bias_term:
            return None
        bias: Array = self.blobs[1].data.reshape(-1, *(1,) * len(self.geometry.kernel))
        return bias

    def _add_bias_diff(self, top_diff: Array) -> None:
        if self.geometry.bias_term and self.param_propagate_down[1]:
            gradient = self._batch(top_diff)
            gradient = gradient.reshape(*gradient.shape[:2], math.prod(gradient.shape[2:]))
            for total in each_part(
                self.xp, len(gradient), gradient.size, lambda part: gradient[part].sum(axis=(0, 2))
            ):
                self.blobs[1].diff[...] += total

    def _batch(self, array: Array) -> Array:
        """View an array (..., channels, *spatial) as one with a single axis of images."""
        batch: Array = array.reshape(-1, *array.shape[self.geometry.channel_axis :])
        return batch

    def _each_part(self, grid: Array, work: Callable[[slice], Result]) -> list[Result]:
        """Do work for all images, several parts at once."""
        count = math.prod(grid.shape[: self.geometry.channel_axis])
        return each_part(self.xp, count, count * math.prod(self._column_shape), work)

    def _chunks(
        self, image: Array, grid: Array, part: slice
    ) -> Iterator[tuple[Array, Array, Array]]:
        """Yield a few images, grids and room for their columns (n, channel, *kernel, *grid)."""
        images, grids = self._batch(image)[part], self._batch(grid)[part]
        step = max(1, MAX_COLUMN_COUNT // math.prod(self._column_shape))
        room = self.xp.empty((min(step, len(images)), *self._column_shape), self.dtype)
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            yield chunk, grids[start : start + step], room[: len(chunk)]

    def _weights(self, array: Array) -> Array:
        """View weights as (group, grid channels / group, image channels / group * kernel)."""
        group = self.geometry.group
        rows: Array = array.reshape(group, len(array) // group, -1)
        return rows

    def _matrices(self, array: Array) -> Array:
        """View columns or grids (n, ..., *grid) as (n, group, rows of a group, area)."""
        matrices: Array = array.reshape(len(array), self.geometry.group, -1, math.prod(self._grid))
        return matrices


@register("Convolution")
class Convolution(ConvolutionBase):
    """y[m] = bias[m] + sum over channels c of m's group of W[m, c] cross-correlated with x[c].

    Output extent per axis: floor((in + 2 pad - (dilation (kernel - 1) + 1)) / stride) + 1.

    Bottoms: one or more x of one shape (..., C, *spatial), any number of spatial axes; C stands
    at ``axis`` (1). Tops: as many, (..., num_output, *spatial), all by the same weights.
    Parameters: W (num_output, C / group, *kernel), bias (num_output).
    Reference: LeCun et al., "Gradient-based learning applied to document recognition",
    Proc. IEEE 1998; Caffe's ConvolutionLayer.

    Example:
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
            convolution_param { num_output: 32 kernel_size: 3 pad: 1
                weight_filler { type: "msra" } } }
    """

    transposed = False

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            self._correlate(image=x.data, grid=y.data, bias=self._bias())

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self._add_bias_diff(y.diff)
            if self.param_propagate_down[0]:
                self._add_weight_diff(image=x.data, grid=y.diff)
            if wanted:
                self._spread(grid=y.diff, image=x.diff)


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    """Convolution with a group for every channel: y[c] = bias[c] + W[c] cross-correlated with x[c].

    ``num_output`` and ``group`` may be left out.

    Bottoms: x (N, C, H, W), as Convolution. Tops: y (N, C, H', W').
    Parameters: W (C, 1, *kernel), bias (C).
    Reference: Howard et al., "MobileNets", 2017; ConvolutionDepthwiseLayer of its and ShuffleNet's
    ports to Caffe.

    Example:
        layer { name: "conv2_1/dw" type: "ConvolutionDepthwise" bottom: "conv1" top: "conv2_1/dw"
            convolution_param { kernel_size: 3 pad: 1 bias_term: false
                weight_filler { type: "msra" } } }
    """

    settings = ("convolution_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.convolution_param
        channels = bottom[0].shape[self.canonical_axis(param.axis, bottom[0])]
        for field in ("group", "num_output"):
            if not param.HasField(field):
                setattr(param, field, channels)
        super().setup(bottom, top)


@register("DepthwiseConvolution")
class DepthwiseConvolution(ConvolutionDepthwise):
    """ConvolutionDepthwise under its other name: y[c] = bias[c] + W[c] cross-correlated with x[c].

    Bottoms: x (N, C, H, W), as Convolution. Tops: y (N, C, H', W').
    Parameters: W (C, 1, *kernel), bias (C).
    Reference: Howard et al., "MobileNets", 2017; DepthwiseConvolutionLayer of MobileNet-YOLO's
    fork of Caffe.

    Example:
        layer { name: "conv2_1/dw" type: "DepthwiseConvolution" bottom: "conv1" top: "conv2_1/dw"
            convolution_param { num_output: 6 group: 6 kernel_size: 3 pad: 1
                weight_filler { type: "msra" } } }
    """


@register("Deconvolution")
class Deconvolution(ConvolutionBase):
    """The transpose of Convolution: every x[c] stamps W[c] times its value onto y.

    Output extent per axis: stride (in - 1) + dilation (kernel - 1) + 1 - 2 pad.

    Bottoms: one or more x of one shape (..., C, *spatial). Tops: as many,
    (..., num_output, *spatial).
    Parameters: W (C, num_output / group, *kernel), bias (num_output).
    Reference: Long et al., "Fully Convolutional Networks for Semantic Segmentation",
    CVPR 2015; Caffe's DeconvolutionLayer.

    Example:
        layer { name: "upscore" type: "Deconvolution" bottom: "score" top: "upscore"
            param { lr_mult: 0 }
            convolution_param { num_output: 6 group: 6 kernel_size: 4 stride: 2 pad: 1
                bias_term: false weight_filler { type: "bilinear" } } }
    """

    transposed = True

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for x, y in zip(bottom, top, strict=True):
            self._spread(grid=x.data, image=y.data, bias=self._bias())

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for x, y, wanted in zip(bottom, top, propagate_down, strict=True):
            self._add_bias_diff(y.diff)
            if self.param_propagate_down[0]:
                self._add_weight_diff(image=y.diff, grid=x.data)
            if wanted:
                self._correlate(image=y.diff, grid=x.diff)


@register("Im2col")
class Im2col(Layer):
    """Every window of the image as one column: what Convolution multiplies its weights with.

    Backward sums each pixel's gradient over the windows that hold it.

    Bottoms: x (..., C, *spatial). Tops: (..., C * product of kernel, *grid), channels ordered
    by input channel, then kernel row, then kernel column.
    Reference: Caffe's Im2colLayer.

    Example:
        layer { name: "windows" type: "Im2col" bottom: "data" top: "windows"
            convolution_param { kernel_size: 3 pad: 1 } }
    """

    bottoms = (1, 1)
    tops = (1, 1)
    settings = ("convolution_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.geometry = ConvolutionGeometry.read(self.param.convolution_param, bottom[0], self)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape, axis = bottom[0].shape, self.geometry.channel_axis
        image = shape[axis + 1 :]
        if len(image) != len(self.geometry.kernel):
            raise self.error(
                f"was set up for {len(self.geometry.kernel)} spatial axes; "
                f"the bottom now has shape {shape}"
            )
        grid = self.geometry.grid_extents(image)
        if not all(extent > 0 for extent in grid):
            raise self.error(
                f"kernel {self.geometry.kernel} does not fit a bottom of shape {shape}"
            )
        top[0].reshape(*shape[:axis], shape[axis] * math.prod(self.geometry.kernel), *grid)
        self._columns = Columns(self.geometry, image, grid, self.xp)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._columns.gather(*self._views(bottom[0].data, top[0].data))

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            images, columns = self._views(bottom[0].diff, top[0].diff)
            self._columns.scatter(columns, images)

    def _views(self, image: Array, top: Array) -> tuple[Array, Array]:
        """View the two arrays as (n, C, *image) and (n, C, *kernel, *grid)."""
        axis, kernel = self.geometry.channel_axis, self.geometry.kernel
        images = image.reshape(-1, *image.shape[axis:])
        columns = top.reshape(-1, images.shape[1], *kernel, *top.shape[axis + 1 :])
        return images, columns
