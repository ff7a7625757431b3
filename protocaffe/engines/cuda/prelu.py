"""PReLU on the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.forms import Form
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.engines.cuda.sums import add_sums
from protocaffe.layers.activation import PReLU


@override(PReLU)
class CudaPReLU(Override[PReLU]):
    """One kernel per pass, and one that merges sums; in place, x is kept."""

    def __init__(self, device: Device, node: LayerNode[PReLU]) -> None:
        super().__init__(device, node)
        shape = node.bottoms[0].shape
        self._form = self.top_form(device, node)
        # One slope for all: one channel of one image.
        self._shape = (1, 1, math.prod(shape)) if node.layer.channel_shared else shape
        self._last = self._form if not node.layer.channel_shared else None
        self._keeps = node.tops[0] is node.bottoms[0] and node.needs_backward
        self._kept: Any = None
        self._unwanted = self.xp.zeros(self._shape[1], np.float32)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[PReLU]) -> Form:
        return device.image_form(node.bottoms[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = self.data(bottom[0], self._form), self.data(top[0], self._form)
        if self._keeps and self._kept is None:
            self._kept = self.xp.empty_like(x)
        kept = self._kept if self._keeps else y
        inner = 1 if self._last else math.prod(self._shape[2:])
        settings = (self.layer.blobs[0].data, self._shape[1], inner, x.size)
        self.device.run_wide("prelu_forward", x.size, x, y, kept, self._keeps, *settings)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        wanted, slope = propagate_down[0], self.layer.blobs[0]
        x = self._kept if self._keeps else self.data(bottom[0], self._form)
        dy = self.diff(top[0], self._form)
        dx = self.diff(bottom[0], self._form, overwrites=True) if wanted else dy
        diff = slope.diff if self.layer.param_propagate_down[0] else self._unwanted
        factor = self.unscale(self._form)
        arguments = (dy, x, dx, wanted, slope.data)
        add_sums(self.device, "prelu_backward", arguments, self._shape, self._last, (diff, factor))
