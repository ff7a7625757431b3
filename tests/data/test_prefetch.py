import gc
import itertools
import random
import subprocess
import sys
import threading
import time

import pytest

from protocaffe.data.prefetch import Prefetcher


def fill(item, buffer):
    """Put the item into the buffer, after a while that differs from item to item."""
    time.sleep(random.Random(item).random() / 500)
    buffer[:] = [item]


def buffers(count=4):
    return [[] for _ in range(count)]


def workers():
    return [each for each in threading.enumerate() if each.name.startswith("protocaffe-prefetch")]


def check_no_workers():
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batches_come_in_order(threads):
    prefetcher = Prefetcher(itertools.count(), fill, buffers(), threads)
    assert [prefetcher.next()[0] for _ in range(100)] == list(range(100))
    prefetcher.close()


def test_a_buffer_is_the_callers_until_the_next_call():
    prefetcher = Prefetcher(itertools.count(), fill, buffers(3), 3)
    seen = set()
    for number in range(30):
        buffer = prefetcher.next()
        time.sleep(0.003)
        assert buffer == [number]
        seen.add(id(buffer))
    assert len(seen) == 3
    prefetcher.close()


def test_no_more_is_done_ahead_than_there_are_buffers():
    done = []
    prefetcher = Prefetcher(itertools.count(), lambda item, _: done.append(item), buffers(4), 2)
    prefetcher.next()
    time.sleep(0.1)
    assert sorted(done) == [0, 1, 2, 3]
    prefetcher.next()
    time.sleep(0.1)
    assert sorted(done) == [0, 1, 2, 3]  # two buffers wake the threads together
    prefetcher.release()
    time.sleep(0.1)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    prefetcher.release()
    assert prefetcher.next() is not None
    prefetcher.close()


def test_buffers_do_not_wait_for_each_other_while_the_caller_waits():
    prefetcher = Prefetcher(itertools.count(), fill, buffers(3), 1)
    for number in range(20):
        assert prefetcher.next() == [number]
        prefetcher.release()
    prefetcher.close()


def test_nothing_starts_before_the_first_call():
    Prefetcher(itertools.count(), fill, buffers(), 2)
    check_no_workers()


def test_the_end_of_the_items():
    prefetcher = Prefetcher(iter(range(3)), fill, buffers(), 2)
    assert [prefetcher.next()[0] for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            prefetcher.next()
    prefetcher.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_comes_in_its_place_and_stays(threads):
    def fail(item, buffer):
        if item == 5:
            raise ValueError("item 5")
        fill(item, buffer)

    prefetcher = Prefetcher(itertools.count(), fail, buffers(), threads)
    assert [prefetcher.next()[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(ValueError, match="item 5"):
            prefetcher.next()
    prefetcher.close()


def test_an_error_of_the_items():
    def items():
        yield 0
        raise ValueError("no disk")

    prefetcher = Prefetcher(items(), fill, buffers(), 3)
    assert prefetcher.next() == [0]
    with pytest.raises(ValueError, match="no disk"):
        prefetcher.next()
    prefetcher.close()


def test_close_ends_the_threads():
    prefetcher = Prefetcher(itertools.count(), fill, buffers(), 3)
    prefetcher.next()
    assert len(workers()) == 3
    prefetcher.close()
    assert not workers()
    prefetcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.next()


def test_garbage_ends_the_threads():
    prefetcher = Prefetcher(itertools.count(), fill, buffers(), 2)
    prefetcher.next()
    del prefetcher
    gc.collect()
    check_no_workers()


def test_garbage_in_a_cycle_ends_the_threads():
    cycle = [Prefetcher(itertools.count(), fill, buffers(), 2)]
    cycle[0].next()
    cycle.append(cycle)
    del cycle
    gc.collect()
    check_no_workers()


EXIT = """
import itertools, time, weakref
weakref.finalize(time, int)  # so that finalizers run after what protocaffe does at exit
from protocaffe.data.prefetch import Prefetcher
def fill(item, buffer):
    time.sleep(0.01)
prefetcher = Prefetcher(itertools.count(), fill, [[], [], []], 3)
prefetcher.next()
{last}
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_python_exits_with_threads_at_work(last, code):
    program = EXIT.format(last=last)
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=30, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (last == "1 / 0")


INTERRUPTED = """
import itertools, signal, threading, time
from protocaffe.data.prefetch import Prefetcher
def fill(item, buffer):
    while not interrupted.wait(0.01):
        pass
interrupted = threading.Event()
prefetcher = Prefetcher(itertools.count(), fill, [[], [], []], 2)
threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
main = threading.main_thread().ident
try:
    prefetcher.next()
except KeyboardInterrupt:
    interrupted.set()
    prefetcher.next()
    prefetcher.close()
    print("went on")
"""


def test_a_waiting_caller_can_be_interrupted():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], timeout=30, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
