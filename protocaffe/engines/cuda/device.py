"""A GPU as the engine uses it: memory of blobs, its stream, kernels, captured graphs."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from protocaffe.blob import Array, Blob, Storage, Truth, serving
from protocaffe.engines.cuda.dnn import Dnn
from protocaffe.engines.cuda.forms import FLOAT32, ChannelsLast, Form, Precision

BLOCK = 256
"""Threads of a block; the kernels' sums are over as many."""

WIDE_BYTES = 16
"""What one instruction of a kernel moves at most."""

WORKSPACE = 32 << 20
"""Bytes of device memory for cuBLAS."""

SINGLE: np.dtype[Any] = np.dtype(np.float32)
HALF: np.dtype[Any] = np.dtype(np.uint16)
"""What arrays of 16-bit numbers are to CuPy; only kernels and libraries know what the bits mean."""


DIVISOR = np.dtype([(name, np.uint32) for name in ("by", "factor", "shift")])
"""The kernels' struct ``Divisor``."""


def divisor(by: int) -> tuple[int, int, int]:
    """Return a divisor as kernels want it, for dividends below 2^31."""
    shift = (by - 1).bit_length()
    return by, (1 << 32) * ((1 << shift) - by) // by + 1, shift


TILES = np.dtype(
    [(name, DIVISOR) for name in ("across", "down", "pixels", "channels")]
    + [(name, np.int32) for name in ("all_pixels", "all_channels")]
)
"""The kernels' struct ``Tiles``."""

TILE = 1024
"""How many numbers a tile has at most."""


@cache
def _tiles(form: ChannelsLast) -> tuple[Array, int]:
    """Return how images are cut into tiles, and how many there are."""
    side = math.isqrt(TILE)
    pixels = min(form.area, TILE // min(form.channels, side))
    channels = min(form.channels, TILE // pixels)
    across, down = -(-form.area // pixels), -(-form.channels // channels)
    divisors = map(divisor, (across, down, pixels, channels))
    return np.array((*divisors, form.area, form.channels), TILES), form.images * across * down


def kernel_source() -> str:
    """Return the source of all kernels, which begins with what they have in common."""
    files = sorted(Path(__file__).with_name("kernels").glob("*.cu"), key=_common_first)
    return "\n".join(file.read_text() for file in files)


def _common_first(file: Path) -> tuple[bool, str]:
    return file.name != "common.cu", file.name


class DeviceArray:
    """A storage's numbers on the device, flat.

    Args:
        device: where.
        array: the memory; without it, it is found when it is first needed.
        group: what it is a part of.
        form: how the numbers lie.
        scale: what they are multiplied by.
    """

    def __init__(
        self,
        device: Device,
        array: Any = None,
        group: Group | None = None,
        form: Form = None,
        scale: float = 1.0,
    ) -> None:
        self.device = device
        self.array = array
        self.group = group
        self.form = form
        self.scale = scale

    def host_view(self) -> Array | None:
        """There is none: the device has memory of its own."""
        return None

    def load(self, host: Array) -> None:
        """Copy the host's numbers to the device."""
        if not host.size:
            return
        with self.device.active():
            if self.form is None:
                self.array.set(host)
            else:
                self.device.pack(self.device.xp.asarray(host), self.array, self.form, self.scale)

    def store(self, host: Array) -> None:
        """Copy the numbers to the host, when all work before is done."""
        if host.size:
            with self.device.active():
                self.device.plain(self).get(out=host)

    def forget_host(self) -> None:
        """Nothing of the host's is remembered."""


@dataclass(frozen=True)
class Group:
    """Storages that lie one after the other in one piece of memory."""

    array: Any
    storages: Sequence[Storage]

    def has(self, storage: Storage) -> bool:
        """Whether a storage still lies here, and not in another group or engine's memory."""
        return getattr(storage.native, "group", None) is self

    def fill_zeros(self) -> bool:
        """Write the zeros that the storages stand for, if all do; else leave it."""
        zeros = all(each.truth is Truth.ZERO and self.has(each) for each in self.storages)
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
        precision: what convolutions and matrix products compute with.

    Attributes:
        dnn: cuDNN.
        stream: what all work of this engine is queued on.
        copies: what data goes to the device on, meanwhile.
        serve: gives the layer that runs the array of a storage; see :meth:`serving`.
    """

    def __init__(
        self,
        xp: Any,
        number: int,
        blas: Callable[[int, tuple[int, int]], Any],
        dnn: Callable[[int], Dnn],
        precision: Precision = FLOAT32,
    ) -> None:
        self.xp = xp
        self.precision = precision
        self._lock = threading.RLock()
        self._context = xp.cuda.Device(number)
        with self._context:
            self.stream = xp.cuda.Stream(non_blocking=True)
            self.copies = xp.cuda.Stream(non_blocking=True)
        with self.active():
            self._modules = {SINGLE: self._compile()}
            if precision.is_half:
                self._modules[HALF] = self._compile(f"-DREAL_IS_{precision.name.upper()}")
            self._workspace = xp.empty(WORKSPACE, np.uint8)
            self._blas = blas(self.stream.ptr, (self._workspace.data.ptr, WORKSPACE))
            self.dnn = dnn(self.stream.ptr)
        self._kernels: dict[tuple[str, np.dtype[Any]], Any] = {}
        self._captures = False
        self._idle_pools: list[Any] = []
        self.serve: Callable[..., Any] = self._serve_nobody

    def _compile(self, *definitions: str) -> Any:
        module = self.xp.RawModule(code=kernel_source(), options=("--std=c++17", *definitions))
        module.compile()  # now, for by itself it does so at the first launch, in mid-pass
        return module

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have what this thread asks for done on this device and its stream.

        One thread at a time: what others queue while a graph is captured would become part of it.
        """
        with self._lock, self._context, self.stream:
            yield

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.stream.synchronize()

    def run(self, name: str, count: int, *arguments: Any) -> None:
        """Run a kernel with one thread per number, of which there are ``count``.

        Whole numbers are passed as int32, others as float32, arrays as their addresses, structures
        (NumPy arrays of one) by value.
        """
        self.run_blocks(name, -(-count // BLOCK), *arguments)

    def run_wide(self, name: str, count: int, *arguments: Any) -> None:
        """Run a kernel with one thread per 16 bytes of ``count`` numbers: see ``load`` there."""
        wide = WIDE_BYTES // (HALF if _has_halves(arguments) else SINGLE).itemsize
        self.run_blocks(name, -(-count // (BLOCK * wide)), *arguments)

    def run_blocks(self, name: str, blocks: int, *arguments: Any) -> None:
        """Run a kernel with that many blocks; its ``real`` is what an array of 16 bits says."""
        key = (name, HALF if _has_halves(arguments) else SINGLE)
        if key not in self._kernels:
            self._kernels[key] = self._modules[key[1]].get_function(name)
        self._kernels[key]((blocks,), (BLOCK,), tuple(_argument(each) for each in arguments))

    def gemm(self, a: Any, b: Any, out: Any, add: bool = False, factor: float = 1.0) -> None:
        """Set ``out = factor * a @ b``, or add that to it; see :meth:`CuBlas.gemm`."""
        self._blas.gemm(a, b, out, add, factor)

    def pinned(self, size: int) -> Array:
        """Return bytes of host memory that is copied to the device without a detour."""
        with self._context:  # threads that read ahead would pin it for GPU 0
            memory = self.xp.cuda.alloc_pinned_memory(size)
        array: Array = np.frombuffer(memory, np.uint8, size)
        return array

    # -- forms ---------------------------------------------------------------------------

    def channels_last(self, shape: Sequence[int]) -> Form:
        """Return how a convolution's blob of that shape lies."""
        return ChannelsLast.of(shape) if self.precision.channels_last else None

    def form(self, storage: Storage) -> Form:
        """Return how a storage's numbers lie, or will."""
        native = storage.native
        return native.form if isinstance(native, DeviceArray) else None

    def image_form(self, blob: Blob) -> Form:
        """Return how a blob's numbers lie if its shape is the one they lie by, else None."""
        form = self.form(blob.data_storage)
        return form if form and form == ChannelsLast.of(blob.shape) else None

    def diff_scale(self, form: Form) -> float:
        """Return what gradients in a form are multiplied by."""
        return self.precision.diff_scale if form else 1.0

    def assign(self, blob: Blob, form: Form) -> None:
        """Have a blob's data and diff lie in a form from now on."""
        scales = (1.0, self.diff_scale(form))
        for storage, scale in zip((blob.data_storage, blob.diff_storage), scales, strict=True):
            if not self._has(storage) or self.form(storage) != form:
                storage.bind(DeviceArray(self, form=form, scale=scale))

    def empty(self, form: ChannelsLast) -> Any:
        """Return a flat array for numbers in a form."""
        return self.xp.empty(form.count, HALF if self.precision.is_half else SINGLE)

    def pack(self, plain: Any, array: Any, form: ChannelsLast, factor: float = 1.0) -> None:
        """Set an array in a form to ``factor`` times plain numbers."""
        if form.is_in_order:
            self.run_wide("pack_in_order", form.count, plain, array, float(factor), form.count)
        else:
            tiles, blocks = _tiles(form)
            self.run_blocks("pack", blocks, plain, array, float(factor), tiles)

    def unpack(
        self, array: Any, plain: Any, form: ChannelsLast, factor: float = 1.0, add: bool = False
    ) -> None:
        """Set plain numbers to ``factor`` times those of an array in a form, or add to them."""
        settings = (float(factor), add)
        if form.is_in_order:
            self.run_wide("unpack_in_order", form.count, array, plain, *settings, form.count)
        else:
            tiles, blocks = _tiles(form)
            self.run_blocks("unpack", blocks, array, plain, *settings, tiles)

    def plain(self, native: DeviceArray) -> Any:
        """Return numbers as plain ones: the array itself if it is plain, else a copy."""
        if native.form is None:
            return native.array
        copy = self.xp.empty(native.form.count, np.float32)
        self.unpack(native.array, copy, native.form, 1 / native.scale)
        return copy

    # -- blobs ---------------------------------------------------------------------------

    def bring(self, storage: Storage) -> DeviceArray:
        """Return a storage's numbers on the device, up to date."""
        if not self._has(storage):
            storage.bind(DeviceArray(self))
        native = storage.native
        assert isinstance(native, DeviceArray)
        if native.array is None:
            self._refuse_capture("memory that is not on the device yet")
            with self.active():
                native.array = self._memory(storage, native.form)
        if storage.truth is Truth.ZERO:
            with self.active():
                if native.group is None or not native.group.fill_zeros():
                    native.array.fill(0)
                    storage.truth = Truth.NATIVE
        elif storage.truth is Truth.HOST:
            self._refuse_capture("numbers that are on the host")
            storage.native_read()
        return native

    def bring_all(self, storages: Iterable[Storage]) -> None:
        """Bring storages up to date that have memory on the device."""
        native, both = Truth.NATIVE, Truth.BOTH
        for storage in storages:
            # Nearly all are, in nearly all passes, and a small net's pass takes little more time.
            if storage.truth is not native and storage.truth is not both:
                self.bring(storage)

    @contextmanager
    def serving(
        self, touched: dict[int, Storage], only_read: Sequence[Storage] = ()
    ) -> Iterator[None]:
        """Give layers that this thread runs their blobs' arrays on the device.

        Those that ask by ``blob.data`` get plain ones. Where an array lies in another form than
        the one asked for, it is a copy, which is copied back afterwards; or memory for one with
        any content, if the layer is going to overwrite it all.

        Args:
            touched: receives the storages that a layer asked for; they count as written.
            only_read: those that it does not write.
        """
        copies: dict[tuple[int, Form], tuple[Storage, Any, float]] = {}

        def serve(
            storage: Storage, form: Form = None, scale: float = 1.0, overwrites: bool = False
        ) -> Any:
            native = self.bring(storage)
            touched[id(storage)] = storage
            storage.native_overwrite()
            if native.form == form:
                return native.array
            if (id(storage), form) not in copies:
                copy = (
                    self._memory(storage, form) if overwrites else self._copy(native, form, scale)
                )
                copies[id(storage), form] = (storage, copy, scale)
            return copies[id(storage), form][1]

        with self.active():
            before = serving.array, self.serve
            serving.array = self.serve = serve
            try:
                yield
            finally:
                serving.array, self.serve = before
            for (_, form), (storage, copy, scale) in copies.items():
                if not any(storage is each for each in only_read):
                    self._copy_back(copy, form, scale, storage)

    def _memory(self, storage: Storage, form: Form) -> Any:
        return self.empty(form) if form else self.xp.empty(storage.count, storage.dtype)

    def _copy(self, native: DeviceArray, form: Form, scale: float) -> Any:
        plain = self.plain(native)
        if form is None:
            return plain
        copy = self.empty(form)
        self.pack(plain, copy, form, scale)
        return copy

    def _copy_back(self, copy: Any, form: Form, scale: float, storage: Storage) -> None:
        native = self.bring(storage)
        plain = self.plain(DeviceArray(self, copy, form=form, scale=scale))
        if native.form is None:
            native.array[...] = plain
        else:
            self.pack(plain, native.array, native.form, native.scale)

    def _has(self, storage: Storage) -> bool:
        native = storage.native
        return isinstance(native, DeviceArray) and native.device is self

    @staticmethod
    def _serve_nobody(storage: Storage, form: Form = None, scale: float = 1.0) -> Any:
        raise AssertionError("no layer runs")

    # -- graphs --------------------------------------------------------------------------

    def capture(self, works: Sequence[Callable[[], None]], pool: Any) -> Any:
        """Return pieces of work as one graph, which have not run then.

        Args:
            works: what to capture.
            pool: where their temporary memory comes from; it has to live as long as the graph.

        Raises:
            CapturingError: one of them needs the host.
        """
        with (
            self.active(),
            self.xp.cuda.using_allocator(pool.malloc),
            _no_garbage_collection(),
        ):
            self.stream.begin_capture()
            self._captures = True
            try:
                for work in works:
                    work()
            except BaseException:
                with suppress(RuntimeError):  # says again that something went wrong
                    self.stream.end_capture()
                raise
            finally:
                self._captures = False
            return self.stream.end_capture()

    def take_pool(self) -> Any:
        """Return a pool of memory for the graphs of a plan."""
        # CuPy loses the free memory of a pool that is dropped: so they are used again.
        with self.active():
            for pool in self._idle_pools:
                pool.free_all_blocks()
            return self._idle_pools.pop() if self._idle_pools else self.xp.cuda.MemoryPool()

    def return_pool(self, pool: Any) -> None:
        """Take back a pool whose graphs are gone."""
        self._idle_pools.append(pool)

    def _refuse_capture(self, what: str) -> None:
        if self._captures:
            raise CapturingError(f"a captured pass cannot use {what}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Let Python look for no cycles: what has memory, modules or graphs may not go in a capture."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _has_halves(arguments: Sequence[Any]) -> bool:
    return any(getattr(each, "dtype", None) == HALF for each in arguments)


def _argument(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value
