"""Blobs: the N-dimensional arrays that layers read and write.

A :class:`Blob` is a shape over two :class:`Storage` objects, one for the data
and one for the diff (the gradient). Blobs may share a storage and still have
different shapes: the tops of Split, Flatten and Reshape share their bottom's
data, and parameters with one name share both.

A storage knows where its truth is, as Caffe's synced memory does. It lives in
a host array (C order, the net's dtype), in an engine's own buffer (blocked
memory, a device), or in both; whoever asks gets it moved there first.

``blob.data`` may be kept: it is always the same memory. A storage knows while
somebody holds such an array (or any view of it); before an engine runs, what
the holder wrote is taken for the truth, and after that the results are brought
into the array. Where nobody holds one this costs nothing.
"""

from __future__ import annotations

import enum
import math
import operator
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from protocaffe.errors import NetError

Array = npt.NDArray[Any]

MAX_AXES = 32


class NativeBuffer(Protocol):
    """An engine's own copy of a storage, in whatever layout the engine likes."""

    def host_view(self) -> Array | None:
        """Return the buffer as a flat host array if its layout is the host's, else None."""

    def load(self, host: Array) -> None:
        """Take over the flat host array's values."""

    def store(self, host: Array) -> None:
        """Write the values into the flat host array."""

    def forget_host(self) -> None:
        """Let go of the host array, if it is remembered for the next load or store."""


class Truth(enum.Enum):
    """Which copy of a storage is up to date."""

    ZERO = "nowhere: never written, reads as zeros"
    HOST = "the host array"
    NATIVE = "the engine's buffer"
    BOTH = "both copies agree"
    LOST = "nowhere any more: the memory serves other blobs now"


class Serving(threading.local):
    """Who gives a layer that this thread runs the arrays of its blobs; None: the host's arrays.

    An engine whose layers compute elsewhere sets it while one of them runs.
    """

    array: Callable[[Storage], Any] | None = None


serving = Serving()


class Storage:
    """``count`` numbers, on the host, in an engine's buffer, or both.

    Attributes:
        count: how many numbers.
        dtype: their NumPy type.
        native: the engine's buffer, if an engine has bound one.
        truth: which copy is up to date.
        version: rises with every access that may write; what was worked out from the numbers
            holds as long as it is the same.
        handed_out: the array that :meth:`array` returned, as long as somebody has it or a view.
    """

    __slots__ = ("_host", "_whole", "count", "dtype", "handed_out", "native", "truth", "version")

    def __init__(self, count: int, dtype: npt.DTypeLike = np.float32) -> None:
        self.count = count
        self.dtype = np.dtype(dtype)
        self.native: NativeBuffer | None = None
        self.truth = Truth.ZERO
        self.version = 0
        self._host: Array | None = None
        self._whole: Array | None = None  # of what was handed out; larger after a reshape to less
        self.handed_out: weakref.ref[Array] | None = None

    def __repr__(self) -> str:
        return f"Storage({self.count}, {self.dtype}, {self.truth.name})"

    def array(self) -> Array:
        """Return the flat array for somebody who may keep it, read it and write to it.

        It is the host's, but for layers that an engine runs elsewhere (see :class:`Serving`).
        """
        if serving.array is not None:
            served: Array = serving.array(self)
            return served
        host = self.host_write()
        held = self._holders_array()
        if held is None:
            # Views of an array whose memory is not another array's keep that array alive.
            held = np.asarray(host.data)
            self.handed_out, self._whole = weakref.ref(held), host
        return held[: self.count]

    @property
    def is_held(self) -> bool:
        """Whether somebody still has an array that :meth:`array` returned, or a view of it."""
        return self._holders_array() is not None

    def take_from_holders(self) -> None:
        """Make what holders may have written the truth."""
        if self.is_held:
            self.host_write()

    def give_to_holders(self) -> None:
        """Bring the truth into the holders' arrays."""
        if self.is_held:
            self.host_read()

    def resized(self, count: int) -> Storage:
        """Return storage for another count; fewer numbers keep their values.

        While somebody holds an array that is large enough, it stays the memory.
        """
        new = Storage(count, self.dtype)
        held = self._holders_array()
        if held is not None and self._whole is not None and count <= held.size:
            self.host_read()
            new.handed_out, new._whole = self.handed_out, self._whole
            new._host = self._whole[:count]
            new.truth = Truth.HOST
        elif count < self.count and self.truth not in (Truth.ZERO, Truth.LOST):
            new.host_overwrite()[:] = self.host_read()[:count]
        return new

    def host_read(self) -> Array:
        """Return the flat host array, up to date; the caller promises not to write to it."""
        truth = self.truth
        if truth is Truth.HOST or truth is Truth.BOTH:
            assert self._host is not None
            return self._host
        if truth is Truth.LOST:
            raise NetError(
                "these numbers are gone: the net was made to reuse the memory of blobs that "
                "nothing needs any more; make it without reuse_memory to look at them"
            )
        host = self.host_memory()
        if truth is Truth.ZERO:
            host.fill(0)
            self.truth = Truth.HOST
        else:
            assert self.native is not None
            if not self._host_is_native():
                self.native.store(host)
            self.truth = Truth.BOTH
        return host

    def leave_native(self) -> None:
        """Give up the engine's buffer, and numbers that are only there."""
        if self.truth in (Truth.NATIVE, Truth.LOST):
            self.truth = Truth.ZERO
        elif self.truth is Truth.BOTH:
            self.truth = Truth.HOST
        self.native = None

    def host_write(self) -> Array:
        """Return the flat host array, up to date; what is written there becomes the truth."""
        host = self.host_read()
        self.truth = Truth.HOST
        self.version += 1
        return host

    def host_overwrite(self) -> Array:
        """Return the flat host array with any content; the caller fills it completely."""
        host = self.host_memory()
        self.truth = Truth.HOST
        self.version += 1
        return host

    def native_read(self) -> Any:
        """Bring the truth to the engine's buffer and return that buffer."""
        truth = self.truth
        if truth is Truth.HOST:
            assert self.native is not None
            if not self._host_is_native():
                self.native.load(self.host_read())
            self.truth = Truth.BOTH
        elif truth is Truth.ZERO:
            self.host_read()
            return self.native_read()
        return self.native

    def native_overwrite(self) -> Any:
        """Return the engine's buffer with any content; what is written there becomes the truth."""
        self.truth = Truth.NATIVE
        self.version += 1
        return self.native

    def native_write(self) -> Any:
        """Return the engine's buffer, up to date; what is written there becomes the truth.

        The host's copy is given up for its memory, unless somebody holds it.
        """
        native = self.native_read()
        if not (self._host_is_native() or self.is_held):
            self._host = self._whole = self.handed_out = None
            native.forget_host()
        self.truth = Truth.NATIVE
        self.version += 1
        return native

    def bind(self, native: NativeBuffer | None) -> None:
        """Give the storage another engine buffer (None for none), keeping its values."""
        if native is self.native:
            return
        if self.truth is Truth.NATIVE:
            self.host_read()
        if self.truth is Truth.BOTH:
            self.truth = Truth.HOST
        old_host, self.native = self._host, native
        view = native.host_view() if native is not None else None
        if view is None or self.is_held:
            # A host array that was the old native buffer's own memory is left to that buffer.
            return
        if self.truth is Truth.HOST and old_host is not None and old_host is not view:
            view[:] = old_host
        self._host = view

    def zero(self) -> None:
        """Make every number 0 without touching memory until somebody reads."""
        self.truth = Truth.ZERO
        self.version += 1
        self.give_to_holders()

    def host_memory(self) -> Array:
        """Return the flat host array with any content, without making it the truth."""
        if self._host is None:
            self._host = aligned_empty(self.count, self.dtype)
        return self._host

    def _host_is_native(self) -> bool:
        view = self.native.host_view() if self.native is not None else None
        return view is not None and view is self._host

    def _holders_array(self) -> Array | None:
        held = None if self.handed_out is None else self.handed_out()
        if held is None:
            self.handed_out = None  # whoever goes through many storages asks this one no more
        return held


def aligned_empty(count: int, dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised flat array, aligned to 64 bytes and followed by zeros up to there.

    NumPy promises 16 bytes only, which costs vector kernels up to a tenth of their speed; and
    kernels over blocked channels read whole vectors beyond the end.
    """
    dtype = np.dtype(dtype)
    size = count * dtype.itemsize
    padded = -(-size // ALIGNMENT) * ALIGNMENT
    raw = np.empty(padded + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    raw[start + size : start + padded] = 0
    return raw[start : start + size].view(dtype)


ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vectors."""


class Blob:
    """An N-dimensional array with a gradient beside it.

    Args:
        shape: the extents, at most 32 of them; ``()`` is a scalar of count 1.
        dtype: ``float32`` unless told otherwise.

    ``data`` and ``diff`` are NumPy arrays of that shape and never copies: write into them with
    ``blob.data[...] = x``, or keep one and find there what the net computed last.
    """

    changes: ClassVar[int] = 0
    """Rises whenever any blob is made or gets another shape or storage: nets look only then."""

    def __init__(self, shape: Iterable[int] = (0,), dtype: npt.DTypeLike = np.float32) -> None:
        self.shape = _checked_shape(shape)
        self.data_storage = Storage(self.count, dtype)
        self.diff_storage = Storage(self.count, dtype)
        Blob.changes += 1

    def __repr__(self) -> str:
        return f"Blob(shape={self.shape}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.data, self.diff)  # a copy has memory of its own

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of data and diff."""
        return self.data_storage.dtype

    @property
    def count(self) -> int:
        """The number of elements, the product of the extents."""
        return math.prod(self.shape)

    @property
    def num_axes(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def data(self) -> Array:
        """The values on the host, in ``shape``; may be kept and written to."""
        return self.data_storage.array().reshape(self.shape)

    @data.setter
    def data(self, values: npt.ArrayLike) -> None:
        assign(self.data, values, "the blob's data")

    @property
    def diff(self) -> Array:
        """The gradient on the host, in ``shape``; may be kept and written to."""
        return self.diff_storage.array().reshape(self.shape)

    @diff.setter
    def diff(self, values: npt.ArrayLike) -> None:
        assign(self.diff, values, "the blob's diff")

    @property
    def num(self) -> int:
        """Legacy name of axis 0 (1 if there is none)."""
        return self.legacy_shape(0)

    @property
    def channels(self) -> int:
        """Legacy name of axis 1 (1 if there is none)."""
        return self.legacy_shape(1)

    @property
    def height(self) -> int:
        """Legacy name of axis 2 (1 if there is none)."""
        return self.legacy_shape(2)

    @property
    def width(self) -> int:
        """Legacy name of axis 3 (1 if there is none)."""
        return self.legacy_shape(3)

    def legacy_shape(self, axis: int) -> int:
        """Return the extent of one of the four legacy axes, counted from the front.

        Raises:
            NetError: the blob has more than four axes.
        """
        if self.num_axes > 4:
            raise NetError(
                f"num, channels, height and width exist only for blobs of up to 4 axes; "
                f"this one has shape {self.shape}"
            )
        return self.shape[axis] if axis < self.num_axes else 1

    def reshape(self, *shape: int | Iterable[int]) -> None:
        """Change the shape, as ``reshape(2, 3)`` or ``reshape((2, 3))``.

        Values are kept while the count stays the same or falls. With another count the blob
        gets storage of its own and shares nothing any more; with a larger one it reads as zeros.
        """
        extents: Iterable[int]
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            extents = shape[0]
        else:
            extents = shape  # type: ignore[assignment]
        shape_before, self.shape = self.shape, _checked_shape(extents)
        if self.shape != shape_before:
            Blob.changes += 1
        count = self.count
        if count != self.data_storage.count:
            self.data_storage = self.data_storage.resized(count)
        if count != self.diff_storage.count:
            self.diff_storage = self.diff_storage.resized(count)

    def move_back(self, data: Storage, diff: Storage) -> None:
        """Use storages again that were the blob's before it was reshaped to and fro."""
        if self.data_storage is not data:
            data.host_overwrite()[:] = self.data_storage.host_read()
            self.data_storage, self.diff_storage = data, diff

    def share_data(self, other: Blob) -> None:
        """Use the other blob's data from now on (equal counts)."""
        self._check_count(other)
        if self.data_storage is not other.data_storage:
            self.data_storage = other.data_storage
            Blob.changes += 1

    def share_diff(self, other: Blob) -> None:
        """Use the other blob's diff from now on (equal counts)."""
        self._check_count(other)
        if self.diff_storage is not other.diff_storage:
            self.diff_storage = other.diff_storage
            Blob.changes += 1

    def _check_count(self, other: Blob) -> None:
        if other.count != self.count:
            raise NetError(
                f"blobs can share memory only with equal counts; "
                f"{self.shape} has {self.count} and {other.shape} has {other.count}"
            )


def _restored(data: Array, diff: Array) -> Blob:
    """Return a blob with these values: a copied or unpickled one."""
    blob = Blob(data.shape, data.dtype)
    blob.data, blob.diff = data, diff
    return blob


def assign(target: Array, values: npt.ArrayLike, what: str) -> None:
    """Copy values into an array; they may have fewer axes or extents of 1, but as many rows.

    Raises:
        NetError: they do not fit; ``what`` says where they should go.
    """
    try:
        given = np.asarray(values)
        if given.dtype.kind in "cSU":
            raise TypeError
        numbers = given.astype(target.dtype, copy=False)
    except (TypeError, ValueError):
        raise NetError(f"{what} takes numbers in an array of shape {target.shape}") from None
    fits = not target.ndim or not given.ndim or given.shape[0] == target.shape[0]
    try:
        if fits and values is not None:
            target[...] = numbers
            return
    except ValueError:
        pass
    raise NetError(f"{what} has shape {target.shape}; values of shape {given.shape} do not fit")


def _checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    try:
        extents = tuple(operator.index(extent) for extent in shape)
    except TypeError:
        raise NetError(f"a blob's extents are whole numbers; got {shape!r}") from None
    if len(extents) > MAX_AXES:
        raise NetError(f"a blob has at most {MAX_AXES} axes; {len(extents)} were asked for")
    if any(extent < 0 for extent in extents):
        raise NetError(f"a blob's extents cannot be negative; got {extents}")
    if math.prod(extents) > 2**31 - 1:
        raise NetError(
            f"a blob holds at most 2^31-1 numbers; shape {extents} has {math.prod(extents)}"
        )
    return extents
