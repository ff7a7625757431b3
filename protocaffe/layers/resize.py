"""Layers that give images another size: Interp and the two kinds of Upsample."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import whole_numbers
from protocaffe.proto.caffe_pb2 import InterpParameter, LayerParameter

Pair = tuple[int, int]


class ImageLayer(Layer):
    """A layer over images of other extents than its top's."""

    bottoms = (1, 1)
    tops = (1, 1)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        top[0].reshape(*shape[:2], *self.extents(shape[2], shape[3]))

    def extents(self, height: int, width: int) -> Pair:
        """Return the top's height and width."""
        raise NotImplementedError


@register("Interp")
class Interp(ImageLayer):
    """Bilinear resizing, with the corners of both images on each other.

    Row i of H' lies at i (H - 1) / (H' - 1) in the bottom, between two rows of it. H' and W' are
    ``height`` and ``width``, or (n - 1) ``zoom_factor`` + 1, or (n - 1) / ``shrink_factor`` + 1
    rounded down; a factor alone comes first, both factors (shrunk, then zoomed) come last.
    Negative ``pad_beg`` and ``pad_end`` cut off a border of the bottom before all that.

    Bottoms: x (N, C, H, W). Tops: y (N, C, H', W').
    Reference: Chen et al., "DeepLab", PAMI 2017; Zhao et al., "Pyramid Scene Parsing Network",
    CVPR 2017; InterpLayer of their forks of Caffe.

    Example:
        layer { name: "pool_interp" type: "Interp" bottom: "pool" top: "pool_interp"
            interp_param { height: 60 width: 60 } }

    Attributes:
        crop: the index of what is resized, known after ``reshape``.
        rows, columns: the matrices (H', H) and (W', W) that resize it.
    """

    def extents(self, height: int, width: int) -> Pair:
        param = self.param.interp_param
        if param.pad_beg > 0 or param.pad_end > 0:
            raise self.error(
                f"pad_beg and pad_end cut off pixels and are 0 or negative; "
                f"got {param.pad_beg} and {param.pad_end}"
            )
        rows, columns = (slice(-param.pad_beg, n + param.pad_end) for n in (height, width))
        self.crop = (slice(None), slice(None), rows, columns)
        cropped = [n + param.pad_beg + param.pad_end for n in (height, width)]
        if min(cropped) < 1:
            raise self.error(f"pad_beg and pad_end leave nothing of {height} x {width} pixels")
        output = self._output(param, cropped[0], cropped[1])
        self.rows, self.columns = (
            self.xp.asarray(_weights(source, target, self.dtype))
            for source, target in zip(cropped, output, strict=True)
        )
        return output

    def _output(self, param: InterpParameter, height: int, width: int) -> Pair:
        zooms, shrinks = param.HasField("zoom_factor"), param.HasField("shrink_factor")
        sized = param.HasField("height") and param.HasField("width")
        if not (zooms or shrinks or sized):
            raise self.error("give height and width, or zoom_factor, or shrink_factor")
        if sized and zooms == shrinks:
            if min(param.height, param.width) < 1:
                raise self.error(
                    f"height and width must be at least 1, got {param.height} and {param.width}"
                )
            return param.height, param.width
        zoom, shrink = param.zoom_factor, param.shrink_factor
        if min(zoom, shrink) < 1:
            raise self.error(f"factors must be at least 1, got zoom {zoom} and shrink {shrink}")
        return ((height - 1) // shrink * zoom + 1, (width - 1) // shrink * zoom + 1)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = bottom[0].data[self.crop]
        self.xp.matmul(self.rows @ x, self.columns.T, out=top[0].data)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            bottom[0].diff[...] = 0
            bottom[0].diff[self.crop] = (self.rows.T @ top[0].diff) @ self.columns


def _weights(source: int, target: int, dtype: np.dtype[np.floating]) -> Array:
    """Return the (target, source) matrix that resizes a column; float32 places, as in Caffe."""
    scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    places = scale * np.arange(target, dtype=np.float32)
    low = np.minimum(places.astype(int), source - 1)
    share = places - low
    matrix = np.zeros((target, source), dtype)
    rows = np.arange(target)
    matrix[rows, low] = 1 - share
    matrix[rows, np.minimum(low + 1, source - 1)] += share
    return matrix


@register("Upsample")
class Upsample(ImageLayer):
    """Larger images, in one of two ways that forks of Caffe have under this name.

    With one bottom, as in YOLOv3: every pixel becomes scale x scale pixels (``scale`` 1);
    backward sums them up. With two, as in SegNet: every number goes to the place in its plane
    that the second bottom names, the second top of a Pooling layer, and 0 to all others. Then the
    size is ``upsample_h`` x ``upsample_w``, or ``scale`` (2), or ``scale_h`` and ``scale_w``,
    times the bottom's, less one row with ``pad_out_h`` and one column with ``pad_out_w``. The
    places have gradient 0.

    Bottoms: x (N, C, H, W); optionally the place h W' + w of every number. Tops: y (N, C, H', W').
    Reference: Redmon & Farhadi, "YOLOv3", 2018; Badrinarayanan et al., "SegNet", PAMI 2017;
    UpsampleLayer of MobileNet-YOLO and of SegNet's fork of Caffe.

    Example:
        layer { name: "upsample" type: "Upsample" bottom: "conv59" top: "upsample"
            upsample_param { scale: 2 } }
    """

    bottoms = (1, 2)

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        return Unpool if len(param.bottom) == 2 else cls

    def extents(self, height: int, width: int) -> Pair:
        param = self.param.upsample_param
        self.scale = param.scale if param.HasField("scale") else 1
        if self.scale < 1:
            raise self.error("scale must be at least 1, got 0")
        return height * self.scale, width * self.scale

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._blocks(top[0].data)[...] = bottom[0].data[..., :, None, :, None]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            self.xp.sum(self._blocks(top[0].diff), axis=(3, 5), out=bottom[0].diff)

    def _blocks(self, image: Array) -> Array:
        """View the top as (N, C, H, scale, W, scale)."""
        n, c, height, width = image.shape
        s = self.scale
        return image.reshape(n, c, height // s, s, width // s, s)


class Unpool(ImageLayer):
    """SegNet's kind of :class:`Upsample`, with the places of the maxima as bottom 1."""

    bottoms = (2, 2)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        if bottom[1].shape != bottom[0].shape:
            raise self.error(
                f"needs one place for every number; the bottoms have shapes {bottom[0].shape} "
                f"and {bottom[1].shape}"
            )

    def extents(self, height: int, width: int) -> Pair:
        param = self.param.upsample_param
        if param.HasField("upsample_h") and param.HasField("upsample_w"):
            return param.upsample_h, param.upsample_w
        scales = [param.scale if param.HasField("scale") else 2] * 2
        if param.HasField("scale_h") or param.HasField("scale_w"):
            if param.HasField("scale"):
                raise self.error("give either scale or scale_h and scale_w, not both")
            scales = [param.scale_h, param.scale_w]
        if min(scales) < 2:
            raise self.error(f"scales must be at least 2, got {scales[0]} and {scales[1]}")
        for scale, cut in zip(scales, (param.pad_out_h, param.pad_out_w), strict=True):
            if cut and scale != 2:
                raise self.error(f"pad_out_h and pad_out_w need scale 2, got {scale}")
        return height * scales[0] - param.pad_out_h, width * scales[1] - param.pad_out_w

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        y = top[0].data.reshape(-1, top[0].shape[2] * top[0].shape[3])
        places = bottom[1].data.reshape(len(y), -1)
        self._index, _ = whole_numbers(self, places, y.shape[1], what="place")
        y[...] = 0
        y[self._planes(y), self._index] = bottom[0].data.reshape(places.shape)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[1]:  # whatever learns below the pooling layer asks for it
            bottom[1].diff[...] = 0
        if propagate_down[0]:
            dy = top[0].diff.reshape(-1, top[0].shape[2] * top[0].shape[3])
            dx = bottom[0].diff.reshape(self._index.shape)
            dx[...] = dy[self._planes(dy), self._index]

    def _planes(self, planes: Array) -> Array:
        numbers: Array = self.xp.arange(len(planes))[:, None]
        return numbers
