"""What the upgrade commands share."""

from __future__ import annotations

from google.protobuf.message import Message

from protocaffe.cli.flags import Flag
from protocaffe.log import log
from protocaffe.proto.files import write_atomic
from protocaffe.proto.text import format_text

FILES = [
    Flag("input", "the file to read", required=True, positional=True),
    Flag("output", "the file to write", required=True, positional=True),
]


def write_text(path: str, message: Message) -> None:
    """Write a message as prototxt, all or nothing."""
    write_atomic(path, format_text(message).encode())
    log_written(path)


def log_written(path: str) -> None:
    """Say where the result is."""
    log.info("Wrote the current format to %s", path)
