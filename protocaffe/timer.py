"""A stopwatch."""

from __future__ import annotations

import time


class Timer:
    """Measures the time between :meth:`start` and :meth:`stop`.

    Example:
        timer = protocaffe.Timer()
        timer.start()
        net.forward()
        timer.stop()
        print(timer.ms)
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End the measurement, if one is going on."""
        if self._started is not None:
            self._seconds = time.perf_counter() - self._started
            self._started = None

    @property
    def ms(self) -> float:
        """The last measurement in milliseconds."""
        self.stop()
        return self._seconds * 1000
