"""How coordinates of one blob lie in another: pycaffe's ``caffe.coord_map``.

Every spatial layer maps coordinates of its top to its bottom, or the other way round, by
x -> a·x + b along each axis. Composed along a net, these maps tell how to crop one blob so that
it lies on another, as fully convolutional nets do::

    n.score = crop(n.upscore, n.data)

A map is a tuple ``(axis, a, b)``: the axis before the first spatial one (None if every axis
stays as it is), scale and offset, arrays with one entry or one per spatial axis.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protocaffe.errors import NetError
from protocaffe.net_spec import Function, Top
from protocaffe.net_spec import layers as L
from protocaffe.proto.caffe_pb2 import ConvolutionParameter, LayerParameter, PoolingParameter

Array = npt.NDArray[Any]
CoordMap: TypeAlias = tuple[int | None, Any, Any]

IDENTITY: CoordMap = (None, 1, 0)

PASS_THROUGH_LAYERS = [
    *("AbsVal", "BatchNorm", "Bias", "BNLL", "Clip", "Dropout", "Eltwise", "ELU", "Exp", "Log"),
    *("LRN", "MVN", "Power", "PReLU", "ReLU", "Scale", "Sigmoid", "Split", "Swish", "TanH"),
    "Threshold",
]
"""Layer types that leave coordinates as they are."""


class UndefinedMapException(NetError):  # noqa: N818 (pycaffe's name)
    """A layer for which no map of coordinates is defined."""


class AxisMismatchException(NetError):  # noqa: N818 (pycaffe's name)
    """Two maps of different axes that should be composed."""


def conv_params(fn: Function) -> tuple[int, Array, Array, Array]:
    """Return a convolution's or pooling's axis, stride, kernel extent with dilation, and pad.

    Raises:
        UndefinedMapException: it pools globally.
    """
    layer = _message(fn)
    if fn.type_name == "Pooling":
        pooling = layer.pooling_param
        if pooling.global_pooling:
            raise UndefinedMapException(
                "a Pooling layer with global_pooling has no coordinates to map"
            )
        kernel, stride, pad = _windows(pooling, fn)
        return 1, stride, kernel, pad
    param = layer.convolution_param
    kernel, stride, pad = _windows(param, fn)
    dilation = np.array(list(param.dilation) or [1])
    return param.axis, stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, Array]:
    """Return a Crop layer's axis and offsets."""
    param = _message(fn).crop_param
    return param.axis, np.array(list(param.offset) or [0])


def coord_map(fn: Function) -> CoordMap:
    """Return how a layer maps the coordinates of its bottom to its top: (axis, scale, offset).

    Raises:
        UndefinedMapException: the layer is not spatial, or has no single map.
    """
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return IDENTITY
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset  # the axis before the first cropped one
    raise UndefinedMapException(f"coordinates do not pass a layer of type {fn.type_name}")


def compose(base_map: CoordMap, next_map: CoordMap) -> CoordMap:
    """Return the map that does ``next_map`` first and ``base_map`` then.

    Raises:
        AxisMismatchException: they are of different axes.
    """
    base_axis, base_scale, base_offset = base_map
    next_axis, next_scale, next_offset = next_map
    if None not in (base_axis, next_axis) and base_axis != next_axis:
        raise AxisMismatchException(
            f"layers on the way have their spatial axes behind axis {base_axis} and {next_axis}; "
            f"expected one and the same axis"
        )
    axis = next_axis if base_axis is None else base_axis
    return axis, base_scale * next_scale, base_scale * next_offset + base_offset


def inverse(coord_map: CoordMap) -> CoordMap:
    """Return the map in the other direction."""
    axis, scale, offset = coord_map
    return axis, 1 / scale, -offset / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> CoordMap:
    """Return the map of coordinates from one blob to another.

    Both are followed back to a blob that they have in common; of a Crop layer only the first
    bottom counts. If there are several such blobs, they are taken to be equivalent.

    Raises:
        NetError: they have none in common.
        AxisMismatchException: layers on the way have different spatial axes.
    """
    from_maps = _ancestors(top_from)
    to_maps = _ancestors(top_to)
    for top, to_map in to_maps.items():
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise NetError(
        f"no map from a top of {top_from.fn.type_name} to one of {top_to.fn.type_name}: going "
        f"back from both over spatial layers meets no common blob"
    )


def crop(top_from: Top, top_to: Top) -> Top:
    """Return a Crop layer's top: ``top_from`` cut so that it lies on ``top_to``.

    Raises:
        NetError: one pixel of the two is not the same, or the offset is no whole number of at
            least 0.
    """
    axis, scale, offset = coord_map_from_to(top_from, top_to)
    scale, offset = np.atleast_1d(scale), np.atleast_1d(offset)
    if np.any(scale != 1):
        raise NetError(
            f"cannot crop: a step in the blob to crop is {_numbers(scale)} steps in the other; "
            f"expected 1 (do strides down and up match?)"
        )
    if np.any(offset > 0) or np.any(offset != np.round(offset)):
        raise NetError(
            f"cannot crop: the offset would be {_numbers(-offset)}; expected whole numbers of at "
            f"least 0 (more padding at the first layer makes it larger)"
        )
    offsets = [int(-each) for each in offset]
    first = 2 if axis is None else axis + 1
    top: Top = L.Crop(top_from, top_to, crop_param={"axis": first, "offset": offsets})
    return top


def _message(fn: Function) -> LayerParameter:
    return fn.to_layer("", [], [])


def _windows(
    param: ConvolutionParameter | PoolingParameter, fn: Function
) -> tuple[Array, Array, Array]:
    """Return kernel, stride and pad, given once, once per axis, or as ``*_h`` and ``*_w``."""
    kernel = _per_axis(param, "kernel_size", "kernel", 0)
    if not kernel.all():
        raise NetError(f"a {fn.type_name} layer has no kernel_size, so it maps no coordinates")
    return kernel, _per_axis(param, "stride", "stride", 1), _per_axis(param, "pad", "pad", 0)


def _per_axis(
    param: ConvolutionParameter | PoolingParameter, field: str, stem: str, default: int
) -> Array:
    if param.HasField(f"{stem}_h") or param.HasField(f"{stem}_w"):
        return np.array([getattr(param, f"{stem}_h"), getattr(param, f"{stem}_w")])
    values = np.atleast_1d(getattr(param, field))
    return values if values.size else np.array([default])


def _ancestors(top: Top) -> dict[Top, CoordMap]:
    """Return the blobs that a blob was made from over spatial layers, and the maps from them."""
    maps = {top: IDENTITY}
    waiting = [top]
    while waiting:
        each = waiting.pop()
        bottoms = each.fn.inputs[: 1 if each.fn.type_name == "Crop" else None]
        try:
            step = coord_map(each.fn) if bottoms else IDENTITY
        except UndefinedMapException:
            continue
        for bottom in bottoms:
            if bottom not in maps:
                maps[bottom] = compose(maps[each], step)
                waiting.append(bottom)
    return maps


def _numbers(values: Array) -> str:
    return " x ".join(f"{value:g}" for value in values)
