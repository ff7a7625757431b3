"""Work done ahead in threads, its results in order: a ring of buffers, and a plain map."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")
Result = TypeVar("Result")

MAX_THREADS = 4
KEPT_BYTES = 1 << 24


def default_threads() -> int:
    """Return how many threads should prepare batches: one per core, four at most.

    While the net computes, batches leave one at a time and so wake one thread at a time; the
    others only help when data is what everything waits for.
    """
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def keep_freed_memory() -> None:
    """Have arrays of up to 16 MiB made of memory that others have freed.

    The C library of Linux gives it back to the system at once, until the program has freed
    something as large as this. New pages make decoding an image take a quarter longer.
    """
    np.empty(KEPT_BYTES, np.uint8)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield what a function returns for each item, in order; threads run only a little ahead.

    Close the generator to stop the threads before the end.

    Args:
        function: what to call, from several threads at once.
        items: its arguments.
        threads: how many; :func:`default_threads` unless told otherwise.
    """
    keep_freed_memory()
    threads = threads or default_threads()
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            while True:
                ahead = threads + 1 - len(waiting)
                waiting += [pool.submit(function, item) for item in islice(left, ahead)]
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Prefetcher(Generic[Item, Buffer]):
    """Fills buffers from items in background threads.

    Items are taken from their iterator in order, one thread at a time; the threads then fill
    one buffer each, and :meth:`next` hands the buffers out in the items' order. All buffers are
    used again and again: with ``depth + 1`` of them ``depth`` are ready while one is in use. The
    threads start with the first :meth:`next`.

    They stop with :meth:`close`, when the prefetcher is garbage, and when Python exits. Neither
    ``items`` nor ``fill`` may refer to the prefetcher or whoever holds it.

    Args:
        items: what to fill buffers from; may be endless.
        fill: fills a buffer from an item.
        buffers: at least two.
        threads: how many; :func:`default_threads` unless told otherwise.
    """

    def __init__(
        self,
        items: Iterator[Item],
        fill: Callable[[Item, Buffer], None],
        buffers: Sequence[Buffer],
        threads: int | None = None,
    ) -> None:
        self._ring = _Ring(items, fill, buffers)
        self._together = len(buffers) // 2
        self._threads = [
            threading.Thread(target=self._ring.work, name=f"protocaffe-prefetch-{i}", daemon=True)
            for i in range(threads or default_threads())
        ]
        self._started = False
        self._taken = 0
        self._in_use: Buffer | None = None
        self._returned: list[Buffer] = []
        weakref.finalize(self, self._ring.stop)

    def next(self) -> Buffer:
        """Return the next filled buffer, the caller's until :meth:`release` or the next call.

        Raises:
            StopIteration: there are no more items.
            Exception: what ``items`` or ``fill`` raised for this buffer; all later calls raise
                it too.
        """
        if self._ring.stopped:
            raise RuntimeError("this prefetcher is closed")
        if not self._started:
            self._started = True
            keep_freed_memory()
            for thread in self._threads:
                thread.start()
                _running[thread] = self._ring
        self.release()
        result = self._ring.result(self._taken)
        if not result.done():
            self._wake()
        buffer = result.result()
        self._taken += 1
        self._in_use = buffer
        del self._ring.results[self._taken - 1]
        return buffer

    def release(self) -> None:
        """Give the buffer in use back.

        A thread that wakes takes a core from the net and finds nothing of its own in the caches,
        so half of the buffers wait for each other.
        """
        if self._in_use is not None:
            self._returned.append(self._in_use)
            self._in_use = None
        if len(self._returned) >= self._together:
            self._wake()

    def _wake(self) -> None:
        for buffer in self._returned:
            self._ring.free.put(buffer)
        self._returned.clear()

    def close(self) -> None:
        """Stop the threads and wait until they are gone."""
        self._ring.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


class _Ring(Generic[Item, Buffer]):
    """What the threads share.

    Each wakes for a free buffer of its own and for nothing else: a thread that wakes takes a core
    from the net.
    """

    def __init__(
        self,
        items: Iterator[Item],
        fill: Callable[[Item, Buffer], None],
        buffers: Sequence[Buffer],
    ) -> None:
        self.items = items
        self.fill = fill
        self.free: SimpleQueue[Any] = SimpleQueue()
        for buffer in buffers:
            self.free.put(buffer)
        self.reading = threading.Lock()  # whoever holds it may take the next item
        self.claimed = 0
        self.results: dict[int, Future[Buffer]] = {}
        self.stopped = False

    def result(self, number: int) -> Future[Buffer]:
        """Return what comes of an item: its buffer, or an error."""
        return self.results.setdefault(number, Future())

    def work(self) -> None:
        while self._fill_one():
            pass

    def _fill_one(self) -> bool:
        """Do the next piece of work; return whether there is more."""
        buffer = self.free.get()
        if self.stopped:
            self.free.put(buffer)  # so that the next thread wakes, too
            return False
        with self.reading:
            result = self.result(self.claimed)
            self.claimed += 1
            try:
                item = next(self.items)
            except BaseException as error:
                result.set_exception(error)
                return False
        try:
            self.fill(item, buffer)
        except BaseException as error:
            result.set_exception(error)
            return False
        result.set_result(buffer)
        return True

    def stop(self) -> None:
        # Waits for nothing: this may run in any thread, as part of a garbage collection.
        self.stopped = True
        self.free.put(None)


_running: weakref.WeakKeyDictionary[threading.Thread, _Ring[Any, Any]]
_running = weakref.WeakKeyDictionary()


@atexit.register
def _stop_all() -> None:
    """Let no thread be inside a library while the interpreter falls apart."""
    left = list(_running.items())
    for _, ring in left:
        ring.stop()
    for thread, _ in left:
        thread.join()
