"""Databases of records, opened for reading: LMDB, and LevelDB where plyvel is installed.

A database is a folder of (key, value) records in the byte order of their keys. For Data layers
every value is a serialised ``Datum``; nothing in this module looks inside.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto.files import near_file

Bytes = bytes | memoryview
Record = tuple[bytes, bytes]
"""A key and its value."""
View = tuple[Bytes, Bytes]
"""A record that may lie in the memory of its database."""

_handles: WeakValueDictionary[tuple[int, int] | None, Any] = WeakValueDictionary()
"""Open LMDB environments and LevelDB handles by the identity of a file that they hold open.

Both libraries refuse to open a database twice in one process, but a training net and its test
net may well read the same one.
"""


class Database(ABC):
    """A database that is open for reading.

    Args:
        path: its folder.

    Raises:
        DataError: there is no such database, it is damaged, or it holds no records.
    """

    backend: ClassVar[str]
    """Name of the kind, as in ``--backend``."""
    main_file: ClassVar[str]
    """A file that every database of this kind has."""
    held_file: ClassVar[str]
    """A file that is there, and stays the same, while the database is open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._check_folder()
        self._handle: Any = self._shared_handle()
        if next(self.records(), None) is None:
            raise DataError(f"database '{self.path}' is empty: it holds no records")
        log.info("Opened %s %s", self.backend, self.path)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the records in key order, from the one at index ``start`` to the last."""

    @abstractmethod
    def keys(self) -> list[bytes]:
        """Return all keys in order."""

    def views(self, start: int = 0) -> Iterator[View]:
        """Yield the records as :meth:`records` does, without copying them where that is possible.

        What comes may be used until the database is closed, as long as nobody writes to it.
        """
        return self.records(start)

    def read(self, keys: Iterable[bytes]) -> Iterator[View]:
        """Yield the records with these keys, in the order of the keys given, as :attr:`views`."""
        for key, value in self._get(keys):
            if value is None:
                raise DataError(
                    f"database '{self.path}' has lost its record "
                    f"'{key.decode(errors='backslashreplace')}' while it was in use"
                )
            yield key, value

    @abstractmethod
    def _get(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, Bytes | None]]:
        """Yield each key with its value, or None where there is none."""

    @abstractmethod
    def _open(self) -> Any:
        """Return the library's handle of the database, which closes when nobody holds it."""

    def close(self) -> None:
        """Let go of the files (they close when the last iterator over the records is gone)."""
        self._handle = None

    def _shared_handle(self) -> Any:
        handle = _handles.get(self._identity())
        if handle is None:
            handle = self._open()
            _handles[self._identity()] = handle
        return handle

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self.path, self.held_file))
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _check_folder(self) -> None:
        if not os.path.exists(self.path):
            raise DataError(f"database '{self.path}' does not exist{_neighbour(self.path)}")
        if not os.path.isdir(self.path):
            raise DataError(
                f"'{self.path}' is a file, but an {self.backend} database is a folder "
                f"that holds {self.main_file}; give the folder"
            )
        if os.path.exists(os.path.join(self.path, self.main_file)):
            return
        kind = backend_of(self.path)
        if kind is None:
            raise DataError(
                f"'{self.path}' is no {self.backend} database: it holds no {self.main_file}"
            )
        raise DataError(
            f"'{self.path}' is an {kind} database, but was to be opened as {self.backend}; "
            f"say {kind} (in a net: `backend: {kind.upper()}` in data_param)"
        )


class Lmdb(Database):
    """An LMDB database: a folder with ``data.mdb``, whose unnamed main table is read.

    Any number of threads and processes may read it at once. ``lock.mdb`` may be missing, as in
    a copied database, and the folder may be read-only: then the database is opened without
    locking, which is safe as long as no other process writes to it.
    """

    backend = "lmdb"
    main_file = held_file = "data.mdb"

    def __len__(self) -> int:
        return int(self._handle.stat()["entries"])

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the records in key order, from the one at index ``start`` to the last."""
        return self._records(start, views=False)

    def views(self, start: int = 0) -> Iterator[View]:
        """Yield the records as parts of the memory that the file is mapped to."""
        return self._records(start, views=True)

    def _records(self, start: int, *, views: bool) -> Iterator[Any]:
        import lmdb

        try:
            with self._handle.begin(buffers=views) as transaction:
                cursor = transaction.cursor()
                more = cursor.first()
                for _ in range(start):
                    more = more and cursor.next()
                if more:
                    yield from cursor.iternext()
        except lmdb.Error as error:
            raise DataError(f"database '{self.path}' cannot be read: {error}") from error

    def keys(self) -> list[bytes]:
        """Return all keys in order."""
        import lmdb

        try:
            with self._handle.begin() as transaction:
                return list(transaction.cursor().iternext(values=False))
        except lmdb.Error as error:
            raise DataError(f"database '{self.path}' cannot be read: {error}") from error

    def _get(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, Bytes | None]]:
        import lmdb

        try:
            with self._handle.begin(buffers=True) as transaction:
                for key in keys:
                    yield key, transaction.get(key)
        except lmdb.Error as error:
            raise DataError(f"database '{self.path}' cannot be read: {error}") from error

    def _open(self) -> Any:
        import lmdb

        lock = os.access(os.path.join(self.path, "lock.mdb"), os.W_OK)
        try:
            # Read-ahead stays on: records are read in key order, mostly the order of the file,
            # where it makes the first pass over a cold file twenty times faster.
            handle = lmdb.open(self.path, readonly=True, lock=lock)
        except lmdb.InvalidError as error:
            raise DataError(
                f"'{self.path}/data.mdb' is damaged, or was not written by LMDB on a machine of "
                f"this kind: {error}"
            ) from error
        except lmdb.Error as error:
            way_out = ""
            if "already open" in str(error):
                way_out = " Close what lmdb.open(...) returned before a net reads it: env.close()"
            raise DataError(f"database '{self.path}' cannot be opened: {error}{way_out}") from error
        self._check_size(handle)
        return handle

    def _check_size(self, handle: Any) -> None:
        """Refuse a file that was cut off: reading a page past its end would kill the process."""
        expected = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
        size = os.path.getsize(os.path.join(self.path, self.main_file))
        if size < expected:
            raise DataError(
                f"'{self.path}/data.mdb' is cut off: it has {size} bytes of {expected}; "
                f"copy it again"
            )


class LevelDb(Database):
    """A LevelDB database, read with plyvel.

    LevelDB rewrites files whenever it opens a database, so the folder must be writable, and
    only one process may have it open.
    """

    backend = "leveldb"
    main_file = "CURRENT"
    held_file = "LOCK"

    def __len__(self) -> int:
        return sum(1 for _ in self._handle.database.iterator(include_value=False))

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield the records in key order, from the one at index ``start`` to the last."""
        import plyvel

        handle = self._handle  # held until the iteration ends, so that others find it
        try:
            with handle.database.iterator() as iterator:
                yield from islice(iterator, start, None)
        except plyvel.Error as error:
            raise DataError(f"database '{self.path}' cannot be read: {error}") from error

    def keys(self) -> list[bytes]:
        """Return all keys in order."""
        return list(self._handle.database.iterator(include_value=False))

    def _get(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, Bytes | None]]:
        import plyvel

        handle = self._handle  # held until the iteration ends, so that others find it
        try:
            for key in keys:
                yield key, handle.database.get(key)
        except plyvel.Error as error:
            raise DataError(f"database '{self.path}' cannot be read: {error}") from error

    def _open(self) -> Any:
        plyvel = import_plyvel()
        try:
            return _LevelDbHandle(plyvel.DB(self.path, create_if_missing=False))
        except plyvel.Error as error:
            raise DataError(
                f"database '{self.path}' cannot be opened: {said_by(error)} (LevelDB rewrites "
                f"files when it opens a database, so the folder must be writable and no other "
                f"program may have it open; a copy will do)"
            ) from error


class _LevelDbHandle:
    """An open database that can be referred to weakly, which plyvel's own handles cannot."""

    def __init__(self, database: Any) -> None:
        self.database = database


BACKENDS: dict[str, type[Database]] = {kind.backend: kind for kind in (Lmdb, LevelDb)}


def open_database(path: str | os.PathLike[str], backend: str = "lmdb") -> Database:
    """Open the database at ``path`` for reading; ``backend`` is ``lmdb`` or ``leveldb``.

    Raises:
        DataError: the database is missing, of the other kind, damaged or empty.
    """
    return BACKENDS[backend](path)


def backend_of(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of the database at ``path`` by the files in its folder, None if it is none.

    ``None`` also where there is nothing at all.
    """
    for name, kind in BACKENDS.items():
        if os.path.exists(os.path.join(path, kind.main_file)):
            return name
    return None


def import_plyvel() -> Any:
    """Return the plyvel module, or say how to get it."""
    try:
        import plyvel
    except ImportError as error:
        raise DataError(
            "LevelDB databases need the package plyvel: pip install plyvel "
            "(or convert the images again, to LMDB)"
        ) from error
    return plyvel


def _neighbour(path: str) -> str:
    here = "" if os.path.isabs(path) else f" (looked for it in {os.getcwd()})"
    return near_file(path) or here


def said_by(error: Exception) -> str:
    """Return what an error of lmdb or plyvel says; plyvel gives bytes."""
    (message,) = error.args or ("unknown error",)
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)
