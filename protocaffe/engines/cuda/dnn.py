"""cuDNN's convolutions through its frontend: one graph per operation, planned once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Any

from protocaffe.engines.cuda.forms import FLOAT32, Precision
from protocaffe.log import log

Extents = tuple[int, ...]

IMAGE, WEIGHTS, GRID, BIAS = 1, 2, 3, 4
"""What the tensors of a graph are addressed by."""

NAMES = {IMAGE: "image", WEIGHTS: "weights", GRID: "grid", BIAS: "bias"}

CANDIDATES = 8
"""How many plans of a graph are timed."""

CANDIDATE_WORKSPACE = 256 << 20
"""Bytes of workspace beyond which a plan is not timed, unless it is the heuristic's first."""

SHAPES = 8
"""For how many shapes of blobs plans are timed; images of ever other sizes would take too long."""

KEPT = 1000
"""How many graphs are kept for layers to come, which may have the shapes of layers before."""

RUNS = 3
"""How often a plan is run between the events that time it."""

BUSY_BYTES, BUSY_TIMES = 128 << 20, 10
"""Memory written before the first event, so that the device is still at it when the host has
queued all runs, and has nothing of the run before in its cache."""


@dataclass(frozen=True)
class Geometry:
    """A convolution: the shapes of image, weights and grid, and how windows lie.

    The number of groups follows from the shapes: image channels by weight channels.
    """

    image: Extents
    weights: Extents
    grid: Extents
    pad: Extents
    stride: Extents
    dilation: Extents

    @property
    def shapes(self) -> dict[int, Extents]:
        """The shape of each array."""
        return {IMAGE: self.image, WEIGHTS: self.weights, GRID: self.grid}


@dataclass(frozen=True)
class Operation:
    """What a graph computes.

    Attributes:
        geometry: the convolution.
        result: which of its three arrays is computed from the other two: the grid by
            cross-correlation, image and weights as gradients of it.
        bias: whether a number per channel is added to the grid then.
        relu: whether what is below 0 becomes 0 then. cuDNN is told to let NaN through.
    """

    geometry: Geometry
    result: int
    bias: bool = False
    relu: bool = False


class Dnn:
    """cuDNN on one device and stream.

    Args:
        cudnn: the module.
        xp: CuPy.
        stream: the address of the stream.
        precision: what to compute with.
        autotune: whether :class:`Pass` finds out by timing which plan is the fastest. The choice,
            and with it the last bits of results, may then differ from run to run; without it
            the heuristic's first plan is taken that adds up in the same order always.

    Attributes:
        fuses_fast: whether plans that also add a bias are as fast as others. Those that do without
            tensor cores are cuDNN's last resort.
        reasons: why there is no graph for an operation.
    """

    def __init__(
        self,
        cudnn: Any,
        xp: Any,
        stream: int,
        precision: Precision = FLOAT32,
        autotune: bool = True,
    ) -> None:
        self.cudnn = cudnn
        self.xp = xp
        self.autotune = autotune
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=stream)
        types = {"fp16": cudnn.data_type.HALF, "bf16": cudnn.data_type.BFLOAT16}
        self.real = types.get(precision.name, cudnn.data_type.FLOAT)
        self.strides = _channels_last_strides if precision.channels_last else _strides
        exact, note, mode = precision is FLOAT32, cudnn.numerical_note, cudnn.heur_mode
        self.deselected = [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS] if exact else []
        if not autotune:
            self.deselected.append(note.NONDETERMINISTIC)
        # Nearly all that mode A has to say is about tensor cores; B knows others, too.
        self.modes = [mode.A, mode.B, mode.FALLBACK] if exact else [mode.A, mode.FALLBACK]
        self.fuses_fast = not exact
        self.reasons: dict[Operation, str] = {}
        self._graphs: dict[Operation, Graph | None] = {}
        self._fastest: dict[tuple[Operation, ...], Graph] = {}
        self._shapes: Counter[Operation] = Counter()
        self._timed, self._seconds = 0, 0.0
        # Captured graphs hold addresses, so a workspace that became too small stays.
        self._workspaces = [xp.empty(1, "uint8")]

    def graph(self, operation: Operation) -> Graph | None:
        """Return what computes an operation, or None if cuDNN cannot; see ``reasons``."""
        if operation not in self._graphs:
            if len(self._graphs) == KEPT:
                del self._graphs[next(iter(self._graphs))]
            try:
                self._graphs[operation] = Graph(self, operation)
            except (self.cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
                self._graphs[operation], self.reasons[operation] = None, str(error)
        return self._graphs[operation]

    def is_capturing(self) -> bool:
        """Whether what is queued now becomes part of a CUDA graph."""
        return bool(self.xp.cuda.get_current_stream().is_capturing())

    def workspace(self, size: int) -> int:
        """Return the address of device memory of at least that many bytes.

        Raises:
            RuntimeError: there is less, and a capture is no time to find more.
        """
        if self._workspaces[-1].size < size:
            if self.is_capturing():
                raise RuntimeError("cuDNN needs more workspace than in the pass before")
            # At least twice as much as before, so that all that stays is less than what is used.
            self._workspaces.append(
                self.xp.empty(max(size, 2 * self._workspaces[-1].size), "uint8")
            )
        address: int = self._workspaces[-1].data.ptr
        return address

    # -- timing --------------------------------------------------------------------------

    def fastest(self, graphs: Sequence[Graph], compute: Callable[[Graph], object]) -> Graph:
        """Return the graph by which something is computed in the least time, at its best plan.

        The first one it is after ``SHAPES`` calls that differ in nothing but shapes.

        Args:
            graphs: those that can.
            compute: does it by one of them.
        """
        key = tuple(graph.operation for graph in graphs)
        if key not in self._fastest:
            kind = replace(key[0], geometry=replace(key[0].geometry, image=(), grid=()))
            if self._shapes[kind] == SHAPES:
                return graphs[0]
            self._shapes[kind] += 1
            start = perf_counter()
            self._fastest[key] = min(graphs, key=lambda graph: self._tune(graph, compute))
            self._seconds += perf_counter() - start
        return self._fastest[key]

    def _tune(self, graph: Graph, compute: Callable[[Graph], object]) -> float:
        """Give a graph its fastest plan, and return the time in milliseconds."""
        times = {graph.plan: math.inf}
        for plan in [graph.plan, *graph.others()]:
            graph.plan = plan
            try:
                times[plan] = self._time(lambda: compute(graph))
            except (self.cudnn.cudnnGraphNotSupportedError, RuntimeError, MemoryError) as error:
                log.debug("plan %d of %s cannot run: %s", plan, graph.operation, error)
        graph.plan = min(times, key=times.__getitem__)
        self._timed += len(times)
        return times[graph.plan]

    def _time(self, run: Callable[[], object]) -> float:
        cuda = self.xp.cuda
        stream, start, stop = cuda.get_current_stream(), cuda.Event(), cuda.Event()
        run()
        busy = self.xp.empty(BUSY_BYTES, "uint8")
        for _ in range(BUSY_TIMES):
            busy.fill(0)
        start.record(stream)
        for _ in range(RUNS):
            run()
        stop.record(stream)
        stop.synchronize()
        return float(cuda.get_elapsed_time(start, stop)) / RUNS

    def report(self) -> None:
        """Log how many plans were timed since this was asked last, if any were."""
        if self._timed:
            log.info("Timed %d plans of cuDNN in %.1f s", self._timed, self._seconds)
            self._timed, self._seconds = 0, 0.0


class Graph:
    """cuDNN's graph of one operation.

    Args:
        dnn: where.
        operation: what it computes.

    Attributes:
        operation: what it computes.
        plan: the number of the plan that it runs by; at first the heuristic's first that there is.

    Raises:
        cudnnGraphNotSupportedError: there is none.
    """

    def __init__(self, dnn: Dnn, operation: Operation) -> None:
        self._dnn = dnn
        self.operation = operation
        cudnn = dnn.cudnn
        self._graph = graph = cudnn.pygraph(
            handle=dnn.handle,
            io_data_type=dnn.real,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        self._add_operations()
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans(dnn.modes)
        if dnn.deselected:
            graph.deselect_numeric_notes(dnn.deselected)
        graph.check_support()
        plan = next(self._plans(), None)
        if plan is None:
            raise cudnn.cudnnGraphNotSupportedError("none of its plans can be built")
        self.plan: int = plan

    def _plans(self) -> Iterator[int]:
        """Build plans one after the other, in the heuristic's order."""
        for index in range(self._graph.get_execution_plan_count()):
            try:
                self._graph.build_plan_at_index(index)
            except (self._dnn.cudnn.cudnnGraphNotSupportedError, RuntimeError):
                continue  # deselected, or it cannot be built after all
            yield index

    def others(self) -> list[int]:
        """Return the plans beside the present one that may be as fast."""
        size = self._graph.get_workspace_size_plan_at_index
        few = (each for each in self._plans() if size(each) <= CANDIDATE_WORKSPACE)
        return [each for each in islice(few, CANDIDATES) if each != self.plan]

    def run(self, arrays: dict[int, Any]) -> None:
        """Compute the result from the other arrays."""
        addresses = {number: array.data.ptr for number, array in arrays.items()}
        size = self._graph.get_workspace_size_plan_at_index(self.plan)
        workspace, handle = self._dnn.workspace(size), self._dnn.handle
        self._graph.execute_plan_at_index(addresses, workspace, self.plan, handle=handle)

    def _add_operations(self) -> None:
        operation, geometry = self.operation, self.operation.geometry
        shapes, result = geometry.shapes, operation.result
        given = {
            number: self._tensor(number, shape)
            for number, shape in shapes.items()
            if number != result
        }
        made = self._convolve(given)
        if operation.bias:
            shape = (1, geometry.grid[1], *(1 for _ in geometry.pad))
            made = self._graph.bias(input=made, bias=self._tensor(BIAS, shape))
        if operation.relu:
            made = self._graph.relu(input=made)
        made.set_output(True).set_uid(result).set_dim(list(shapes[result]))
        made.set_stride(self._dnn.strides(shapes[result]))

    def _tensor(self, number: int, shape: Extents) -> Any:
        strides = self._dnn.strides(shape)
        tensor = self._graph.tensor(name=NAMES[number], dim=list(shape), stride=strides)
        return tensor.set_uid(number)

    def _convolve(self, given: dict[int, Any]) -> Any:
        graph, result, geometry = self._graph, self.operation.result, self.operation.geometry
        windows = {
            "padding": list(geometry.pad),
            "stride": list(geometry.stride),
            "dilation": list(geometry.dilation),
        }
        if result == GRID:
            return graph.conv_fprop(image=given[IMAGE], weight=given[WEIGHTS], **windows)
        if result == IMAGE:
            return graph.conv_dgrad(loss=given[GRID], filter=given[WEIGHTS], **windows)
        return graph.conv_wgrad(image=given[IMAGE], loss=given[GRID], **windows)


class Pass:
    """One pass of a layer: the graphs that can compute it, and which of them does.

    Args:
        dnn: where.
        graphs: the first is taken unless another one turns out to be faster.
        tunes: whether the first run, which must not be captured, finds that out.
    """

    def __init__(self, dnn: Dnn, graphs: Sequence[Graph], tunes: bool) -> None:
        self._dnn = dnn
        self._graphs = graphs
        self._tunes = tunes and dnn.autotune

    def run(self, compute: Callable[[Graph], object]) -> None:
        """Compute by the graph that is the fastest.

        Args:
            compute: gets the graph; it must not matter how often it is called.
        """
        if self._tunes and not self._dnn.is_capturing():
            self._graphs = [self._dnn.fastest(self._graphs, compute)]
            self._tunes = False
        compute(self._graphs[0])


def _strides(shape: Extents) -> list[int]:
    """The strides of an array in row order, in numbers."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _channels_last_strides(shape: Extents) -> list[int]:
    """The strides of an array with axis 1 behind all others, in numbers."""
    first, *others = _strides((shape[0], *shape[2:], shape[1]))
    return [first, others[-1], *others[:-1]]
