"""Files from the network, or from a folder: fetched whole and right, or not at all.

A transfer that breaks goes on where it stopped, also in a later call if the file's digest is
known: until it is complete the file is called ``.NAME.part``.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from protocaffe.errors import FileError
from protocaffe.log import log
from protocaffe.proto.files import StrPath

Progress = Callable[[int, int], None]
"""Called with the bytes there are so far and the bytes there will be (0: not known)."""
Check = Callable[[str], None]
"""Called with the name of a complete file; raises a FileError if it is not what it should be."""

CHUNK = 1 << 18
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 4
"""Connections in a row that bring nothing new, before an address is given up."""
PAUSE = 0.5
"""Seconds to wait after the first of them; twice as long after each further one."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that a server may not give the next time."""


def fetch(
    addresses: Sequence[str],
    path: StrPath,
    *,
    sha1: str = "",
    check: Check | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Get a file from the first of several addresses that has it.

    HTTP goes through the proxies that ``http_proxy`` and ``https_proxy`` name. Nothing appears
    under the file's name before its digest is right.

    Args:
        addresses: ``http://``, ``https://`` or ``file://``, or names of local files.
        path: where to.
        sha1: the digest that the file must have, in hexadecimal; empty if it is not known.
        check: looks at the file before it gets its name.
        force: replace a file that is there and is another one.
        progress: see :data:`Progress`.

    Returns:
        The address that had it; empty if the file was there already.

    Raises:
        FileError: a file of another content is there, or the file cannot be written.
        NotFetchedError: no address has the right file; each is named with what it did.
    """
    target = Path(path)
    if _is_there(target, sha1, force):
        return ""
    failures = []
    with _part(target, sha1) as part:
        for address in addresses:
            try:
                _get(address, part, check, progress)
            except _FailedError as failure:
                failures.append(f"{address}: {failure}")
                log.info("%s", failures[-1])
                continue
            part.take_place()
            return address
    raise NotFetchedError(f"{target}: not downloaded; tried {'; '.join(failures) or 'no address'}")


def digest(path: StrPath) -> str:
    """Return the SHA-1 of a file, in hexadecimal.

    Raises:
        FileError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return _digest(file)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


class NotFetchedError(FileError):
    """No address has the file, or none can be reached."""


class _FailedError(Exception):
    """An address cannot give the file."""


class _BrokenError(Exception):
    """A connection ended too soon; another one may bring the rest."""


# -- the file ----------------------------------------------------------------------------


class _Part:
    """The file while it is incomplete.

    Attributes:
        sha1: what its digest shall be, if that is known.
        keep: whether an incomplete file is worth keeping for the next call.
        found: bytes of it that an earlier call left.
        size: bytes of it that there are.
        tag: what the server calls this version of the file.
    """

    def __init__(self, file: FileIO, target: Path, sha1: str) -> None:
        self.file = file
        self.target = target
        self.sha1 = sha1.lower()
        self.keep = bool(sha1)
        self.found = self.size = file.seek(0, os.SEEK_END)
        self.tag = ""

    @property
    def may_go_on(self) -> bool:
        """Whether it would be noticed if the rest came from another file."""
        return bool(self.sha1 or self.tag)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self.file.write(left) :]
            except OSError as error:
                self.keep = False  # a full disk needs the space back
                raise _unwritable(self.target, error) from None
        self.size += len(data)

    def cut(self, size: int) -> None:
        self.file.truncate(size)
        self.size = size
        self.found = min(self.found, size)

    def take_place(self) -> None:
        try:
            os.fsync(self.file.fileno())
            os.replace(os.fsdecode(self.file.name), self.target)
        except OSError as error:
            raise _unwritable(self.target, error) from None


@contextmanager
def _part(target: Path, sha1: str) -> Iterator[_Part]:
    """Open the incomplete file for this process alone; afterwards it stays only if worth it."""
    name = target.with_name(f".{target.name}.part")
    try:
        file = FileIO(name, "a+")
    except OSError as error:
        raise _unwritable(target, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), os.stat(name))
        except OSError:
            mine = False
        if not mine:  # or it has just got its final name
            raise FileError(f"{target}: another process is downloading it")
        part = _Part(file, target, sha1)
        try:
            yield part
        finally:
            if not (part.keep and part.size):
                with suppress(OSError):
                    os.unlink(name)


def _is_there(target: Path, sha1: str, force: bool) -> bool:
    """Whether the right file is there already; refuse to touch another one."""
    if not target.exists():
        return False
    if not target.is_file():
        raise FileError(f"{target}: expected a file, or nothing yet; got a folder")
    if not sha1:
        return not force
    found = digest(target)
    if found == sha1.lower():
        return True
    if force:
        return False
    raise FileError(
        f"{target}: is there already, but is another file: its sha1 is {found}, expected {sha1}; "
        f"move it away, or give --force to replace it"
    )


def _unwritable(target: Path, error: OSError) -> FileError:
    return FileError(f"{target}: cannot be written: {error.strerror}")


def _digest(file: BinaryIO | FileIO) -> str:
    result = hashlib.sha1(usedforsecurity=False)
    while chunk := file.read(1 << 20):
        result.update(chunk)
    return result.hexdigest()


# -- one address -------------------------------------------------------------------------


def _get(address: str, part: _Part, check: Check | None, progress: Progress | None) -> None:
    """Complete the file from one address and check it; leave it empty if it is wrong."""
    part.tag = ""
    while True:
        found = part.found
        _transfer(address, part, progress)
        try:
            _verify(part, check)
        except _FailedError:
            part.cut(0)
            if not found:
                raise
            log.warning("%s: what an earlier download left is of no use; starting anew", address)
            continue
        return


def _verify(part: _Part, check: Check | None) -> None:
    part.file.seek(0)
    start = part.file.read(100).lstrip().lower()
    page = " (it looks like a web page)" if start.startswith((b"<!doctype", b"<html")) else ""
    part.file.seek(0)
    if part.sha1:
        found = _digest(part.file)
        if found != part.sha1:
            raise _FailedError(f"has another file: its sha1 is {found}, expected {part.sha1}{page}")
    if check:
        try:
            check(os.fsdecode(part.file.name))
        except FileError:
            raise _FailedError(f"has another file than expected{page}") from None


def _transfer(address: str, part: _Part, progress: Progress | None) -> None:
    """Go on until all bytes are there, with as many connections as it takes."""
    most, idle = part.size, 0
    while True:
        try:
            _receive(address, part, progress)
        except _BrokenError as error:
            idle = 0 if part.size > most else idle + 1
            most = max(most, part.size)
            if idle == ATTEMPTS:
                raise _FailedError(str(error)) from None
            time.sleep(PAUSE * 2**idle if idle else 0)
            continue
        return


def _receive(address: str, part: _Part, progress: Progress | None) -> None:
    """Take what one connection gives."""
    if not part.may_go_on:
        part.cut(0)
    with _opened(address, part.size, part.tag) as answer:
        part.cut(answer.start)
        part.tag = answer.tag
        try:
            while chunk := answer.stream.read(CHUNK):
                part.write(chunk)
                if progress:
                    progress(part.size, answer.total)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(f"broke off after {part.size} bytes: {_plain(error)}") from None
    if part.size < answer.total:
        raise _BrokenError(f"ended after {part.size} of {answer.total} bytes")


@dataclass
class _Answer:
    """What an address gives: bytes from ``start`` on, ``total`` in the whole file (0: unknown)."""

    stream: BinaryIO | http.client.HTTPResponse
    start: int
    total: int
    tag: str = ""


@contextmanager
def _opened(address: str, offset: int, tag: str) -> Iterator[_Answer]:
    scheme, _, rest = address.rpartition("://")
    if scheme.lower() in ("http", "https"):
        answer = _ask(address, offset, tag)
    elif scheme.lower() in ("", "file"):
        answer = _open_local(unquote(rest) if scheme else address, offset)
    else:
        raise _FailedError("expected an address with http://, https:// or file://")
    with closing(answer.stream):
        yield answer


def _open_local(path: str, offset: int) -> _Answer:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
        total = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _FailedError(error.strerror or str(error)) from None
    start = offset if offset <= total else 0
    file.seek(start)
    return _Answer(file, start, total)


def _ask(address: str, offset: int, tag: str) -> _Answer:
    """Request the file from ``offset`` on; the answer may start elsewhere."""
    headers = {"User-Agent": "protocaffe", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if tag:
            headers["If-Range"] = tag
    try:
        request = urllib.request.Request(address, headers=headers)
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            return _past_the_end(address, offset, error)
        kind = _BrokenError if error.code in PASSING else _FailedError
        raise kind(f"HTTP status {error.code}: {error.reason}") from None
    except urllib.error.URLError as error:
        # Without a network one wants to know at once, not after several attempts.
        kind = _BrokenError if offset else _FailedError
        raise kind(_plain(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_plain(error)) from None
    except ValueError as error:
        raise _FailedError(f"is no address: {error}") from None
    return _answer(address, offset, response)


def _answer(address: str, offset: int, response: http.client.HTTPResponse) -> _Answer:
    etag = response.headers.get("ETag", "")
    tag = response.headers.get("Last-Modified", "") if etag[:2] in ("", "W/") else etag
    if response.status != 206:  # a server that knows no ranges sends everything
        length = response.headers.get("Content-Length", "")
        return _Answer(response, 0, int(length) if length.isdecimal() else 0, tag)
    given = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given.strip())
    if match is None or int(match[1]) != offset:
        response.close()
        return _ask(address, 0, "")
    return _Answer(response, offset, 0 if match[2] == "*" else int(match[2]), tag)


def _past_the_end(address: str, offset: int, error: urllib.error.HTTPError) -> _Answer:
    """Say that the file is complete if that is why the server has no more of it."""
    if error.headers.get("Content-Range", "").strip() != f"bytes */{offset}":
        return _ask(address, 0, "")
    return _Answer(open(os.devnull, "rb"), offset, offset)


def _plain(error: object) -> str:
    """Return an error's text without numbers and Python's names."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
