"""The oneDNN engine: fast kernels for the hot layers, blocked memory, one-pass updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from protocaffe.blob import Array, Storage, Truth
from protocaffe.engines.base import Engine, LayerNode, MomentumUpdate, Plan
from protocaffe.engines.onednn import (
    activation,
    convolution,
    deconvolution,
    elementwise,
    inner_product,
    normalization,
    pooling,
)
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import (
    Attributes,
    Layout,
    NativeArray,
    OneDnnError,
    Primitive,
    Runtime,
    operation,
)
from protocaffe.layers import Layer

KERNEL_MODULES = (
    activation,
    convolution,
    deconvolution,
    elementwise,
    inner_product,
    normalization,
    pooling,
)
"""Importing them registers their kernels."""


class OneDnnEngine(Engine):
    """The CPU engine over oneDNN.

    Raises:
        UnavailableError: the library is not installed, or of another version.
    """

    name: ClassVar[str] = "onednn"

    def __init__(self) -> None:
        self.runtime = Runtime()

    def plan(self, nodes: Sequence[LayerNode[Layer]]) -> Plan:
        """Bind a net's work to primitives; float64 nets run the layers' own code."""
        return OneDnnPlan(self.runtime, nodes)

    def flat_views(self, leader: Storage, *followers: Storage) -> list[Array]:
        """Return flat arrays in the leader's own layout (see :meth:`Engine.flat_views`)."""
        native = leader.native
        if not isinstance(native, NativeArray) or native.host_view() is not None:
            return super().flat_views(leader, *followers)
        views = []
        for storage in (leader, *followers):
            array = storage.native
            if not isinstance(array, NativeArray) or array.layout != native.layout:
                storage.bind(NativeArray(native.layout))
            views.append(storage.native_read().values)
            storage.truth = Truth.NATIVE
        return views

    def momentum_update(
        self, weight: Storage, diff: Storage, history: Storage, momentum: float
    ) -> MomentumUpdate:
        """Two element-wise primitives over all three arrays, whatever their layout."""
        if weight.dtype != np.float32 or weight.count < SMALL:
            return super().momentum_update(weight, diff, history, momentum)
        return OneDnnMomentumUpdate(self, weight, diff, history, momentum)


class OneDnnMomentumUpdate(MomentumUpdate):
    """The momentum update as ``add`` and ``subtract`` primitives, bound at the first call."""

    def __init__(
        self,
        engine: OneDnnEngine,
        weight: Storage,
        diff: Storage,
        history: Storage,
        momentum: float,
    ) -> None:
        self._engine: OneDnnEngine = engine
        self._storages = (weight, diff, history)
        self._factor = momentum
        self._views: list[Array] = []
        self._passes: list[Primitive] = []
        plain = Layout.plain(engine.runtime, (1,))
        self._gradient_scale, self._weight_scale = NativeArray(plain), NativeArray(plain)

    def __call__(self, gradient_scale: float, weight_scale: float) -> None:
        """Update the parameter once."""
        views = self._engine.flat_views(*self._storages)
        bound = len(self._views) == len(views)
        if not bound or any(a is not b for a, b in zip(self._views, views, strict=True)):
            self._bind(views)
        self._gradient_scale.values[0] = gradient_scale
        self._weight_scale.values[0] = weight_scale
        for primitive in self._passes:
            primitive()

    def _bind(self, views: list[Array]) -> None:
        self._views = views
        self._passes = []
        blend = Attributes(self._engine.runtime).accumulate(self._factor)
        blend.runtime_scales(dnn.ARG_SRC).runtime_scales(dnn.ARG_SRC_1)
        scales = {
            dnn.ARG_ATTR_SCALES | dnn.ARG_SRC: self._weight_scale,
            dnn.ARG_ATTR_SCALES | dnn.ARG_SRC_1: self._gradient_scale,
        }
        for start in range(0, views[0].size, UPDATE_CHUNK):
            parts = [view[start : start + UPDATE_CHUNK] for view in views]
            layout = Layout.plain(self._engine.runtime, (parts[0].size,))
            w, g, h = (NativeArray(layout, part) for part in parts)
            add = {dnn.ARG_SRC: w, dnn.ARG_SRC_1: g, dnn.ARG_DST: h, **scales}
            subtract = {dnn.ARG_SRC: w, dnn.ARG_SRC_1: h, dnn.ARG_DST: w}
            self._passes.append(_elementwise(layout, dnn.BINARY_ADD, blend, add))
            self._passes.append(_elementwise(layout, dnn.BINARY_SUB, None, subtract))


def _elementwise(
    layout: Layout, kind: int, attributes: Attributes | None, arrays: dict[int, NativeArray]
) -> Primitive:
    made = operation(layout.runtime, "binary", kind, layout, layout, layout, attributes)
    if made is None:
        raise OneDnnError("no implementation of element-wise addition")
    return Primitive(made, arrays)


SMALL = 1 << 14
"""Below this, waking the worker threads costs more than the update."""

UPDATE_CHUNK = 1 << 19
"""Floats per pass: weight, gradient and history of one chunk stay in the third-level cache."""
