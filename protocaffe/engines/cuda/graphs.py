"""Work on the device as CUDA graphs.

Layers in a row whose work needs nothing from the host are one *segment*. Its first run is an
ordinary one, in which libraries make up their minds and memory is found; the second is captured
as a graph, and from then on a run is one launch. A graph is frozen to its addresses, so all are
captured anew if a blob of theirs gets other memory. Where both passes are one segment each, they
are one together with the update: a whole training step.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from protocaffe.blob import Storage, Truth
from protocaffe.engines.base import WholeUpdate, Work, quiet
from protocaffe.engines.cuda.device import CapturingError, Device, DeviceArray
from protocaffe.log import log

FEWEST_LAUNCHES = 20
"""What a graph is captured for, at least."""


class DeviceStep:
    """A layer's pass over arrays on the device.

    Args:
        device: the GPU.
        index: the layer's place.
        call: its pass.
        only_read: storages that the pass leaves as they are, by a layer's contract.
        prepare: what has to happen before each run, on the host, also before that of a graph.

    Attributes:
        index: as above.
        only_read: as above.
        touched: the storages that the last run asked for.
    """

    def __init__(
        self,
        device: Device,
        index: int,
        call: Work,
        only_read: Sequence[Storage],
        prepare: Work | None = None,
    ) -> None:
        self._device = device
        self.index = index
        self._call = call
        self.only_read = only_read
        self.prepare = prepare
        self.touched: dict[int, Storage] = {}

    def __call__(self) -> None:
        """Run the pass."""
        if self.prepare is not None:
            self.prepare()
        self.queue()

    def queue(self) -> None:
        """Run what can be captured."""
        agreed = [each for each in self.only_read if each.truth in (Truth.HOST, Truth.BOTH)]
        self.touched = {}
        with self._device.serving(self.touched, self.only_read), quiet():
            self._call()
        for storage in agreed:
            if id(storage) in self.touched:
                storage.truth = Truth.BOTH


class CapturedUpdate(WholeUpdate):
    """An update that can be part of a graph.

    Attributes:
        step: what it does on the device.
    """

    step: DeviceStep


class Segment:
    """Layers in a row that run as one: at first as they are, later as a graph.

    Args:
        device: the GPU.
        steps: their work.
        graphs: those of the plan, whose memory this one's shares.
        before: of a row backward, what has these layers' forward passes. Layers keep arrays from
            one pass to the other. Only those of a captured pass stay where they are.

    Attributes:
        steps: as above.
        refused: whether it turned out that it cannot be a graph.
        wasted: how many graphs were lost after few launches, for others ran layers of them.
    """

    def __init__(
        self,
        device: Device,
        steps: Sequence[DeviceStep],
        graphs: Graphs,
        before: Sequence[Segment] = (),
    ) -> None:
        self._device = device
        self.steps = steps
        self._graphs = graphs
        self._before = before
        self._prepares = [step.prepare for step in steps if step.prepare is not None]
        self.wasted = 0
        graphs.segments.add(self)
        self.forget()

    @property
    def is_graph(self) -> bool:
        """Whether it has been captured."""
        return self._graph is not None

    def forget(self) -> None:
        """Begin anew: the next run is an ordinary one."""
        self.refused = False
        self._drop()

    def _drop(self) -> None:
        """Give up the graph, if there is one."""
        self._ran = False
        self._launches = 0
        self._graph: Any = None
        self._storages: list[tuple[Storage, DeviceArray]] = []
        self._written: list[Storage] = []

    def __call__(self) -> None:
        """Run all layers."""
        for prepare in self._prepares:
            prepare()
        if self._graph is not None and any(s.native is not own for s, own in self._storages):
            self._graphs.forget()
        if self._graph is None:
            self._displace_others()
        if self._graph is not None or (self._may_capture() and self._capture()):
            self._launch()
            return
        for step in self.steps:
            step.queue()
        self._ran = True

    def _displace_others(self) -> None:
        """Have those begin anew that have layers of this one, too.

        Layers keep arrays from one pass to the other, and now they get other ones.
        """
        own = {id(step) for step in self.steps}
        for other in self._graphs.segments:
            if other is not self and not own.isdisjoint(map(id, other.steps)):
                other.wasted += other.is_graph and other._launches < FEWEST_LAUNCHES
                other._drop()

    def _may_capture(self) -> bool:
        return self._ran and not self.refused and all(each.is_graph for each in self._before)

    def _capture(self) -> bool:
        """Capture the layers; False if that cannot be done."""
        storages = {key: each for step in self.steps for key, each in step.touched.items()}
        for storage in storages.values():
            self._device.bring(storage)
        truths = [(each, each.truth) for each in storages.values()]
        try:
            works = [step.queue for step in self.steps]
            self._graph = self._device.capture(works, self._graphs.pool)
        except (CapturingError, MemoryError, NotImplementedError, RuntimeError) as error:
            # RuntimeError: what CUDA says; NotImplementedError: what CuPy does not capture.
            log.warning("a pass cannot be a CUDA graph (%s): its layers run one by one", error)
            self.refused = True
            return False
        storages.update((k, each) for step in self.steps for k, each in step.touched.items())
        natives = [(each, each.native) for each in storages.values()]
        self._storages = [(s, own) for s, own in natives if isinstance(own, DeviceArray)]
        self._written = [each for each in storages.values() if each.truth is Truth.NATIVE]
        for storage, truth in truths:
            storage.truth = truth
        return True

    def _launch(self) -> None:
        self._device.bring_all(storage for storage, _ in self._storages)
        with self._device.active():
            self._graph.launch(self._device.stream)
        self._launches += 1
        for storage in self._written:
            storage.native_overwrite()


class Graphs:
    """All captured graphs of a plan, and the memory that they share.

    The graphs own this, not the other way round: a plan that nobody has any more gives back its
    memory at once, not when Python next looks for cycles.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.segments: weakref.WeakSet[Segment] = weakref.WeakSet()
        self.pool = device.take_pool()
        weakref.finalize(self, device.return_pool, self.pool).atexit = False

    def forget(self) -> None:
        """Have everything captured anew."""
        self._device.synchronize()
        for segment in self.segments:
            segment.forget()
