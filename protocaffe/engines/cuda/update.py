"""The update of all parameters in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Blob, Storage
from protocaffe.engines.base import WholeUpdate
from protocaffe.engines.cuda.device import BLOCK, Device, DeviceArray, Group
from protocaffe.proto.caffe_pb2 import SolverParameter

RULES = {
    "SGD": ("momentum",),
    "Nesterov": ("momentum",),
    "AdaGrad": ("delta",),
    "RMSProp": ("rms_decay", "delta"),
    "AdaDelta": ("momentum", "delta"),
    "Adam": ("momentum", "momentum2", "delta"),
}
"""The update rules with a kernel, and the solver's fields that it takes."""

PER_THREAD = 4
"""Numbers that a thread updates."""


class CudaUpdate(WholeUpdate):
    """One launch over all parameters, which lie one after the other; so do gradients and history.

    Args:
        device: the GPU.
        rule: one of :data:`RULES`.
        param: has its numbers.
        learnable: the parameters.
        history: one or two blobs for each, first all first ones.
    """

    def __init__(
        self,
        device: Device,
        rule: str,
        param: SolverParameter,
        learnable: Sequence[LearnableParam],
        history: Sequence[Blob],
    ) -> None:
        self._device = device
        self._kernel = f"update_{rule}"
        self._settings = [float(getattr(param, name)) for name in RULES[rule]]
        self._learnable = learnable
        blobs = [each.blob for each in learnable]
        count = len(blobs)
        self._history = [history[start : start + count] for start in range(0, len(history), count)]
        blocks = [-(-blob.count // BLOCK) for blob in blobs]
        starts = BLOCK * np.cumsum([0, *blocks])
        self._starts = [int(start) for start in starts[:-1]]
        self._blocks = -(-sum(blocks) // PER_THREAD)
        ends = [start + blob.count for start, blob in zip(self._starts, blobs, strict=True)]
        with device.active():
            owner = np.repeat(np.arange(count, dtype=np.int32), blocks)
            self._owner = device.xp.asarray(np.pad(owner, (0, -len(owner) % PER_THREAD), "edge"))
            self._ends = device.xp.asarray(np.array(ends, np.int32))
            self._groups = [self._gather(row) for row in self._rows()]
        self._multipliers: tuple[tuple[float, float], ...] = ()

    def __call__(
        self, rate: float, factor: float, decay: float, by_sign: bool, keeps_update: bool
    ) -> None:
        """Update every parameter once; see :class:`WholeUpdate`."""
        rows = self._rows()
        with self._device.active():
            for number, row in enumerate(rows):
                if not all(map(self._groups[number].has, row)):
                    self._groups[number] = self._gather(row)
                self._device.bring_all(row)
            self._follow_multipliers()
            weights, gradients, *history = (group.array for group in self._groups)
            numbers = (factor, rate, decay, by_sign, keeps_update)
            arrays = (weights, gradients, self._owner, self._ends, *self._tables)
            self._device.run_blocks(
                self._kernel, self._blocks, *arrays, *numbers, *history, *self._settings
            )
        for row in rows:
            for storage in row:
                storage.native_overwrite()

    def _rows(self) -> list[list[Storage]]:
        """Return the storages of weights, gradients and history; nets may share others' by now."""
        blobs = [each.blob for each in self._learnable]
        rows = [[blob.data_storage for blob in blobs], [blob.diff_storage for blob in blobs]]
        return rows + [[blob.data_storage for blob in row] for row in self._history]

    def _follow_multipliers(self) -> None:
        now = tuple((each.lr_mult, each.decay_mult) for each in self._learnable)
        if now != self._multipliers:
            self._multipliers = now
            columns = np.array(now, np.float32).T
            self._tables = [self._device.xp.asarray(np.ascontiguousarray(c)) for c in columns]

    def _gather(self, row: Sequence[Storage]) -> Group:
        """Move storages into one piece of memory."""
        flat = self._device.xp.zeros(self._blocks * BLOCK * PER_THREAD, np.float32)
        group = Group(flat, row)
        for storage, start in zip(row, self._starts, strict=True):
            part = flat[start : start + storage.count]
            storage.bind(DeviceArray(self._device, part, group))
        return group
