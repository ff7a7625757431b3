"""Ctrl-C and hangup as requests that a solver answers between two iterations."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from protocaffe.solvers import Action


class SignalRequests:
    """Remembers signals until the solver asks.

    A second Ctrl-C, while the first one waits or after it asked to stop, interrupts at once.

    Args:
        sigint: what Ctrl-C asks for.
        sighup: what a hangup asks for.
    """

    def __init__(self, sigint: Action, sighup: Action) -> None:
        self._effects = {signal.SIGINT: sigint, signal.SIGHUP: sighup}
        self._waiting: list[signal.Signals] = []
        self._stopping = False

    def action(self) -> Action:
        """Return what to do now; the hook ``solver.get_action``."""
        if not self._waiting:
            return Action.NONE
        action = self._effects[self._waiting.pop(0)]
        self._stopping |= action is Action.STOP
        return action

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over for as long as the block runs."""
        before = {each: signal.signal(each, self._note) for each in self._effects}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        this = signal.Signals(number)
        if self._effects[this] is Action.NONE:
            return
        if this is signal.SIGINT and (self._stopping or this in self._waiting):
            raise KeyboardInterrupt
        self._waiting.append(this)
