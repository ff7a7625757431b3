"""What the stand-in refuses, for on a GPU it would go wrong without a word."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from protocaffe.engines.cuda.device import Device
from tests.engines.cuda.standin import standin_engine


@pytest.fixture
def device() -> Device:
    return standin_engine().device


def test_work_on_the_default_stream_is_refused(device: Device) -> None:
    with device.active():
        array = device.xp.zeros(4, np.float32)
        array += 1
    with pytest.raises(AssertionError, match="outside of the engine's context"):
        array += 1
    refused: list[str] = []

    def work() -> None:
        try:
            array.get()
        except AssertionError as error:
            refused.append(str(error))

    with device.active():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert refused, "every thread has a stream of its own that is current"


def test_work_that_reads_what_it_writes_elsewhere_is_refused(device: Device) -> None:
    with device.active():
        array = device.xp.zeros(4, np.float32)
        array[...] = array * 2
        array += array
        with pytest.raises(AssertionError, match="reads what it writes"):
            array[1:] += array[:-1]
        with pytest.raises(AssertionError, match="reads what it writes"):
            array[...] = array[::-1]
        with pytest.raises(AssertionError, match="reads what it writes"):
            device.xp.maximum(array[1:], 0, out=array[:-1])


def test_a_graph_whose_memory_was_given_back_is_not_launched(device: Device) -> None:
    with device.active():
        arrays: list[Any] = [device.xp.zeros(4, np.float32) for _ in range(2)]

    def work() -> None:
        arrays[0][...] = arrays[1] * 2  # with memory of the graph's own, which is no one else's

    graph = device.capture([work], device.take_pool())
    with device.active():
        graph.launch(device.stream)
        del arrays[1]
        with pytest.raises(AssertionError, match="given back"):
            graph.launch(device.stream)
