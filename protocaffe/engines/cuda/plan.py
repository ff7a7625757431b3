"""Runs a net's layers over arrays on the device.

A layer without an override runs its own code with CuPy; layers that are on the host on every
engine run theirs there. Blobs move between the two when somebody asks for the side that is out
of date. What layers do becomes CUDA graphs as far as it can: see ``graphs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, SupportsFloat

import numpy as np

from protocaffe.blob import Array, Storage
from protocaffe.engines.base import (
    LayerNode,
    Loss,
    Plan,
    WholeUpdate,
    Work,
    forced_own_code,
    without,
)
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.graphs import CapturedUpdate, DeviceStep, Graphs, Segment
from protocaffe.engines.cuda.overrides import Override, find_override
from protocaffe.layers import Layer
from protocaffe.layers.base import layer_class
from protocaffe.layers.input import Input

CAPTURED = frozenset(
    layer_class(name)
    for name in """
        AbsVal Axpy BNLL BatchNorm Bias Clip Concat Crop ELU Eltwise EuclideanLoss Exp
        Flatten Im2col LRN LSTMUnit Log MVN Normalize PReLU Permute Power ReLU
        ReLU6 Reduction Reorg Reshape Scale ShuffleChannel Sigmoid Silence Slice
        SmoothL1Loss Softmax Split Swish TanH Threshold Tile Upsample""".split()  # noqa: SIM905
)
"""Layers whose own code only queues work on the device: it draws no random numbers, reads
nothing back, and multiplies no matrices (which CuPy does by cuBLAS, and not in a graph)."""


MOST_WASTED = 2
"""How many graphs of a whole step may be captured for little before passes have their own again."""


class CudaPlan(Plan):
    """A plan whose layers run on a GPU.

    Args:
        device: the GPU.
        nodes: the net's layers with their blobs, shapes known.
        fuse: whether a layer may do the work of those behind it as well.
        captures: whether layers in a row may become graphs.
    """

    def __init__(
        self,
        device: Device,
        nodes: Sequence[LayerNode[Layer]],
        fuse: bool = True,
        captures: bool = True,
    ) -> None:
        self.device = device
        self._fuse = fuse
        self._runners: dict[int, Layer | Override[Any]] = {}
        self._absorbers: dict[int, int] = {}  # of layers whose work another one does, that one
        self._rows: list[dict[int, list[Work]]] = []  # what was joined of backward
        super().__init__(nodes)
        self._graphs = Graphs(device) if captures else None
        self._whole: tuple[WholeUpdate, Segment | None] | None = None
        if self._graphs is not None:
            self._join(self.forward, range(len(nodes)), self._graphs, {})
            segments = self._segments(self.forward)
            order = range(len(nodes))[::-1]
            self._rows = self._join(self.backward, order, self._graphs, segments)

    def add(self, node: LayerNode[Layer]) -> None:
        """Bind one layer's work: on the host, by an override, or its own code on the device."""
        layer = node.layer
        if layer.on_host:
            super().add(node)
            return
        if isinstance(layer, Input) or self._is_absorbed(node):
            return
        runner: Layer | Override[Any] = layer
        if not forced_own_code(layer):
            runner = find_override(self.device, node) or layer
        if isinstance(runner, Override):
            runner.look_ahead(self.nodes[node.index + 1 :])
        self._runners[node.index] = runner
        self.forward[node.index].append(self._forward_step(node, runner))
        if node.needs_backward:
            self.backward[node.index].append(self._backward_step(node, runner))

    def _is_absorbed(self, node: LayerNode[Layer]) -> bool:
        """Whether the layer before does this one's work as well."""
        runner = self._runners.get(node.index - 1)
        if not self._fuse or not isinstance(runner, Override) or forced_own_code(node.layer):
            return False
        before = self.nodes[node.index - 1]
        in_place = len(before.tops) == 1 and node.bottoms == node.tops == before.tops
        if not in_place or node.needs_backward != before.needs_backward or not runner.absorb(node):
            return False
        self._runners[node.index] = runner
        absorber = self._absorbers.get(before.index, before.index)
        self._absorbers[node.index] = absorber
        self.joined.append({*range(absorber, node.index + 1)})
        for step in self.backward[absorber]:
            assert isinstance(step, DeviceStep)
            step.only_read = without(step.only_read, [node.tops[0].diff_storage])
        return True

    def whole_step(self, update: WholeUpdate) -> Work | None:
        """Return one segment for both passes and the update (see :meth:`Plan.whole_step`)."""
        if self._whole is None or self._whole[0] is not update:
            self._whole = (update, self._join_step(update))
        whole = self._whole[1]
        return None if whole is None or whole.refused or whole.wasted > MOST_WASTED else whole

    def _join_step(self, update: WholeUpdate) -> Segment | None:
        """Join the passes and the update, if each pass is one segment but for the sources."""
        sources = {node.index for node in self.nodes if not node.bottoms}
        forward = [
            work for i, works in enumerate(self.forward) if i not in sources for work in works
        ]
        ends = [*forward, *(work for works in self.backward for work in works)]
        segments = [end for end in ends if isinstance(end, Segment)]
        if self._graphs is None or not len(ends) == len(segments) == 2:
            return None
        if not isinstance(update, CapturedUpdate):
            return None
        steps = [step for segment in segments for step in segment.steps]
        return Segment(self.device, [*steps, update.step], self._graphs)

    def _forward_step(self, node: LayerNode[Layer], runner: Layer | Override[Any]) -> DeviceStep:
        bottoms, tops = node.bottoms, node.tops
        only_read = without([b.data_storage for b in bottoms], [t.data_storage for t in tops])
        prepare = None
        if isinstance(runner, Override) and type(runner).prepare is not Override.prepare:
            prepare = runner.prepare
        run = partial(runner.forward, bottoms, tops)
        return DeviceStep(self.device, node.index, run, only_read, prepare)

    def _backward_step(self, node: LayerNode[Layer], runner: Layer | Override[Any]) -> DeviceStep:
        bottoms, tops, wanted = node.bottoms, node.tops, node.propagate_down
        written = [b.diff_storage for b, want in zip(bottoms, wanted, strict=True) if want]
        only_read = [blob.data_storage for blob in (*bottoms, *tops, *node.layer.blobs)]
        only_read += without([top.diff_storage for top in tops], written)
        run = partial(runner.backward, tops, wanted, bottoms)
        return DeviceStep(self.device, node.index, run, only_read)

    def follow(self, start: int) -> None:
        """Bind the layers from ``start`` on again (see :meth:`Plan.follow`)."""
        self._absorbers = {i: owner for i, owner in self._absorbers.items() if i < start}
        self.joined = [group for group in self.joined if min(group) < start]
        self._rows = [row for row in self._rows if min(row) < start]
        self._whole = None
        super().follow(start)

    def cut(self, first: int, last: int) -> None:
        """Take rows apart of which only some layers are to run backward."""
        for row in self._rows:
            inside = {index for index in row if last <= index <= first}
            if inside and len(inside) < len(row):
                for index, works in row.items():
                    self.backward[index] = works

    @staticmethod
    def _segments(works: list[list[Work]]) -> dict[int, Segment]:
        """Return those of a pass, by layer."""
        found = [work for each in works for work in each if isinstance(work, Segment)]
        return {step.index: segment for segment in found for step in segment.steps}

    def _join(
        self,
        works: list[list[Work]],
        order: Sequence[int],
        graphs: Graphs,
        forward: Mapping[int, Segment],
    ) -> list[dict[int, list[Work]]]:
        """Make one piece of work of every row of layers that can be captured; return the rows.

        Args:
            works: by layer; changed.
            order: of the layers.
            graphs: what the rows belong to.
            forward: of a backward pass, what has each layer's forward pass.
        """
        rows = []
        row: list[int] = []
        for index in [*order, -1]:
            # A layer that changes shapes has those behind it bound again, and only those.
            if index >= 0 and not works[index] and not self.nodes[index].layer.dynamic:
                continue
            if index >= 0 and self._can_capture(index):
                row.append(index)
                continue
            if row:
                rows.append({each: works[each] for each in row})
                steps = [step for each in row for step in works[each]]
                before = [forward[each] for each in row if each in forward]
                for each in row:
                    works[each] = []
                segment = Segment(self.device, steps, graphs, before)  # type: ignore[arg-type]
                works[row[0]] = [segment]
            row = []
        return rows

    def _can_capture(self, index: int) -> bool:
        runner = self._runners.get(index)
        if runner is None:
            return False
        return runner.captures if isinstance(runner, Override) else type(runner) in CAPTURED

    def describe(self, work: Work) -> str:
        """Say what does it, and for which other layers."""
        if isinstance(work, Segment):
            first, last = (self._name(work.steps[end].index) for end in (0, -1))
            kind = "a CUDA graph" if work.is_graph else "a row"
            return f"{kind} of {len(work.steps)} layers, {first} to {last}"
        if not isinstance(work, DeviceStep):
            return f"{super().describe(work)}, on the host"
        runner = self._runners[work.index]
        title = type(runner).__name__ if isinstance(runner, Override) else "own code, by CuPy"
        others = [self._name(i) for i, owner in self._absorbers.items() if owner == work.index]
        return f"{title}, which does {' and '.join(others)}, too" if others else title

    def doer(self, index: int, works: Sequence[Sequence[Work]]) -> int:
        """Return where a layer's work is: with what absorbed it, or at the head of its row."""
        own = self._absorbers.get(index, index)
        for place, pieces in enumerate(works):
            for work in pieces:
                if isinstance(work, Segment) and any(own == step.index for step in work.steps):
                    return place
        return own

    def _name(self, index: int) -> str:
        return self.nodes[index].layer.name

    def loss(self, index: int) -> SupportsFloat:
        """Return a layer's share of the loss, which nobody waits for until it is looked at."""
        node, total = self.nodes[index], Loss()
        for top, weight in zip(node.tops, node.layer.loss_weights, strict=True):
            if weight:
                weights = top.diff_storage.host_read().copy()
                total.add(LateLoss(self.device, top.data_storage, weights, self._explain(index)))
        return total

    def _explain(self, index: int) -> Work | None:
        runner = self._runners.get(index)
        return runner.explain if isinstance(runner, Override) else None


class LateLoss:
    """A top's values times their weights, as they were when this was made.

    Args:
        device: the GPU.
        values: the top's data.
        weights: one for each, on the host.
        explain: raises an error if that is why a loss is NaN.
    """

    def __init__(
        self, device: Device, values: Storage, weights: Array, explain: Work | None
    ) -> None:
        with device.active():
            self._values = device.plain(device.bring(values)).copy()
        self._device = device
        self._weights = weights
        self._explain = explain

    def __float__(self) -> float:
        with self._device.active():
            loss = float(np.dot(self._values.get(), self._weights))
        if math.isnan(loss) and self._explain is not None:
            self._explain()
        return loss
