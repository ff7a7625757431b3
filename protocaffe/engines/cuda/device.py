"""A GPU as the engine uses it: memory of blobs, its stream, kernels, captured graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocaffe.blob import Array, Storage, Truth, serving
from protocaffe.engines.cuda.dnn import Dnn

BLOCK = 256
"""Threads of a block; the kernels' sums are over as many."""

WORKSPACE = 32 << 20
"""Bytes of device memory for cuBLAS."""


class DeviceArray:
    """A storage's numbers on the device, flat and in Caffe's order.

    Args:
        device: where.
        array: the memory.
        group: what it is a part of.
    """

    def __init__(self, device: Device, array: Any, group: Group | None = None) -> None:
        self._device = device
        self.array = array
        self.group = group

    def host_view(self) -> Array | None:
        """There is none: the device has memory of its own."""
        return None

    def load(self, host: Array) -> None:
        """Copy the host's numbers to the device."""
        if host.size:
            with self._device.active():
                self.array.set(host)

    def store(self, host: Array) -> None:
        """Copy the numbers to the host, when all work before is done."""
        if host.size:
            with self._device.active():
                self.array.get(out=host)

    def forget_host(self) -> None:
        """Nothing of the host's is remembered."""


@dataclass(frozen=True)
class Group:
    """Storages that lie one after the other in one piece of memory."""

    array: Any
    storages: Sequence[Storage]

    def fill_zeros(self) -> bool:
        """Write the zeros that the storages stand for, if all do; else leave it."""
        zeros = all(each.truth is Truth.ZERO for each in self.storages)
        if zeros:
            self.array.fill(0)
            for storage in self.storages:
                storage.truth = Truth.NATIVE
        return zeros


class CapturingError(Exception):
    """A piece of work cannot be captured: it needs the host."""


class Device:
    """What the engine needs of one GPU.

    Args:
        xp: CuPy.
        number: which GPU.
        blas: makes what multiplies matrices, from the stream's address and a workspace.
        dnn: makes what convolves, from the stream's address.

    Attributes:
        dnn: cuDNN.
        stream: what all work of this engine is queued on.
        copies: what data goes to the device on, meanwhile.
    """

    def __init__(
        self,
        xp: Any,
        number: int,
        blas: Callable[[int, tuple[int, int]], Any],
        dnn: Callable[[int], Dnn],
    ) -> None:
        self.xp = xp
        self._context = xp.cuda.Device(number)
        with self._context:
            self.stream = xp.cuda.Stream(non_blocking=True)
            self.copies = xp.cuda.Stream(non_blocking=True)
            code = Path(__file__).with_name("kernels.cu").read_text()
            self._module = xp.RawModule(code=code, options=("--std=c++17",))
            self._workspace = xp.empty(WORKSPACE, np.uint8)
            self._blas = blas(self.stream.ptr, (self._workspace.data.ptr, WORKSPACE))
            self.dnn = dnn(self.stream.ptr)
        self._kernels: dict[str, Any] = {}
        self._captures = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have what this thread asks for done on this device and its stream."""
        with self._context, self.stream:
            yield

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.stream.synchronize()

    def run(self, name: str, count: int, *arguments: Any) -> None:
        """Run a kernel with one thread per number, of which there are ``count``.

        Whole numbers are passed as int32, others as float32, arrays as their addresses.
        """
        self.run_blocks(name, -(-count // BLOCK), *arguments)

    def run_blocks(self, name: str, blocks: int, *arguments: Any) -> None:
        """Run a kernel with that many blocks."""
        if name not in self._kernels:
            self._kernels[name] = self._module.get_function(name)
        self._kernels[name]((blocks,), (BLOCK,), tuple(_argument(each) for each in arguments))

    def gemm(self, a: Any, b: Any, out: Any, add: bool = False) -> None:
        """Set ``out = a @ b``, or add to it; see :meth:`CuBlas.gemm`."""
        self._blas.gemm(a, b, out, add)

    def pinned(self, size: int) -> Array:
        """Return bytes of host memory that is copied to the device without a detour."""
        memory = self.xp.cuda.alloc_pinned_memory(size)
        array: Array = np.frombuffer(memory, np.uint8, size)
        return array

    # -- blobs ---------------------------------------------------------------------------

    def bring(self, storage: Storage) -> Any:
        """Return a storage's array on the device, up to date."""
        native = storage.native
        if not isinstance(native, DeviceArray):
            self._refuse_capture("memory that is not on the device yet")
            with self.active():
                native = DeviceArray(self, self.xp.empty(storage.count, storage.dtype))
            storage.bind(native)
        if storage.truth is Truth.ZERO:
            with self.active():
                if native.group is None or not native.group.fill_zeros():
                    native.array.fill(0)
                    storage.truth = Truth.NATIVE
        elif storage.truth is Truth.HOST:
            self._refuse_capture("numbers that are on the host")
            storage.native_read()
        return native.array

    @contextmanager
    def serving(self, touched: dict[int, Storage]) -> Iterator[None]:
        """Give layers that this thread runs their blobs' arrays on the device.

        What a layer asked for counts as written; ``touched`` receives these storages.
        """

        def serve(storage: Storage) -> Any:
            array = self.bring(storage)
            touched[id(storage)] = storage
            storage.truth = Truth.NATIVE
            return array

        with self.active():
            before, serving.array = serving.array, serve
            try:
                yield
            finally:
                serving.array = before

    # -- graphs --------------------------------------------------------------------------

    def capture(self, works: Sequence[Callable[[], None]], pool: Any) -> Any:
        """Return pieces of work as one graph, which have not run then.

        Args:
            works: what to capture.
            pool: where their temporary memory comes from; it has to live as long as the graph.

        Raises:
            CapturingError: one of them needs the host.
        """
        with ExitStack() as stack:
            stack.enter_context(self.active())
            stack.enter_context(self.xp.cuda.using_allocator(pool.malloc))
            self.stream.begin_capture()
            self._captures = True
            try:
                for work in works:
                    work()
            finally:
                self._captures = False
                graph = self.stream.end_capture()
        return graph

    def _refuse_capture(self, what: str) -> None:
        if self._captures:
            raise CapturingError(f"a captured pass cannot use {what}")


def _argument(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value
