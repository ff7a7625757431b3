"""The oneDNN engine: fast kernels for the hot layers, blocked memory, one-pass updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from protocaffe.blob import Array, Storage
from protocaffe.engines.base import (
    AdamSettings,
    AdamUpdate,
    Engine,
    LayerNode,
    MomentumUpdate,
    Plan,
)
from protocaffe.engines.onednn import (
    activation,
    convolution,
    deconvolution,
    elementwise,
    inner_product,
    normalization,
    pooling,
    scaled,
)
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.primitives import NativeArray, Runtime
from protocaffe.engines.onednn.update import SMALL, OneDnnAdamUpdate, OneDnnMomentumUpdate
from protocaffe.layers import Layer

KERNEL_MODULES = (
    activation,
    convolution,
    deconvolution,
    elementwise,
    inner_product,
    normalization,
    pooling,
    scaled,
)
"""Importing them registers their kernels."""


class OneDnnEngine(Engine):
    """The CPU engine over oneDNN.

    Args:
        dtype: the type of activations and their gradients, ``F32`` or ``BF16``; weights, their
            gradients and all sums are float32 either way.

    Raises:
        UnavailableError: the library is not installed, or of another version.
    """

    name: ClassVar[str] = "onednn"

    def __init__(self, dtype: int = dnn.F32) -> None:
        self.runtime = Runtime()
        self.dtype = dtype

    @property
    def has_bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 numbers."""
        isa = int(self.runtime.library.dnnl_get_effective_cpu_isa())
        return isa & dnn.ISA_AVX512_BF16 == dnn.ISA_AVX512_BF16

    def plan(
        self, nodes: Sequence[LayerNode[Layer]], fuse: bool = True, reuse_memory: bool = False
    ) -> Plan:
        """Bind a net's work to primitives; float64 nets run the layers' own code."""
        return OneDnnPlan(self.runtime, nodes, fuse, self.dtype, reuse_memory and fuse)

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
            views.append(storage.native_write().values)
        return views

    def momentum_update(
        self, weight: Storage, diff: Storage, history: Storage, momentum: float
    ) -> MomentumUpdate:
        """Two element-wise primitives over all three arrays, whatever their layout."""
        if weight.dtype != np.float32 or weight.count < SMALL:
            return super().momentum_update(weight, diff, history, momentum)
        return OneDnnMomentumUpdate(self, weight, diff, history, momentum)

    def adam_update(
        self, weight: Storage, diff: Storage, means: tuple[Storage, Storage], settings: AdamSettings
    ) -> AdamUpdate | None:
        """Four element-wise primitives over all four arrays, whatever their layout."""
        if weight.dtype != np.float32 or weight.count < SMALL or settings.delta <= 0:
            return None
        return OneDnnAdamUpdate(self, weight, diff, means, settings)
