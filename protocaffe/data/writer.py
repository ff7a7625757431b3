"""Databases built for writing: out of sight until they are complete."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, ClassVar

from protocaffe.data.aside import FolderAside
from protocaffe.data.database import BACKENDS, Record, import_plyvel, said_by
from protocaffe.errors import DataError
from protocaffe.log import log

MARKS = [kind.main_file for kind in BACKENDS.values()]
"""Files by which an older database is known."""
COMMIT_RECORDS = 1000
COMMIT_BYTES = 1 << 26
"""A transaction takes as many records, or as many bytes, at most."""


class DatabaseWriter(ABC):
    """A new database; use it in a ``with`` statement, which finishes or forgets it.

    Args:
        path: the folder to make.
        force: whether to replace what is there already.

    Raises:
        DataError: there is something at ``path`` already, or the folder cannot be made.
    """

    backend: ClassVar[str]
    max_key_size: ClassVar[int | None] = None

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._handle: Any = None
        self._aside = FolderAside(path, force=force, marks=MARKS)
        self.path = self._aside.path
        try:
            self._handle = self._create(self._aside.folder)
        except BaseException:
            self.abort()
            raise
        log.info("Opened %s %s", self.backend, self.path)

    def __enter__(self) -> DatabaseWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
            self._close()
            self._aside.finish()
        except BaseException:
            self.abort()
            raise

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record; up to 1000 records, or 64 MiB, are written together."""
        if self.max_key_size is not None and not 0 < len(key) <= self.max_key_size:
            raise DataError(
                f"key {key.decode(errors='replace')!r} has {len(key)} bytes; "
                f"{self.backend} takes 1 to {self.max_key_size}"
            )
        self._pending.append((key, value))
        self._pending_bytes += len(value)
        if len(self._pending) >= COMMIT_RECORDS or self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def add_file(self, name: str, content: bytes) -> None:
        """Put a file of that name beside the database's own."""
        self._aside.add_file(name, content)

    def commit(self) -> None:
        """Write the records that wait."""
        if self._pending:
            self._write(self._pending)
            self._pending.clear()
            self._pending_bytes = 0

    def abort(self) -> None:
        """Remove what was written so far; the final name is not touched."""
        self._pending.clear()
        with suppress(DataError):  # why it is given up is known already
            self._close()
        self._aside.discard()

    def _error(self, error: Exception) -> DataError:
        """Return an error with what a library says, which is not always that the disk is full."""
        return DataError(
            f"database '{self.path}' cannot be written: {said_by(error)} "
            f"({self._aside.free_bytes() / 1e6:.1f} MB are free on the disk)"
        )

    @abstractmethod
    def _create(self, folder: str) -> Any:
        """Make an empty database in the folder and return the library's handle of it."""

    @abstractmethod
    def _write(self, records: Sequence[Record]) -> None:
        """Write the records durably or raise DataError."""

    @abstractmethod
    def _close(self) -> None:
        """Bring everything to the disk and close the handle; nothing if it is closed."""


class LmdbWriter(DatabaseWriter):
    """A new LMDB database; the map grows by itself, and no ``lock.mdb`` stays behind."""

    backend = "lmdb"
    max_key_size = 511

    _last_key = b""

    def _create(self, folder: str) -> Any:
        import lmdb

        try:
            # Nobody else knows the folder yet: no locks, and the disk need not be waited for.
            return lmdb.open(folder, map_size=1 << 26, lock=False, sync=False, mode=0o644)
        except lmdb.Error as error:
            raise DataError(f"database '{self.path}' cannot be made: {said_by(error)}") from error

    def _write(self, records: Sequence[Record]) -> None:
        import lmdb

        keys = [self._last_key, *(key for key, _ in records)]
        ascending = all(a < b for a, b in pairwise(keys))
        self._last_key = max(keys)
        while True:
            try:
                with self._handle.begin(write=True) as transaction:
                    transaction.cursor().putmulti(records, append=ascending)
                return
            except lmdb.MapFullError:
                self._handle.set_mapsize(2 * self._handle.info()["map_size"])
            except lmdb.Error as error:
                raise self._error(error) from error

    def _close(self) -> None:
        import lmdb

        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            handle.sync(True)
        except lmdb.Error as error:
            raise self._error(error) from error
        finally:
            handle.close()


class LevelDbWriter(DatabaseWriter):
    """A new LevelDB database, written with plyvel."""

    backend = "leveldb"

    def _create(self, folder: str) -> Any:
        plyvel = import_plyvel()
        try:
            return plyvel.DB(folder, create_if_missing=True)
        except plyvel.Error as error:
            raise DataError(f"database '{self.path}' cannot be made: {said_by(error)}") from error

    def _write(self, records: Sequence[Record]) -> None:
        plyvel = import_plyvel()
        try:
            with self._handle.write_batch() as batch:
                for key, value in records:
                    batch.put(key, value)
        except plyvel.Error as error:
            raise self._error(error) from error

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()


WRITERS: dict[str, type[DatabaseWriter]] = {
    kind.backend: kind for kind in (LmdbWriter, LevelDbWriter)
}


def create_database(
    path: str | os.PathLike[str], backend: str = "lmdb", *, force: bool = False
) -> DatabaseWriter:
    """Return a writer for a new database; ``backend`` is ``lmdb`` or ``leveldb``."""
    return WRITERS[backend](path, force=force)
