"""Files as bytes: reading and replacing them whole, with errors in plain words."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from protocaffe.errors import FileError, did_you_mean

StrPath = str | os.PathLike[str]


def read_bytes(path: StrPath) -> bytes:
    """Return the content of a file.

    Raises:
        FileError: the file is missing (the nearest name is offered), a folder or unreadable.
    """
    found = Path(path)
    try:
        return found.read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except IsADirectoryError:
        raise FileError(f"{path}: expected a file, got a folder") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


def missing_file(path: StrPath) -> FileError:
    """Return the error for a file that is not there; it offers the nearest name."""
    found = Path(path)
    siblings = os.listdir(found.parent) if found.parent.is_dir() else []
    return FileError(f"{path}: no such file{did_you_mean(found.name, siblings)}")


def write_atomic(path: StrPath, data: bytes) -> None:
    """Write a file so that the path holds either its old content or all of the new one.

    The data goes to a temporary file beside it, to the disk, and then takes the file's place.
    Whatever goes wrong, nothing else is left behind. A device such as ``/dev/stdout`` is
    written to directly; a symbolic link keeps pointing where it does.

    Raises:
        FileError: the folder is missing or not writable, the disk is full, or the like.
    """
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            Path(target).write_bytes(data)
        else:
            _replace(target, data)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        raise FileError(f"{path}: cannot be written: there is no folder '{folder}'") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None


def _replace(target: str, data: bytes) -> None:
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The new name itself reaches the disk only with its folder.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
