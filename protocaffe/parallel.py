"""NumPy on all cores: parts of an array at the same time, each in a thread of its own.

NumPy gives up Python's global lock while it computes, so plain threads are enough. The BLAS
behind it must then keep to one thread: two pools of threads on the same cores wait for each
other, OpenBLAS's and OpenMP's (oneDNN) even more than two of a kind.

How many threads there are follows OMP_NUM_THREADS, as oneDNN does, or else the cores that this
process may use. With the same number of threads the same numbers come out, to the last bit.

Everything takes the array module that the caller computes with; for any but NumPy the work is
done at once, in the caller's thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Result = TypeVar("Result")

CHUNK = 1 << 18
"""Numbers of each array that are worked on at a time.

With fewer, threads spend their time waiting for Python's lock; more do not fit the caches.
"""

LEAST_COUNT = 1 << 16
"""Work on fewer numbers is done before another thread has woken up."""

LEAST_PRODUCTS = 1 << 22
"""The same for the multiply-adds of a matrix product."""

PRODUCT_CHUNK = 1 << 18
"""Numbers of a matrix product that are made before they are added to others."""

_is_part: ContextVar[bool] = ContextVar("_is_part", default=False)


@cache
def num_threads() -> int:
    """Return how many threads compute."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each_part(xp: Any, count: int, numbers: int, work: Callable[[slice], Result]) -> list[Result]:
    """Cut ``range(count)`` into slices, call ``work`` with all of them at once; return its results.

    The results are in the order of the slices. There is one slice for each thread; or one in
    all, if there is little to do, for other arrays than NumPy's, and within a part.

    Args:
        xp: the array module that the work computes with.
        count: how many there are of what the work is cut along.
        numbers: how many numbers the work reads and writes, roughly.
        work: called in several threads.
    """
    parts = min(count, num_threads())
    if parts < 2 or numbers < LEAST_COUNT or xp is not np or _is_part.get():
        return [work(slice(0, count))]
    ends = [count * part // parts for part in range(parts + 1)]
    slices = [slice(*ends[part : part + 2]) for part in range(parts)]

    def run(part: slice) -> Result:
        _is_part.set(True)
        return work(part)

    # A context also carries np.errstate to the threads.
    waiting = [_pool().submit(copy_context().run, run, part) for part in slices[1:]]
    try:
        first = copy_context().run(run, slices[0])
    finally:
        wait(waiting)  # they write to the caller's arrays
    return [first, *(each.result() for each in waiting)]


def each_chunk(xp: Any, work: Callable[..., None], *arrays: Array) -> None:
    """Call ``work`` with the same few rows of all arrays, until all had their turn.

    A chunk has so few rows that what the work makes of them stays in the cache.

    Args:
        xp: the array module of the arrays; all but NumPy's are one chunk.
        work: called in several threads; writes to its arguments.
        arrays: equally long.
    """
    rows = len(arrays[0])
    if not rows:
        return
    step = max(1, CHUNK * rows // max(1, arrays[0].size)) if xp is np else rows

    def run(part: slice) -> None:
        for start in range(part.start, part.stop, step):
            work(*(array[start : min(start + step, part.stop)] for array in arrays))

    each_part(xp, rows, arrays[0].size, run)


def elementwise(xp: Any, work: Callable[..., None], *arrays: Array) -> None:
    """Call ``work`` with the same few numbers of all arrays, until all had their turn.

    Args:
        xp: the array module of the arrays.
        work: called in several threads; writes to its arguments.
        arrays: equally many numbers each, in C order.
    """
    each_chunk(xp, work, *(array.reshape(-1) for array in arrays))


def matmul(xp: Any, a: Array, b: Array, out: Array | None = None) -> Array:
    """Return ``xp.matmul(a, b, out)``, the columns of the result (or its rows) cut into parts."""
    rows, inner = a.shape[-2:]
    columns = b.shape[-1]
    if rows * columns * inner < LEAST_PRODUCTS:
        product: Array = xp.matmul(a, b, out=out)
        return product
    if out is None:
        out = xp.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns), a.dtype)

    def wide(part: slice) -> None:
        xp.matmul(a, b[..., part], out=out[..., part])

    def high(part: slice) -> None:
        xp.matmul(a[..., part, :], b, out=out[..., part, :])

    each_part(xp, max(rows, columns), out.size * inner, wide if columns >= rows else high)
    return out


def add_product(xp: Any, a: Array, b: Array, out: Array) -> None:
    """Do ``out += a @ b`` for matrices, a few rows at a time: the product is never there whole."""
    rows, columns = out.shape
    step = max(1, PRODUCT_CHUNK // columns) if xp is np else rows

    def run(part: slice) -> None:
        for start in range(part.start, part.stop, step):
            chunk = slice(start, min(start + step, part.stop))
            out[chunk] += xp.matmul(a[chunk], b)

    each_part(xp, rows, out.size * a.shape[1], run)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads() - 1, thread_name_prefix="protocaffe-numpy")


class _OneBlasThread:
    """Keeps BLAS at one thread from the first to enter to the last to leave.

    Layers enter it in every pass, so it is no generator: those take twice the time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [library.num_threads for library in _blas_libraries()]
                for library in _blas_libraries():
                    library.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for library, threads in zip(_blas_libraries(), self._before, strict=True):
                    library.set_num_threads(threads)


@cache
def _blas_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController  # imported late: it looks at every library

    libraries: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


one_blas_thread = _OneBlasThread()
"""A context in which NumPy's matrix products keep to the thread that asks for them."""


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
