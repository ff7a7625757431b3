"""Layers that put the same numbers in another order: Permute, ShuffleChannel, Reorg."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocaffe.blob import Blob
from protocaffe.layers.base import Layer, register

Extents = tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """What is done to an array.

    Attributes:
        view: the shape in which its axes are moved.
        axes: which of these axes comes first, second, ...
        result: the shape of the result.
    """

    view: Extents
    axes: Extents
    result: Extents


class Rearrangement(Layer):
    """A layer that views its bottom in a shape, moves axes, and views the result in another."""

    bottoms = (1, 1)
    tops = (1, 1)

    def order(self, shape: Extents) -> Order:
        """Return what to do to a bottom of this shape."""
        raise NotImplementedError

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._order = order = self.order(bottom[0].shape)
        self._moved = tuple(order.view[axis] for axis in order.axes)
        self._back = tuple(order.axes.index(axis) for axis in range(len(order.axes)))
        top[0].reshape(order.result)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x = bottom[0].data.reshape(self._order.view)
        top[0].data.reshape(self._moved)[...] = x.transpose(self._order.axes)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            dy = top[0].diff.reshape(self._moved)
            bottom[0].diff.reshape(self._order.view)[...] = dy.transpose(self._back)


@register("Permute")
class Permute(Rearrangement):
    """Axis i of y is axis ``order[i]`` of x; axes that ``order`` leaves out follow as they come.

    Bottoms: x, any shape. Tops: y, the same extents in another order.
    Reference: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016; PermuteLayer of its
    fork of Caffe.

    Example:
        layer { name: "mbox_loc_perm" type: "Permute" bottom: "mbox_loc" top: "mbox_loc_perm"
            permute_param { order: 0 order: 2 order: 3 order: 1 } }
    """

    def order(self, shape: Extents) -> Order:
        given = list(self.param.permute_param.order)
        if len(set(given)) < len(given) or any(axis >= len(shape) for axis in given):
            raise self.error(
                f"order must name axes 0 to {len(shape) - 1} of a bottom of shape {shape}, each "
                f"once at most; got {', '.join(str(axis) for axis in given)}"
            )
        axes = (*given, *(axis for axis in range(len(shape)) if axis not in given))
        return Order(shape, axes, tuple(shape[axis] for axis in axes))


@register("ShuffleChannel")
class ShuffleChannel(Rearrangement):
    """The first channel of every group, then the second of every group, and so on.

    y[j * group + i] = x[i * (C / group) + j] along the channels.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Reference: Zhang et al., "ShuffleNet", CVPR 2018; ShuffleChannelLayer of its ports to Caffe.

    Example:
        layer { name: "shuffle" type: "ShuffleChannel" bottom: "conv1" top: "shuffle"
            shuffle_channel_param { group: 3 } }
    """

    def order(self, shape: Extents) -> Order:
        group = self.param.shuffle_channel_param.group
        if len(shape) < 2:
            raise self.error(f"needs a bottom (N, C, ...), got shape {shape}")
        if group < 1 or shape[1] % group:
            raise self.error(f"group {group} does not divide the bottom's {shape[1]} channels")
        view = (shape[0], group, shape[1] // group, math.prod(shape[2:]))
        return Order(view, (0, 2, 1, 3), shape)


@register("Reorg")
class Reorg(Rearrangement):
    """Blocks of stride x stride pixels as channels, or with ``reverse`` channels as blocks.

    In darknet's order: the numbers of x are taken for an image (C / s^2, H s, W s), and pixel
    (i s + a, j s + b) of its channel c goes to place (i, j) of plane (a s + b) C / s^2 + c, the
    planes being H x W; what comes out is then taken for (C s^2, H / s, W / s). ``reverse`` takes
    planes as they are: channel (a s + b) C / s^2 + c goes to (i s + a, j s + b) of channel c.

    Bottoms: x (N, C, H, W). Tops: y (N, C s^2, H / s, W / s); reversed (N, C / s^2, H s, W s).
    Reference: Redmon & Farhadi, "YOLO9000", CVPR 2017 (reorg_cpu of darknet); ReorgLayer of
    YOLOv2's ports to Caffe. Their backward passes are not the gradient; this one is.

    Example:
        layer { name: "reorg" type: "Reorg" bottom: "conv21" top: "reorg"
            reorg_param { stride: 2 } }
    """

    def order(self, shape: Extents) -> Order:
        if len(shape) != 4:
            raise self.error(f"the bottom must have 4 axes (N, C, H, W), got shape {shape}")
        param = self.param.reorg_param
        n, c, h, w = shape
        s = param.stride
        if s < 1:
            raise self.error("stride is missing; it is the side of a block, at least 1")
        if c % s**2:
            raise self.error(f"stride {s} needs a multiple of {s**2} channels, got shape {shape}")
        if param.reverse:
            blocks = (n, s, s, c // s**2, h, w)
            return Order(blocks, (0, 3, 4, 1, 5, 2), (n, c // s**2, h * s, w * s))
        if h % s or w % s:
            raise self.error(f"stride {s} does not divide the height and width of {shape}")
        image = (n, c // s**2, h, s, w, s)
        return Order(image, (0, 3, 5, 1, 2, 4), (n, c * s**2, h // s, w // s))
