"""The update of all parameters in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Blob, Storage
from protocaffe.engines.cuda.device import BLOCK, Device, DeviceArray, Group
from protocaffe.engines.cuda.graphs import CapturedUpdate, DeviceStep
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


class CudaUpdate(CapturedUpdate):
    """One launch over all parameters, which lie one after the other; so do gradients and history.

    Args:
        device: the GPU.
        rule: one of :data:`RULES`.
        param: has its numbers.
        learnable: the parameters.
        history: one or two blobs for each, first all first ones.

    Attributes:
        step: the update as a piece of work that can be captured.
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
            self._tables = list(device.xp.zeros((2, count), np.float32))
            self._numbers = device.xp.zeros(5, np.float32)
        self._multipliers: tuple[tuple[float, float], ...] = ()
        self._given: tuple[float, ...] = ()
        self.step = DeviceStep(device, -1, self._run, (), self._prepare)

    def set(
        self, rate: float, factor: float, decay: float, by_sign: bool, keeps_update: bool
    ) -> None:
        """Say what the next update computes with; see :class:`WholeUpdate`."""
        given = (rate, factor, decay, float(by_sign), float(keeps_update))
        if given != self._given:
            self._given = given
            with self._device.active():
                self._numbers.set(np.array(given, np.float32))

    def __call__(self) -> None:
        """Update every parameter once."""
        self.step()

    def _prepare(self) -> None:
        """See to it that what belongs together lies together, and follow the multipliers."""
        for number, row in enumerate(self._rows()):
            if not all(map(self._groups[number].has, row)):
                with self._device.active():
                    self._groups[number] = self._gather(row)
        now = tuple((each.lr_mult, each.decay_mult) for each in self._learnable)
        if now != self._multipliers:
            self._multipliers = now
            with self._device.active():
                for table, column in zip(self._tables, np.array(now, np.float32).T, strict=True):
                    table.set(np.ascontiguousarray(column))

    def _run(self) -> None:
        for row in self._rows():
            for storage in row:
                self._device.serve(storage)
        weights, gradients, *history = (group.array for group in self._groups)
        arrays = (weights, gradients, self._owner, self._ends, *self._tables, self._numbers)
        self._device.run_blocks(self._kernel, self._blocks, *arrays, *history, *self._settings)

    def _rows(self) -> list[list[Storage]]:
        """Return the storages of weights, gradients and history; nets may share others' by now."""
        blobs = [each.blob for each in self._learnable]
        rows = [[blob.data_storage for blob in blobs], [blob.diff_storage for blob in blobs]]
        return rows + [[blob.data_storage for blob in row] for row in self._history]

    def _gather(self, row: Sequence[Storage]) -> Group:
        """Move storages into one piece of memory."""
        flat = self._device.xp.zeros(self._blocks * BLOCK * PER_THREAD, np.float32)
        group = Group(flat, row)
        for storage, start in zip(row, self._starts, strict=True):
            part = flat[start : start + storage.count]
            storage.bind(DeviceArray(self._device, part, group))
        return group
