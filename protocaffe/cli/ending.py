"""Signals that end the program, as exceptions: whatever is half done is cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """A signal asks the program to end; on its way out, everything cleans up after itself.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def orderly_ends() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM and on hangup, for as long as the block runs.

    Signals that are ignored, as hangup is under nohup, stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets other threads set no handlers
        return
    watched = [
        each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL
    ]
    for each in watched:
        signal.signal(each, _terminate)
    try:
        yield
    finally:
        for each in watched:
            signal.signal(each, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one shall not disturb the cleaning up
    raise Terminated(number)
