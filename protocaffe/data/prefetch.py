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
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")
Result = TypeVar("Result")

MAX_THREADS = 4


def default_threads() -> int:
    """Return how many threads should prepare batches: one per core, four at most.

    While the net computes, batches leave one at a time and so wake one thread at a time; the
    others only help when data is what everything waits for.
    """
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


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
    used again and again: with ``depth + 2`` of them ``depth`` are ready while one is in use and
    one is being filled. The threads start with the first :meth:`next`.

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
        self._threads = [
            threading.Thread(target=self._ring.work, name=f"protocaffe-prefetch-{i}", daemon=True)
            for i in range(threads or default_threads())
        ]
        self._started = False
        weakref.finalize(self, self._ring.stop)

    def next(self) -> Buffer:
        """Return the next filled buffer, which is the caller's until the next call.

        Raises:
            StopIteration: there are no more items.
            Exception: what ``items`` or ``fill`` raised for this buffer; all later calls raise
                it too.
        """
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
                _running[thread] = self._ring
        return self._ring.take()

    def close(self) -> None:
        """Stop the threads and wait until they are gone."""
        self._ring.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


class _Ring(Generic[Item, Buffer]):
    """What the threads share: number ``n`` is filled into buffer ``n`` modulo their count."""

    def __init__(
        self,
        items: Iterator[Item],
        fill: Callable[[Item, Buffer], None],
        buffers: Sequence[Buffer],
    ) -> None:
        self.items = items
        self.fill = fill
        self.buffers = buffers
        self.reading = threading.Lock()  # whoever holds it may take the next item
        self.changed = threading.Condition()  # guards all below
        self.claimed = 0
        self.taken = 0
        self.ready: dict[int, BaseException | None] = {}
        self.stopped = False

    def work(self) -> None:
        while self._fill_one():
            pass

    def _fill_one(self) -> bool:
        """Do the next piece of work; return whether there is more."""
        with self.reading:
            number = self._claim()
            if number is None:
                return False
            try:
                item = next(self.items)
            except BaseException as error:
                self._finish(number, error)
                return False
        try:
            self.fill(item, self.buffers[number % len(self.buffers)])
        except BaseException as error:
            self._finish(number, error)
            return False
        self._finish(number, None)
        return True

    def take(self) -> Buffer:
        with self.changed:
            self.changed.wait_for(lambda: self.taken in self.ready or self.stopped)
            if self.stopped:
                raise RuntimeError("this prefetcher is closed")
            error = self.ready[self.taken]
            if error is not None:
                raise error  # and stays in its place: there is nothing after it
            del self.ready[self.taken]
            number = self.taken
            self.taken += 1
            self.changed.notify_all()  # the buffer before this one is free now
        return self.buffers[number % len(self.buffers)]

    def stop(self) -> None:
        # Takes no part in waiting: this may run in any thread, as part of a garbage collection.
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def _claim(self) -> int | None:
        """Wait for a free buffer and return its number, or None if there is no more work."""
        with self.changed:
            # The last one taken is still in use, hence taken - 1.
            self.changed.wait_for(
                lambda: self.stopped or self.claimed < max(self.taken - 1, 0) + len(self.buffers)
            )
            if self.stopped:
                return None
            self.claimed += 1
            return self.claimed - 1

    def _finish(self, number: int, error: BaseException | None) -> None:
        with self.changed:
            self.ready[number] = error
            self.changed.notify_all()


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
