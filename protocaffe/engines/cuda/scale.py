"""Scale and Bias on the device, and what they share with BatchNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.forms import Form
from protocaffe.engines.cuda.overrides import AnyLayer, Override, override
from protocaffe.engines.cuda.sums import Slicing, add_channel_sums, slice_channels
from protocaffe.layers import Layer
from protocaffe.layers.activation import ReLU
from protocaffe.layers.scale import Bias, Scale


def is_per_channel(node: LayerNode[Any]) -> bool:
    """Whether a Scale or Bias has one learned number per channel."""
    layer = node.layer
    return len(node.bottoms) == 1 and layer.axis == 1 and layer.num_axes == 1


class ChannelAffine(Override[AnyLayer]):
    """``y = (x - middle) factor + shift`` per channel, and perhaps the ReLU behind.

    Backward works from x, not from y: x is still in the bottom, and only where it is overwritten
    it costs a copy, as much as keeping what is normalized always would. It tells by the same
    arithmetic what the ReLU let through, so that y is not read.

    Attributes:
        form: how bottom and top lie.
        shape: images, channels and further axes.
        middle: one for each channel, as the last forward used it.
        inverse: what gamma multiplies is ``(x - middle) inverse``.
    """

    follows_batch = False
    """Whether middle and factor depend on x, so that dx depends on sums."""

    def __init__(self, device: Device, node: LayerNode[AnyLayer]) -> None:
        super().__init__(device, node)
        self.form = self.top_form(device, node)
        self.shape = node.bottoms[0].shape
        self._ones = self.xp.ones(self.shape[1], np.float32)
        self._zeros = self.xp.zeros(self.shape[1], np.float32)
        self.middle, self.inverse = self._zeros, self._ones
        self._node = node
        self._gamma: Blob | None = None
        self._beta: Blob | None = None
        self._owner: Layer = node.layer
        self._last: Layer = node.layer
        self._slope = 1.0  # no ReLU
        self._in_place = node.tops[0] is node.bottoms[0]
        self._overwritten = self._in_place
        self._kept: Any = None

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[AnyLayer]) -> Form:
        return device.image_form(node.bottoms[0])

    def look_ahead(self, later: Sequence[LayerNode[Layer]]) -> None:
        storage = self._node.bottoms[0].data_storage
        for node in [] if self._in_place else later:
            in_place = [top for top in node.tops if any(top is each for each in node.bottoms)]
            self._overwritten |= any(top.data_storage is storage for top in in_place)

    def absorb(self, node: LayerNode[Any]) -> bool:
        layer = node.layer
        if type(layer) is not ReLU or not self.may_absorb(node):
            return False
        self._slope, self._last = float(layer.negative_slope), layer
        return True

    def may_absorb(self, node: LayerNode[Any]) -> bool:
        """Whether anything can be absorbed any more."""
        wired = not node.needs_backward or all(node.propagate_down)
        return wired and self._slope == 1 and not any(self._last.loss_weights)

    def learn(self, layer: Scale | Bias) -> None:
        """Take a layer's parameters for factor and shift."""
        self._owner = self._last = layer
        if isinstance(layer, Scale):
            self._gamma = layer.blobs[0]
        if isinstance(layer, Bias) or layer.bias_term:
            self._beta = layer.blobs[-1]

    def gamma(self) -> Any:
        """Return the learned factors, or ones."""
        return self._ones if self._gamma is None else self._gamma.data

    def factor(self) -> Any:
        """Return what ``x - middle`` is multiplied by; the same in both passes."""
        return self.gamma()

    def measure(self, x: Any) -> None:
        """Set middle, inverse and factor, if they are not always the same."""

    def _constants(self) -> tuple[Any, Any, Any]:
        beta = self._zeros if self._beta is None else self._beta.data
        return self.middle, self.factor(), beta

    @property
    def count(self) -> int:
        """How many numbers a channel has."""
        return self.shape[0] * math.prod(self.shape[2:])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self.form), self.data(top[0], self.form)
        self.measure(x)
        keeps = self._overwritten and self._node.needs_backward and self._needs_x
        if keeps and self._kept is None:
            self._kept = self.xp.empty_like(x)
        kept = self._kept if keeps else y
        settings = (*self._constants(), self._slope, *self._walk)
        self.device.run_wide("channel_affine", x.size, x, y, kept, keeps, *settings)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        wanted, dy = propagate_down[0], self.diff(top[0], self.form)
        x = self._x(bottom[0]) if self._needs_x else dy
        dx = self.diff(bottom[0], self.form, overwrites=True) if wanted else dy
        means = (self._zeros, self._zeros)
        # What Scale and ReLU would leave in the diff that they work in, unless dx comes there.
        leaves = self._last is not self.layer and not (self._in_place and wanted)
        if self.follows_batch or (self._needs_x and self._wants(self._gamma, self._beta)):
            at_once = wanted and not (self.follows_batch or leaves)
            sums = self._add_up(dy, x, dx, at_once)
            means = sums if self.follows_batch else means
            wanted = wanted and not at_once
        elif self._wants(self._beta):
            assert self._beta is not None
            diff, factor = self._beta.diff, self.unscale(self.form)
            add_channel_sums(self.device, dy, self.shape, self.form, diff, factor)
        if wanted or leaves:
            self._pull(dy, x, dx, means, leaves)

    def _x(self, bottom: Blob) -> Any:
        return self._kept if self._overwritten else self.data(bottom, self.form)

    @property
    def _needs_x(self) -> bool:
        return self.follows_batch or self._wants(self._gamma) or self._slope != 1

    def _wants(self, *blobs: Blob | None) -> bool:
        wanted = zip(self._owner.blobs, self._owner.param_propagate_down, strict=True)
        return any(want and any(blob is each for each in blobs) for blob, want in wanted)

    @property
    def _walk(self) -> tuple[int, int, int]:
        """Channels, how far apart neighbours lie, and how many numbers there are in all."""
        return self.shape[1], 1 if self.form else math.prod(self.shape[2:]), math.prod(self.shape)

    def slicing(self, x: Any) -> Slicing:
        """Return how sums over numbers like x are divided."""
        return slice_channels(self.shape, self.form is not None, x.dtype.itemsize)

    def _add_up(self, dy: Any, x: Any, dx: Any, wanted: bool) -> Any:
        """Add to the parameters' diffs; return what dx loses to the batch's statistics.

        If it is ``wanted`` dx is set on the way, to what it is by constant statistics.
        """
        slicing = self.slicing(x)
        parts = self.xp.empty((2, slicing.channels * slicing.slices), np.float32)
        means = self.xp.empty((2, slicing.channels), np.float32)
        arrays = (dy, x, dx, wanted, *self._constants(), self._slope, *parts)
        self.device.run_blocks("affine_sums", slicing.blocks, *arrays, *slicing.extents)
        diffs: list[Any] = [self.unscale(self.form)]
        for blob in (self._gamma, self._beta):
            learns = self._wants(blob)
            diffs += [learns, blob.diff if learns and blob is not None else self._zeros]
        settings = (slicing.slices, self.count, self.inverse)
        self.device.run_blocks(
            "affine_gradients", slicing.channels, *parts, *settings, *means, *diffs
        )
        return means

    def _pull(self, dy: Any, x: Any, dx: Any, means: Any, leaves: bool) -> None:
        """Set dx; then, if it ``leaves`` something, dy to what Scale and ReLU would leave there."""
        if leaves or self._slope != 1 or self.follows_batch:
            left_factor = self._ones if self._owner is self.layer else self.gamma()
            settings = (*self._constants(), left_factor, *means, self._slope, *self._walk)
            self.device.run_wide("affine_backward", dy.size, dy, x, dx, dy, leaves, *settings)
        elif not (self._in_place and self.factor() is self._ones):
            settings = (self._zeros, self.factor(), self._zeros, 1.0, *self._walk)
            self.device.run_wide("channel_affine", dy.size, dy, dx, dx, False, *settings)


@override(Scale, Bias)
class CudaScale(ChannelAffine[Scale | Bias]):
    """A learned factor or shift per channel, or both, and the ReLU behind."""

    def __init__(self, device: Device, node: LayerNode[Scale | Bias]) -> None:
        super().__init__(device, node)
        self.learn(node.layer)

    @classmethod
    def fits(cls, device: Device, node: LayerNode[Scale | Bias]) -> bool:
        return is_per_channel(node)
