"""Memory descriptors, arrays in oneDNN's layouts, and bound primitives.

A *descriptor* (:class:`Layout`) says how numbers lie in memory, an *array*
(:class:`NativeArray`) is such memory, and a *primitive* is one operation bound to its arrays
for good: calling it allocates nothing.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_float, c_int64, c_void_p
from functools import partial
from typing import Any

import numpy as np

from protocaffe.blob import Array, aligned_empty
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.pool import Buffer


class OneDnnError(RuntimeError):
    """A oneDNN call failed for a reason other than 'not implemented'."""


class Runtime:
    """The library with its one engine and one stream."""

    def __init__(self) -> None:
        self.library = dnn.load()
        self.engine = c_void_p()
        self.check("engine_create", byref(self.engine), 1, 0)
        self.stream = c_void_p()
        self.check("stream_create", byref(self.stream), self.engine, 1)

    def call(self, name: str, *arguments: Any) -> int:
        """Call ``dnnl_<name>`` and return its status."""
        return int(getattr(self.library, f"dnnl_{name}")(*arguments))

    def check(self, name: str, *arguments: Any) -> None:
        """Call ``dnnl_<name>``; any status but success is an error."""
        status = self.call(name, *arguments)
        if status != dnn.OK:
            raise OneDnnError(f"dnnl_{name} failed with status {status}")


def _own(owner: object, destroy: Any, handle: c_void_p) -> None:
    """Destroy the handle with its owner (at interpreter exit the process frees everything)."""
    weakref.finalize(owner, destroy, handle).atexit = False


def dims(values: Sequence[int]) -> Any:
    """Return the numbers as the ``dnnl_dims_t`` that calls take."""
    return (c_int64 * len(values))(*values)


def can_describe(shape: Sequence[int]) -> bool:
    """Whether oneDNN knows shapes with so many axes: not a single number, and 12 at most."""
    return 1 <= len(shape) <= dnn.MAX_AXES


class Layout:
    """A memory descriptor: logical shape plus the order of its elements in memory.

    Attributes:
        shape: the logical extents.
        dtype: the type of the numbers, ``F32`` or ``BF16``.
        is_plain: whether they lie as on the host (C order, no padding, float32).
        size: how many floats the memory needs, padding included.
    """

    def __init__(
        self, runtime: Runtime, handle: c_void_p, shape: Sequence[int], dtype: int = dnn.F32
    ) -> None:
        self.runtime = runtime
        self.handle = handle
        self.shape = tuple(shape)
        self.dtype = dtype
        _own(self, runtime.library.dnnl_memory_desc_destroy, handle)

    @classmethod
    def plain(cls, runtime: Runtime, shape: Sequence[int], dtype: int = dnn.F32) -> Layout:
        """C order, as the host has it; shapes that oneDNN has no axes for are described flat."""
        extents = shape if can_describe(shape) else (math.prod(shape),)
        strides = [1] * len(extents)
        for axis in reversed(range(len(extents) - 1)):
            strides[axis] = strides[axis + 1] * extents[axis + 1]
        handle = c_void_p()
        runtime.check(
            "memory_desc_create_with_strides",
            *(byref(handle), len(extents), dims(extents), dtype, dims(strides)),
        )
        return cls(runtime, handle, shape, dtype)

    @classmethod
    def tagged(
        cls, runtime: Runtime, shape: Sequence[int], tag: int, dtype: int = dnn.F32
    ) -> Layout:
        """The layout of a format tag."""
        handle = c_void_p()
        runtime.check(
            "memory_desc_create_with_tag",
            *(byref(handle), len(shape), dims(shape), dtype, tag),
        )
        return cls(runtime, handle, shape, dtype)

    @classmethod
    def any(cls, runtime: Runtime, shape: Sequence[int], dtype: int = dnn.F32) -> Layout:
        """A layout left to the primitive's choice."""
        return cls.tagged(runtime, shape, dnn.TAG_ANY, dtype)

    @classmethod
    def blocked(cls, runtime: Runtime, shape: Sequence[int], dtype: int = dnn.F32) -> Layout:
        """Channels in blocks of 16 (nChw16c), which convolutions are fastest with."""
        return cls.tagged(runtime, shape, dnn.TAG_NCHW16C, dtype)

    @classmethod
    def channels_last(cls, runtime: Runtime, shape: Sequence[int], dtype: int = dnn.F32) -> Layout:
        """All channels of a pixel together (NHWC), for counts that would waste much of a block."""
        return cls.tagged(runtime, shape, dnn.TAG_NHWC, dtype)

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> Layout | None:
        """Describe a box of this memory, or None where blocks would be cut."""
        handle = c_void_p()
        status = self.runtime.call(
            "memory_desc_create_submemory", byref(handle), self.handle, dims(shape), dims(offset)
        )
        return None if status != dnn.OK else Layout(self.runtime, handle, shape, self.dtype)

    @property
    def size(self) -> int:
        """Number of floats, padding included (memory of smaller numbers is rounded up)."""
        return -(-int(self.runtime.library.dnnl_memory_desc_get_size(self.handle)) // 4)

    @property
    def has_padding(self) -> bool:
        """Whether the memory has more numbers than the shape."""
        return self.size != -(-math.prod(self.shape) * (2 if self.dtype == dnn.BF16 else 4) // 4)

    @property
    def is_plain(self) -> bool:
        """Whether the numbers lie as on the host."""
        return self == Layout.plain(self.runtime, self.shape)

    def __str__(self) -> str:
        known = {"plain": Layout.plain}
        if len(self.shape) == 4:
            known |= {"nChw16c": Layout.blocked, "nhwc": Layout.channels_last}
        names = [
            n for n, make in known.items() if self == make(self.runtime, self.shape, self.dtype)
        ]
        return (names[0] if names else "other") + (" bf16" if self.dtype == dnn.BF16 else "")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        same = self.runtime.library.dnnl_memory_desc_equal(self.handle, other.handle)
        return bool(same)

    __hash__ = None  # type: ignore[assignment]


class NativeArray:
    """Floats in a layout, known to oneDNN; a storage's ``native`` buffer.

    Args:
        layout: how the numbers lie.
        values: flat memory to use (at least ``layout.size`` floats), or a buffer that others use
            too or that has no place yet; new memory without it.
    """

    def __init__(self, layout: Layout, values: Array | Buffer | None = None) -> None:
        runtime = layout.runtime
        self.layout = layout
        self.is_plain = layout.is_plain
        if values is None:
            values = aligned_empty(layout.size, np.float32)
            if not self.is_plain:
                values.fill(0)  # padding must hold zeros, and stays so
        self.buffer = values if isinstance(values, Buffer) else Buffer(layout.size, values)
        self.memory = c_void_p()
        runtime.check("memory_create", byref(self.memory), layout.handle, runtime.engine, None)
        _own(self, runtime.library.dnnl_memory_destroy, self.memory)
        self.buffer.when_placed(self._point_at)
        self._transfers: dict[str, tuple[Array, Primitive]] = {}

    @property
    def values(self) -> Array:
        """The flat memory; asking for it settles where it is."""
        return self.buffer.values

    def seen_as(self, layout: Layout) -> NativeArray:
        """Return the same memory in another layout."""
        return NativeArray(layout, self.buffer)

    def host_view(self) -> Array | None:
        """The flat values, if they lie as on the host."""
        return self.values if self.is_plain else None

    def _point_at(self, values: Array) -> None:
        self.layout.runtime.check("memory_set_data_handle", self.memory, values.ctypes.data)

    def load(self, host: Array) -> None:
        """Reorder the host's flat array into this layout."""
        self._transfer("load", host)()

    def store(self, host: Array) -> None:
        """Reorder into the host's flat array."""
        self._transfer("store", host)()

    def forget_host(self) -> None:
        """Drop the reorders from and to the host array."""
        self._transfers.clear()

    def _transfer(self, way: str, host: Array) -> Primitive:
        known = self._transfers.get(way)
        if known is None or known[0] is not host:
            plain = NativeArray(Layout.plain(self.layout.runtime, self.layout.shape), host)
            ends = (plain, self) if way == "load" else (self, plain)
            known = self._transfers[way] = (host, reorder(*ends))
        return known[1]


class Attributes:
    """Primitive attributes: post-operations and runtime scales, freed with this object."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.handle = c_void_p()
        runtime.check("primitive_attr_create", byref(self.handle))
        _own(self, runtime.library.dnnl_primitive_attr_destroy, self.handle)
        self._post_ops = c_void_p()
        runtime.check("post_ops_create", byref(self._post_ops))
        _own(self, runtime.library.dnnl_post_ops_destroy, self._post_ops)

    def eltwise(self, algorithm: int, alpha: float = 0.0, beta: float = 0.0) -> Attributes:
        """Apply an element-wise function to the result, as the next post-operation."""
        return self._post_op("post_ops_append_eltwise", algorithm, alpha, beta)

    def accumulate(self, scale: float) -> Attributes:
        """Add ``scale`` times the destination's old content to the result."""
        return self._post_op("post_ops_append_sum", scale, 0, dnn.UNDEF)

    def binary(self, algorithm: int, operand: Layout) -> Attributes:
        """Combine the result with an array given at execution, as the next post-operation."""
        return self._post_op("post_ops_append_binary", algorithm, operand.handle)

    def runtime_scales(self, argument: int) -> Attributes:
        """Multiply an argument by a number given at each execution."""
        self.runtime.check("primitive_attr_set_scales_mask", self.handle, argument, 0)
        return self

    def _post_op(self, name: str, *arguments: Any) -> Attributes:
        self.runtime.check(name, self._post_ops, *arguments)
        self.runtime.check("primitive_attr_set_post_ops", self.handle, self._post_ops)
        return self


class Operation:
    """A primitive descriptor: an operation with its layouts settled, not yet bound to memory."""

    def __init__(self, runtime: Runtime, handle: c_void_p) -> None:
        self.runtime = runtime
        self.handle = handle
        _own(self, runtime.library.dnnl_primitive_desc_destroy, handle)

    def layout(self, what: int, shape: Sequence[int], dtype: int = dnn.F32) -> Layout:
        """Return the layout chosen for one of the operation's memories, whose type is known."""
        borrowed = self.runtime.library.dnnl_primitive_desc_query_md(self.handle, what, 0)
        handle = c_void_p()
        self.runtime.check("memory_desc_clone", byref(handle), borrowed)
        return Layout(self.runtime, handle, shape, dtype)

    @property
    def implementation(self) -> str:
        """The name of the chosen implementation, e.g. ``jit:avx512_core``."""
        text = ctypes.c_char_p()
        self.runtime.check(
            "primitive_desc_query", self.handle, dnn.QUERY_IMPLEMENTATION, 0, byref(text)
        )
        return (text.value or b"").decode()

    @property
    def is_reference(self) -> bool:
        """Whether only the slow reference code (10 to 1000 times slower) can do it."""
        return "ref" in self.implementation


def operation(runtime: Runtime, kind: str, *arguments: Any) -> Operation | None:
    """Create the primitive descriptor ``kind``, or return None where it is not implemented.

    Layouts, operations and attributes may be given as they are; None stands for NULL.
    """
    handle = c_void_p()
    plain = [each.handle if hasattr(each, "handle") else each for each in arguments]
    status = runtime.call(f"{kind}_primitive_desc_create", byref(handle), runtime.engine, *plain)
    if status == dnn.OK:
        return Operation(runtime, handle)
    if status == dnn.UNIMPLEMENTED:
        return None
    raise OneDnnError(f"dnnl_{kind}_primitive_desc_create failed with status {status}")


class Primitive:
    """An operation bound to its arrays; calling it runs it, and allocates nothing.

    Attributes:
        title: what it is, for people: by default, which code of oneDNN does it.
        operands: the arrays.
        call: runs it and returns oneDNN's status; this object must be kept.
        primitives: itself alone, as other pieces of work have several.
    """

    def __init__(
        self, made_from: Operation, arrays: Mapping[int, NativeArray | None], title: str = ""
    ) -> None:
        runtime = made_from.runtime
        self.title = title or made_from.implementation
        bound = [(arg, array) for arg, array in arrays.items() if array is not None]
        self.operands = [array for _, array in bound]
        self._arguments = (dnn.ExecArg * len(bound))(
            *(dnn.ExecArg(arg, array.memory) for arg, array in bound)
        )
        self._primitive = c_void_p()
        runtime.check("primitive_create", byref(self._primitive), made_from.handle)
        _own(self, runtime.library.dnnl_primitive_destroy, self._primitive)
        execute = runtime.library.dnnl_primitive_execute
        self.call: Callable[[], int] = partial(
            execute, self._primitive, runtime.stream, len(bound), self._arguments
        )

    @property
    def primitives(self) -> list[Primitive]:
        """Itself."""
        return [self]

    def __call__(self) -> None:
        """Run it."""
        status = self.call()
        if status != dnn.OK:
            raise OneDnnError(f"dnnl_primitive_execute failed with status {status}")


def reorder(source: NativeArray, target: NativeArray) -> Primitive:
    """Return the copy from one array into another of the same shape and any layout."""
    runtime = source.layout.runtime
    handle = c_void_p()
    runtime.check(
        "reorder_primitive_desc_create",
        *(byref(handle), source.layout.handle, runtime.engine),
        *(target.layout.handle, runtime.engine, None),
    )
    arrays = {dnn.ARG_SRC: source, dnn.ARG_DST: target}
    title = f"reorder {source.layout} to {target.layout}"
    return Primitive(Operation(runtime, handle), arrays, title)


def summation(
    sources: Sequence[NativeArray], target: NativeArray, coefficients: Sequence[float] = ()
) -> Primitive:
    """Return ``target = sum of coefficient * source`` (all 1 without them).

    The target may be the first source.
    """
    runtime = target.layout.runtime
    scales = (c_float * len(sources))(*(coefficients or [1.0] * len(sources)))
    layouts = (c_void_p * len(sources))(*(each.layout.handle for each in sources))
    made = operation(runtime, "sum", target.layout, len(sources), scales, layouts, None)
    if made is None:
        raise OneDnnError("no implementation of sum for these layouts")
    arrays: dict[int, NativeArray | None] = {dnn.ARG_DST: target}
    arrays |= {dnn.ARG_MULTIPLE_SRC + i: each for i, each in enumerate(sources)}
    return Primitive(made, arrays)
