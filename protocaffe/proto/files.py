"""Files as bytes: reading and replacing them whole, with errors in plain words."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocaffe.errors import FileError, nearest

StrPath = str | os.PathLike[str]

DOWNLOADED = ".downloaded"
"""File in a model's folder that says that its prototxts came from elsewhere, and from where.

A net in such a folder may not have layers whose code would be imported.
"""


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
        inside = ", ".join(sorted(each.name for each in found.glob("*.prototxt")))
        hint = f" (with {inside})" if inside else ""
        raise FileError(f"{path}: expected a file, got a folder{hint}") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


def missing_file(path: StrPath) -> FileError:
    """Return the error for a file that is not there; it offers the nearest name."""
    return FileError(f"{path}: no such file{near_file(path)}")


def near_file(path: StrPath) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest name beside a missing file or folder.

    Equal suffixes alone make no names alike.
    """
    missing = Path(path)
    if not missing.parent.is_dir():
        return f" (nor does the folder '{missing.parent}' exist)"
    if not os.access(missing.parent, os.R_OK):
        return ""
    siblings = list(missing.parent.iterdir())
    same_kind = {each.stem: each.name for each in siblings if each.suffix == missing.suffix}
    others = (each.name for each in siblings if each.suffix != missing.suffix)
    near = same_kind.get(nearest(missing.stem, same_kind)) or nearest(missing.name, others)
    return f"; did you mean '{near}'?" if near else ""


def write_atomic(path: StrPath, data: bytes) -> None:
    """Write a file so that the path holds either its old content or all of the new one.

    The data goes to a temporary file beside it, to the disk, and then takes the file's place.
    Whatever goes wrong, nothing else is left behind. A device such as ``/dev/stdout`` is
    written to directly; a symbolic link keeps pointing where it does.

    Raises:
        FileError: the folder is missing or not writable, the disk is full, or the like.
    """
    with replacing(path) as (temporary,):
        Path(temporary).write_bytes(data)


@contextmanager
def replacing(*paths: StrPath) -> Iterator[list[str]]:
    """Yield the names of temporary files that take the paths' places when the block ends.

    All of them are on the disk before the first one takes its place; they do so in the order of
    the paths. If the block raises, all paths keep what they hold. See :func:`write_atomic`.

    Raises:
        FileError: a file cannot be written; an OSError within the block becomes one too.
    """
    targets = [os.path.realpath(path) for path in paths]
    devices = [os.path.exists(target) and not os.path.isfile(target) for target in targets]
    names = [
        target if device else _temporary_name(target)
        for target, device in zip(targets, devices, strict=True)
    ]
    moves = [pair for pair in zip(names, targets, strict=True) if pair[0] != pair[1]]
    try:
        yield names
        for name, _ in moves:
            _sync(name)
        for name, target in moves:
            os.replace(name, target)
        for folder in {os.path.dirname(target) for _, target in moves}:
            _sync(folder)  # a new name reaches the disk only with its folder
    except OSError as error:
        known = dict(zip(names, map(str, paths), strict=True))
        path = known.get(error.filename, ", ".join(known.values()))
        raise FileError(f"{path}: cannot be written: {_reason(path, error)}") from None
    finally:
        for name, _ in moves:
            with suppress(OSError):
                os.unlink(name)


def _temporary_name(target: str) -> str:
    """Return an unused name beside a file."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")


def _reason(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no folder '{os.path.dirname(path) or '.'}'"
    return os.strerror(error.errno) if error.errno else str(error)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
