"""InnerProduct on the device: cuBLAS, with gradients added where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.forms import ChannelsLast, Form
from protocaffe.engines.cuda.overrides import Override, override, telling_slope
from protocaffe.layers.inner_product import InnerProduct

SPAN = 256
"""Rows of a gradient that one block adds up."""

TILE = 32
"""Columns of it that one block has."""


@override(InnerProduct)
class CudaInnerProduct(Override[InnerProduct]):
    """One matrix product per array that is computed, and one kernel behind or before it.

    Where the precision has 16 bits, x, the weights and dy are rounded to them. Products are added
    up in float32; tops and the gradients of parameters are float32.
    """

    def __init__(self, device: Device, node: LayerNode[InnerProduct]) -> None:
        super().__init__(device, node)
        layer, bottom = node.layer, node.bottoms[0]
        self._slope: float | None = None
        self._columns = layer.num_output
        self._rows = node.tops[0].count // self._columns
        self._x_form = _in_one_order(device.form(bottom.data_storage))
        self._dx_form = _in_one_order(device.form(bottom.diff_storage))
        self._sums = self.xp.empty((-(-self._rows // SPAN), self._columns), np.float32)
        # What forward has rounded and backward multiplies by again.
        self._kept_x = self._kept_weights = None
        if device.precision.is_half and node.needs_backward:
            if layer.param_propagate_down[0] and self._x_form is None:
                self._kept_x = device.empty(_in_a_row(bottom.count))
            if node.propagate_down[0]:
                self._kept_weights = device.empty(_in_a_row(layer.blobs[0].count))

    def absorb(self, node: LayerNode[Any]) -> bool:
        slope = telling_slope(node.layer)
        if self._slope is not None or slope is None:
            return False
        self._slope = slope
        return True

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        layer, y = self.layer, top[0].data
        if self._x_form is None:
            x = self._round(bottom[0].data, self._kept_x)
        else:
            x = self.data(bottom[0], self._x_form)
        weights = self._round(layer.blobs[0].data, self._kept_weights)
        weights = weights if layer.transpose else weights.T
        self.device.gemm(x.reshape(-1, layer.num_input), weights, y.reshape(-1, self._columns))
        bias = layer.blobs[1].data if layer.bias_term else None
        if bias is not None:
            slope = 1.0 if self._slope is None else self._slope
            self.device.run_wide("add_bias_relu", y.size, y, bias, slope, bias.size, 1, y.size)
        elif self._slope is not None:
            self.device.run_wide("relu_forward", y.size, y, y, self._slope, y.size)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        layer, unscale = self.layer, 1 / self.device.precision.diff_scale
        dy = self._gradient(top[0]).reshape(-1, self._columns)
        if layer.param_propagate_down[0]:
            x = self.data(bottom[0], self._x_form) if self._kept_x is None else self._kept_x
            x = x.reshape(-1, layer.num_input)
            a, b = (x.T, dy) if layer.transpose else (dy.T, x)
            self.device.gemm(a, b, layer.blobs[0].diff, add=True, factor=unscale)
        if propagate_down[0]:
            weights = layer.blobs[0].data
            if self._kept_weights is not None:
                weights = self._kept_weights.reshape(weights.shape)
            weights = weights.T if layer.transpose else weights
            dx = self.diff(bottom[0], self._dx_form, overwrites=True)
            dx = dx.reshape(-1, layer.num_input)
            self.device.gemm(dy, weights, dx, factor=1.0 if self._dx_form else unscale)

    def _round(self, plain: Any, kept: Any) -> Any:
        """Return numbers as they are multiplied, in ``kept`` if there is such."""
        if not self.device.precision.is_half:
            return plain
        form = _in_a_row(plain.size)
        rounded = self.device.empty(form) if kept is None else kept
        self.device.pack(plain, rounded, form)
        return rounded.reshape(plain.shape)

    def _gradient(self, top: Blob) -> Any:
        """Return dy as it is multiplied, behind the ReLU, and add up that of the bias."""
        layer, device, dy = self.layer, self.device, top.diff
        adds = layer.bias_term and layer.param_propagate_down[1]
        packs, rectified = device.precision.is_half, self._slope is not None
        if not (adds or packs or rectified):
            return dy
        in_one = adds and len(self._sums) == 1
        sums = layer.blobs[1].diff if in_one else self._sums
        packed = device.empty(_in_a_row(dy.size)) if packs else dy
        tiles = -(-self._columns // TILE)
        factors = (self._slope or 0.0, device.precision.diff_scale)
        settings = (*factors, rectified, packs, in_one, self._rows, SPAN, self._columns)
        arrays = (top.data if rectified else dy, dy, packed, sums)
        device.run_blocks("inner_product_gradient", tiles * len(self._sums), *arrays, *settings)
        if adds and not in_one:
            arrays, spans = (sums, sums, sums, layer.blobs[1].diff), len(sums)
            settings = (0.0, 1.0, False, False, True, spans, spans, self._columns)
            device.run_blocks("inner_product_gradient", tiles, *arrays, *settings)
        return packed


def _in_a_row(count: int) -> ChannelsLast:
    """The form in which numbers are rounded and keep their order."""
    return ChannelsLast(1, 1, count)


def _in_one_order(form: Form) -> Form:
    """A form whose order is Caffe's, too; else None."""
    return form if form is not None and form.is_in_order else None
