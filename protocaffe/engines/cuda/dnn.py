"""cuDNN's convolutions through its frontend: graphs of one operation, planned once per geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from protocaffe.blob import Array
from protocaffe.engines.cuda.forms import FLOAT32, Precision
from protocaffe.log import log

Extents = tuple[int, ...]

IMAGE, WEIGHTS, GRID = 1, 2, 3
"""What the tensors of a graph are addressed by."""


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


class Dnn:
    """cuDNN on one device and stream.

    Args:
        cudnn: the module.
        xp: CuPy.
        stream: the address of the stream.
        precision: what to compute with.
    """

    def __init__(self, cudnn: Any, xp: Any, stream: int, precision: Precision = FLOAT32) -> None:
        self.cudnn = cudnn
        self.xp = xp
        self.handle = cudnn.create_handle()
        cudnn.set_stream(handle=self.handle, stream=stream)
        note = cudnn.numerical_note
        exact = precision is FLOAT32
        types = {"fp16": cudnn.data_type.HALF, "bf16": cudnn.data_type.BFLOAT16}
        self.real = types.get(precision.name, cudnn.data_type.FLOAT)
        self.strides = _channels_last_strides if precision.channels_last else _strides
        self.deselected = [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS] if exact else []
        self._known: dict[Geometry, Convolutions | None] = {}
        # Captured graphs hold addresses, so a workspace that became too small stays.
        self._workspaces = [xp.empty(1, "uint8")]

    def convolutions(self, geometry: Geometry) -> Convolutions | None:
        """Return the three passes of a convolution, or None if cuDNN cannot do all of them."""
        if geometry not in self._known:
            try:
                self._known[geometry] = Convolutions(self, geometry)
            except self.cudnn.cudnnGraphNotSupportedError as error:
                log.warning("cuDNN cannot run %s (%s): it runs by own code", geometry, error)
                self._known[geometry] = None
        return self._known[geometry]

    def workspace(self, size: int) -> int:
        """Return the address of device memory of at least that many bytes."""
        if self._workspaces[-1].size < size:
            self._workspaces.append(self.xp.empty(size, "uint8"))
        address: int = self._workspaces[-1].data.ptr
        return address


class Convolutions:
    """The passes of one convolution between an image and the grid of its windows."""

    def __init__(self, dnn: Dnn, geometry: Geometry) -> None:
        self._dnn = dnn
        self._geometry = geometry
        self._graphs = {GRID: self._plan(GRID), IMAGE: self._plan(IMAGE)}
        self._graphs[WEIGHTS] = self._plan(WEIGHTS)

    def correlate(self, image: Array, weights: Array, grid: Array) -> None:
        """Set grid = weights cross-correlated with the image."""
        self._run(GRID, {IMAGE: image, WEIGHTS: weights, GRID: grid})

    def spread(self, grid: Array, weights: Array, image: Array) -> None:
        """Set the image to the sum of all windows: the gradient of :meth:`correlate`."""
        self._run(IMAGE, {IMAGE: image, WEIGHTS: weights, GRID: grid})

    def weight_gradient(self, image: Array, grid: Array, weights: Array) -> None:
        """Set weights to the gradient of :meth:`correlate` for them."""
        self._run(WEIGHTS, {IMAGE: image, WEIGHTS: weights, GRID: grid})

    def _run(self, result: int, arrays: dict[int, Any]) -> None:
        graph, size = self._graphs[result]
        addresses = {number: array.data.ptr for number, array in arrays.items()}
        graph.execute(addresses, self._dnn.workspace(size), handle=self._dnn.handle)

    def _plan(self, result: int) -> tuple[Any, int]:
        """Return the graph that computes one of the three, ready to run, and its workspace."""
        cudnn = self._dnn.cudnn
        graph = cudnn.pygraph(
            handle=self._dnn.handle,
            io_data_type=self._dnn.real,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        self._add_operation(graph, result)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        if self._dnn.deselected:
            graph.deselect_numeric_notes(self._dnn.deselected)
        graph.check_support()
        graph.build_plans(cudnn.build_plan_policy.HEURISTICS_CHOICE)
        return graph, graph.get_workspace_size()

    def _add_operation(self, graph: Any, result: int) -> None:
        geometry = self._geometry
        shapes = {IMAGE: geometry.image, WEIGHTS: geometry.weights, GRID: geometry.grid}
        names = {IMAGE: "image", WEIGHTS: "weights", GRID: "grid"}
        given = {
            number: graph.tensor(
                name=names[number], dim=list(shape), stride=self._dnn.strides(shape)
            ).set_uid(number)
            for number, shape in shapes.items()
            if number != result
        }
        windows = {
            "padding": list(geometry.pad),
            "stride": list(geometry.stride),
            "dilation": list(geometry.dilation),
        }
        if result == GRID:
            made = graph.conv_fprop(image=given[IMAGE], weight=given[WEIGHTS], **windows)
        elif result == IMAGE:
            made = graph.conv_dgrad(loss=given[GRID], filter=given[WEIGHTS], **windows)
        else:
            made = graph.conv_wgrad(image=given[IMAGE], loss=given[GRID], **windows)
        shape = shapes[result]
        made.set_output(True).set_uid(result).set_dim(list(shape))
        made.set_stride(self._dnn.strides(shape))


def _strides(shape: Extents) -> list[int]:
    """The strides of an array in row order, in numbers."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _channels_last_strides(shape: Extents) -> list[int]:
    """The strides of an array with axis 1 behind all others, in numbers."""
    first, *others = _strides((shape[0], *shape[2:], shape[1]))
    return [first, others[-1], *others[:-1]]
