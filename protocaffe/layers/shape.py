"""Layers that cut, join, copy or rename axes; the numbers stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Bounds, Layer, register
from protocaffe.layers.softmax import outer_axis_inner
from protocaffe.proto.caffe_pb2 import ConcatParameter, SliceParameter

Index = tuple[slice, ...]


def _parts(sizes: Sequence[int], axis: int) -> Iterator[Index]:
    """Yield the index of each part of an array that is cut along an axis."""
    start = 0
    for size in sizes:
        yield (*(slice(None),) * axis, slice(start, start + size))
        start += size


def _cut_axis(
    layer: Layer, param: ConcatParameter | SliceParameter, old_name: str, bottom: Blob
) -> int:
    """Read ``axis``, or the old name that Caffe had for it."""
    if not param.HasField(old_name):
        return layer.canonical_axis(param.axis, bottom)
    if param.HasField("axis"):
        raise layer.error(f"give either axis or {old_name}, not both")
    return layer.canonical_axis(getattr(param, old_name), bottom, old_name)


class SharingLayer(Layer):
    """A layer whose tops use the bottom's memory."""

    bottoms = (1, 1)
    tops: ClassVar[Bounds] = (1, 1)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: the tops' data is the bottom's."""

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff.reshape(bottom[0].shape)


@register("Concat")
class Concat(Layer):
    """The bottoms one after the other along ``axis`` (1), or by its old name ``concat_dim``.

    Bottoms: one or more, of one shape but for that axis. Tops: one; with a single bottom it
    shares the bottom's memory.
    Reference: Caffe's ConcatLayer.

    Example:
        layer { name: "concat" type: "Concat" bottom: "branch1" bottom: "branch2" top: "concat" }
    """

    bottoms = (1, None)
    tops = (1, 1)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.axis = axis = _cut_axis(self, self.param.concat_param, "concat_dim", bottom[0])
        shape = bottom[0].shape
        for index, blob in enumerate(bottom):
            if len(blob.shape) != len(shape) or (
                (*blob.shape[:axis], *blob.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :])
            ):
                raise self.error(
                    f"all bottoms need one shape but for axis {axis}; bottom 0 has {shape} and "
                    f"bottom {index} has {blob.shape}"
                )
        extent = sum(blob.shape[axis] for blob in bottom)
        top[0].reshape(*shape[:axis], extent, *shape[axis + 1 :])
        if len(bottom) == 1:
            top[0].share_data(bottom[0])
            top[0].share_diff(bottom[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(bottom) > 1:
            y = top[0].data
            for blob, part in self._bottom_parts(bottom):
                y[part] = blob.data

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if len(bottom) > 1:
            dy = top[0].diff
            for (blob, part), wanted in zip(
                self._bottom_parts(bottom), propagate_down, strict=True
            ):
                if wanted:
                    blob.diff[...] = dy[part]

    def _bottom_parts(self, bottom: list[Blob]) -> Iterator[tuple[Blob, Index]]:
        sizes = [blob.shape[self.axis] for blob in bottom]
        return zip(bottom, _parts(sizes, self.axis), strict=True)


@register("Slice")
class Slice(Layer):
    """The bottom cut along ``axis`` (1), or by its old name ``slice_dim``, one part per top.

    ``slice_point`` says where each part after the first begins; without it the parts are equal.

    Bottoms: x. Tops: one or more; a single one shares the bottom's memory.
    Reference: Caffe's SliceLayer.

    Example:
        layer { name: "halves" type: "Slice" bottom: "data" top: "first" top: "second"
            slice_param { axis: 1 slice_point: 2 } }
    """

    bottoms = (1, 1)
    tops = (1, None)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.axis = axis = _cut_axis(self, self.param.slice_param, "slice_dim", bottom[0])
        shape = bottom[0].shape
        for blob, size in zip(top, self._sizes(shape[axis], len(top)), strict=True):
            blob.reshape(*shape[:axis], size, *shape[axis + 1 :])
        if len(top) == 1:
            top[0].share_data(bottom[0])
            top[0].share_diff(bottom[0])

    def _sizes(self, extent: int, num_tops: int) -> list[int]:
        points = list(self.param.slice_param.slice_point)
        if not points:
            if extent % num_tops:
                raise self.error(
                    f"cannot cut {extent} along axis {self.axis} into {num_tops} equal parts; "
                    "give slice_point"
                )
            return [extent // num_tops] * num_tops
        if len(points) != num_tops - 1:
            raise self.error(
                f"{num_tops} tops need {num_tops - 1} slice_point(s), got {len(points)}"
            )
        ends = [0, *points, extent]
        sizes = [end - start for start, end in pairwise(ends)]
        if min(sizes) < 1:
            raise self.error(f"slice_point must rise strictly between 0 and {extent}, got {points}")
        return sizes

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(top) > 1:
            x = bottom[0].data
            for blob, part in self._top_parts(top):
                blob.data[...] = x[part]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if len(top) > 1 and propagate_down[0]:
            dx = bottom[0].diff
            for blob, part in self._top_parts(top):
                dx[part] = blob.diff

    def _top_parts(self, top: list[Blob]) -> Iterator[tuple[Blob, Index]]:
        sizes = [blob.shape[self.axis] for blob in top]
        return zip(top, _parts(sizes, self.axis), strict=True)


@register("Split")
class Split(SharingLayer):
    """One blob under several names, so that several layers may read it; gradients add up.

    The net inserts this layer wherever a top is read more than once.

    Bottoms: x, any shape. Tops: one or more, sharing x's data.
    Reference: Caffe's SplitLayer.

    Example:
        layer { name: "split" type: "Split" bottom: "pool1" top: "branch1" top: "branch2" }
    """

    tops = (1, None)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in top:
            blob.reshape(bottom[0].shape)
            blob.share_data(bottom[0])

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dx = bottom[0].diff
            dx[...] = top[0].diff
            for blob in top[1:]:
                dx += blob.diff


@register("Silence")
class Silence(Layer):
    """Reads blobs so that they are no outputs of the net; their gradient is 0.

    Bottoms: one or more. Tops: none.
    Reference: Caffe's SilenceLayer.

    Example:
        layer { name: "silence" type: "Silence" bottom: "label" }
    """

    bottoms = (1, None)
    tops = (0, 0)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: there are no tops."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: there are no tops."""

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for blob, wanted in zip(bottom, propagate_down, strict=True):
            if wanted:
                blob.diff[...] = 0


@register("Flatten")
class Flatten(SharingLayer):
    """The axes ``axis`` (1) to ``end_axis`` (-1, the last) become one.

    Bottoms: x, any shape. Tops: one, sharing x's data.
    Reference: Caffe's FlattenLayer.

    Example:
        layer { name: "flat" type: "Flatten" bottom: "pool5" top: "flat" flatten_param { axis: 1 } }
    """

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        param, shape = self.param.flatten_param, bottom[0].shape
        start = self.canonical_axis(param.axis, bottom[0])
        end = self.canonical_axis(param.end_axis, bottom[0], "end_axis")
        if start > end:
            raise self.error(
                f"axis {param.axis} comes after end_axis {param.end_axis} for shape {shape}"
            )
        flat = math.prod(shape[start : end + 1])
        top[0].reshape(*shape[:start], flat, *shape[end + 1 :])
        top[0].share_data(bottom[0])


@register("Reshape")
class Reshape(SharingLayer):
    """The axes ``axis`` (0) to ``axis + num_axes`` (-1: to the end) get another ``shape``.

    In ``shape``, 0 copies the bottom's extent at the same place and -1 is what remains. A
    negative ``axis`` counts from after the last axis: -1 appends axes.

    Bottoms: x, any shape. Tops: one of the same count, sharing x's data.
    Reference: Caffe's ReshapeLayer.

    Example:
        layer { name: "rows" type: "Reshape" bottom: "pool5" top: "rows"
            reshape_param { shape { dim: 0 dim: -1 } } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._dims = list(self.param.reshape_param.shape.dim)
        if any(dim < -1 for dim in self._dims):
            raise self.error(f"shape takes extents, 0 and -1 only, got {self._dims}")
        if self._dims.count(-1) > 1:
            raise self.error(f"only one extent may be -1 (what remains), got {self._dims}")

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        start, end = self._replaced(bottom[0])
        shape, dims = bottom[0].shape, list(self._dims)
        for index, dim in enumerate(dims):
            if dim == 0:
                if start + index >= len(shape):
                    raise self.error(
                        f"extent {index} of shape {self._dims} copies axis {start + index} of the "
                        f"bottom, whose shape {shape} has none"
                    )
                dims[index] = shape[start + index]
        new = [*shape[:start], *dims, *shape[end:]]
        if -1 in dims:
            known = math.prod(extent for extent in new if extent != -1)
            new[start + dims.index(-1)] = bottom[0].count // known if known else 0
        if math.prod(new) != bottom[0].count:
            raise self.error(
                f"shape {self._dims} does not fit a bottom of shape {shape}: it would make "
                f"{tuple(new)}, {math.prod(new)} numbers instead of {bottom[0].count}"
            )
        top[0].reshape(new)
        top[0].share_data(bottom[0])

    def _replaced(self, bottom: Blob) -> tuple[int, int]:
        """Return the first replaced axis and the first one after them."""
        param, n = self.param.reshape_param, bottom.num_axes
        start = param.axis if param.axis >= 0 else n + param.axis + 1
        if not 0 <= start <= n:
            raise self.error(
                f"axis {param.axis} is out of range for a blob with {n} axes (shape "
                f"{bottom.shape}); legal are {-n - 1} to {n}"
            )
        end = n if param.num_axes == -1 else start + param.num_axes
        if not start <= end <= n:
            raise self.error(
                f"num_axes {param.num_axes} from axis {start} on does not fit shape {bottom.shape}"
            )
        return start, end


@register("Tile")
class Tile(Layer):
    """The blob repeated ``tiles`` times along ``axis`` (1): [a b] becomes [a b a b].

    Bottoms: x, any shape. Tops: y. Backward sums over the copies.
    Reference: Caffe's TileLayer.

    Example:
        layer { name: "tile" type: "Tile" bottom: "features" top: "tiled" tile_param { tiles: 4 } }
    """

    bottoms = (1, 1)
    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.tiles = self.param.tile_param.tiles
        if self.tiles < 1:
            raise self.error("tiles must be given and at least 1")

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        axis, shape = self.canonical_axis(self.param.tile_param.axis, bottom[0]), bottom[0].shape
        top[0].reshape(*shape[:axis], self.tiles * shape[axis], *shape[axis + 1 :])
        outer, extent, inner = outer_axis_inner(shape, axis)
        self._extents = (outer, extent * inner)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._copies(top[0].data)[...] = bottom[0].data.reshape(self._extents)[:, None]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dx = bottom[0].diff.reshape(self._extents)
            self._copies(top[0].diff).sum(axis=1, out=dx)

    def _copies(self, array: Array) -> Array:
        outer, block = self._extents
        return array.reshape(outer, self.tiles, block)


@register("Crop")
class Crop(Layer):
    """Bottom 0 cut to bottom 1's size from ``axis`` (2) on, starting at ``offset``.

    ``offset``: none for 0, one for every cropped axis, or one each. Backward writes 0 around
    the cut; bottom 1 gives its shape only and gets no gradient.

    Bottoms: x, the blob whose size is wanted. Tops: y.
    Reference: Caffe's CropLayer.

    Example:
        layer { name: "crop" type: "Crop" bottom: "upscore" bottom: "pool3" top: "score"
            crop_param { axis: 2 offset: 1 } }

    Attributes:
        part: the index of the cut in bottom 0, known after ``reshape``.
    """

    bottoms = (2, 2)
    tops = (1, 1)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape, wanted = bottom[0].shape, bottom[1].shape
        axis = self.canonical_axis(self.param.crop_param.axis, bottom[0])
        if len(wanted) < len(shape):
            raise self.error(f"bottom 1 of shape {wanted} has fewer axes than bottom 0, {shape}")
        cropped = range(axis, len(shape))
        part = [slice(None)] * axis
        for offset, index in zip(self._offsets(len(cropped)), cropped, strict=True):
            if offset + wanted[index] > shape[index]:
                raise self.error(
                    f"cannot take {wanted[index]} from offset {offset} along axis {index} of a "
                    f"bottom of shape {shape}"
                )
            part.append(slice(offset, offset + wanted[index]))
        self.part = tuple(part)
        top[0].reshape(*shape[:axis], *wanted[axis : len(shape)])

    def _offsets(self, count: int) -> list[int]:
        offsets = list(self.param.crop_param.offset) or [0]
        if len(offsets) == 1:
            return offsets * count
        if len(offsets) != count:
            raise self.error(
                f"offset must be given once or once per cropped axis ({count}), "
                f"got {len(offsets)} values"
            )
        return offsets

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].data[...] = bottom[0].data[self.part]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dx = bottom[0].diff
            dx[...] = 0
            dx[self.part] = top[0].diff
