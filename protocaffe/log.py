"""The log, in the shape that tools around Caffe read.

Modules write with ``log.info(...)`` on the one logger ``protocaffe``. Nothing appears until
a program calls :func:`init_log`; the command line does. Each message then gets glog's prefix::

    I1121 10:01:49.993415  4242 solver.py:239] Iteration 5, loss = 2.33354

that is: level (I, W, E or F), month and day, time, thread, file and line of the caller. A message
of several lines has the prefix on its first line only.

The module itself can be called, since ``caffe.log("message")`` is a function in pycaffe.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    _TextStreamHandler = logging.StreamHandler[TextIO]
else:
    _TextStreamHandler = logging.StreamHandler  # takes no [] before Python 3.11

log = logging.getLogger("protocaffe")
log.addHandler(logging.NullHandler())  # else Python itself prints warnings to stderr


def number(value: float) -> str:
    """Return the number as C++ streams print it: up to six significant digits."""
    if math.isnan(value):
        return "-nan" if math.copysign(1, value) < 0 else "nan"
    return f"{value:g}"


def init_log(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Start writing the log to a stream.

    Calling it again only changes the stream and the level.

    Args:
        stream: where to; None for what ``sys.stderr`` is at that moment.
        level: the lowest level of Python's ``logging`` that is written.
    """
    log.setLevel(level)
    handler = _handler()
    if handler is None:
        handler = _GlogHandler()
        handler.setFormatter(_GlogFormatter())
        log.addHandler(handler)
    handler.target = stream


@contextmanager
def only_warnings() -> Iterator[None]:
    """Leave out the log's lines below warnings while the block runs."""
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def log_above(console: Console) -> Iterator[None]:
    """Print log lines through a rich console, so that they scroll above its live display."""
    handler = _handler()
    if handler is None:
        yield
        return
    handler.console = console
    try:
        yield
    finally:
        handler.console = None


def _handler() -> _GlogHandler | None:
    return next((each for each in log.handlers if isinstance(each, _GlogHandler)), None)


class _GlogFormatter(logging.Formatter):
    """Puts glog's prefix before a message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        letter = "IWEF"[max(0, min(record.levelno // 10 - 2, 3))]
        moment = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 1e6)
        where = f"{record.filename}:{record.lineno}"
        thread = threading.get_native_id()
        message = record.getMessage().removesuffix("\n")
        return f"{letter}{moment}.{micros:06d} {thread:5d} {where}] {message}"


class _GlogHandler(_TextStreamHandler):
    """Writes to a stream, or above the live display of a console while there is one."""

    target: TextIO | None = None
    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.console is None:
            self.stream = self.target if self.target is not None else sys.stderr
            super().emit(record)
        else:
            from rich.text import Text

            self.console.print(Text(self.format(record)), soft_wrap=True)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise  # whoever read the log has gone: the program ends, as others in a pipe do
        super().handleError(record)


class _CallableModule(ModuleType):
    def __call__(self, message: str) -> None:
        log.info("%s", message, stacklevel=2)


sys.modules[__name__].__class__ = _CallableModule
