"""Signals that end the program, as exceptions: whatever is half done is cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came: list[int] = []
"""The signals that asked the program to end."""


class Terminated(KeyboardInterrupt):
    """A signal asks the program to end; on its way out, everything cleans up after itself.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def orderly_ends() -> Iterator[None]:
    """Raise :class:`Terminated` on Ctrl-C, SIGTERM and hangup, for as long as the block runs.

    Signals that are ignored, as hangup is under nohup, stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets other threads set no handlers
        return
    before = {
        each: handler
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(each)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    for each in before:
        signal.signal(each, _end)
    try:
        yield
    finally:
        _came.clear()
        for each, handler in before.items():
            signal.signal(each, handler)


def raise_if_ended() -> None:
    """Raise :class:`Terminated` again if a signal came already.

    The first time it may have been lost: Python drops exceptions in callbacks of its garbage
    collection. Whoever works long calls this now and then.
    """
    if _came:
        raise Terminated(_came[0])


def _end(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    raise Terminated(number)
