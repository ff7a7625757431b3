"""Folders built aside: out of sight until they are complete.

What becomes the folder ``NAME`` is filled as ``NAME.partial-...`` and renamed at the end. So the
final name holds either the whole of it or what was there before. What a run that was killed leaves
behind is removed by the next one of that name.
"""

from __future__ import annotations

import atexit
import fcntl
import glob
import os
import shutil
from collections.abc import Sequence

from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto.files import StrPath


class FolderAside:
    """A folder to be filled; use it in a ``with`` statement, which finishes or forgets it.

    Args:
        path: its final name.
        force: whether to replace what is there already.
        marks: a folder that is replaced must hold a file of one of these names, or nothing, lest a
            slip of the pen removes what cannot be made again. Without any, all are replaced.

    Attributes:
        path: see above, without a slash at the end.
        folder: where to write.

    Raises:
        DataError: there is something at ``path`` already, or the folder cannot be made.
    """

    def __init__(self, path: StrPath, *, force: bool = False, marks: Sequence[str] = ()) -> None:
        self.path = os.fspath(path).rstrip("/")
        self._force = force
        self._remove_leftovers()
        if os.path.lexists(self.path) and not force:
            raise DataError(
                f"'{self.path}' exists already; remove it, choose another name, or overwrite it "
                f"with force (--force on the command line)"
            )
        if marks and os.path.isdir(self.path) and _is_of_another_kind(self.path, marks):
            raise DataError(
                f"'{self.path}' is not replaced, even with force: it has other files than "
                f"{' or '.join(marks)} in it; choose another name, or remove it yourself"
            )
        self.folder = f"{self.path}.partial-{os.getpid()}"
        self._lock = -1
        self._make()

    def __enter__(self) -> FolderAside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.finish()
        except BaseException:
            self.discard()
            raise

    def add_file(self, name: str, content: bytes) -> None:
        """Put a file of that name into the folder; folders in the name are made.

        Raises:
            DataError: it cannot be written.
        """
        path = os.path.join(self.folder, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        except OSError as error:
            final = os.path.join(self.path, name)
            raise DataError(f"'{final}' cannot be written: {error.strerror}") from error

    def free_bytes(self) -> int:
        """Return how much room its disk has left."""
        return shutil.disk_usage(self.folder).free

    def finish(self) -> None:
        """Give the folder its final name.

        Raises:
            DataError: that cannot be done.
        """
        old = f"{self.path}.replaced-{os.getpid()}"
        try:
            if self._force and os.path.lexists(self.path):
                os.rename(self.path, old)
            try:
                os.rename(self.folder, self.path)
            except OSError:
                if os.path.lexists(old):
                    os.rename(old, self.path)
                raise
        except OSError as error:
            raise DataError(f"'{self.path}' cannot be put in place: {error.strerror}") from error
        _remove(old)
        self._unlock()

    def discard(self) -> None:
        """Remove what was written so far; the final name is not touched."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def _make(self) -> None:
        parent = os.path.dirname(self.path)
        if parent and not os.path.isdir(parent):
            raise DataError(f"'{self.path}' cannot be made: there is no folder '{parent}'")
        if self.folder in _unfinished:
            raise DataError(f"'{self.path}' is being made already")
        _unfinished[self.folder] = self
        try:
            os.mkdir(self.folder)
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)  # the kernel releases it if the process dies
        except OSError as error:
            self.discard()
            raise DataError(f"'{self.path}' cannot be made: {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        for folder in self._siblings("partial"):
            if _is_abandoned(folder):
                log.warning("Removing %s, left behind by an interrupted run", folder)
                _remove(folder)
        for old in self._siblings("replaced"):
            if os.path.lexists(self.path):
                _remove(old)
            else:  # the run ended before the new one was in its place
                log.warning("Renaming %s back to %s", old, self.path)
                os.rename(old, self.path)

    def _siblings(self, kind: str) -> list[str]:
        """Return the names of a kind that runs, which put their number at the end, have used."""
        start = f"{self.path}.{kind}-"
        found = glob.glob(f"{glob.escape(start)}*")
        return [path for path in found if path.removeprefix(start).isdecimal()]

    def _unlock(self) -> None:
        _unfinished.pop(self.folder, None)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_unfinished: dict[str, FolderAside] = {}
"""By their folders, those that are neither finished nor discarded."""


@atexit.register
def _discard_all() -> None:
    """Forget what a signal interrupted in the moment before a ``with`` statement took charge."""
    for aside in list(_unfinished.values()):
        aside.discard()


def _is_of_another_kind(path: str, marks: Sequence[str]) -> bool:
    names = os.listdir(path)
    return bool(names) and not set(names).intersection(marks)


def _is_abandoned(folder: str) -> bool:
    """Tell whether no running process fills the folder."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # it has just been finished
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _remove(path: str) -> None:
    """Remove a folder with all that is in it, a file or a link; nothing if there is none."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.remove(path)
