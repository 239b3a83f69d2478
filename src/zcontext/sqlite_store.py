"""Documents in one SQLite file that any number of processes and threads share.

The file is in WAL mode and every row carries a checksum bound to its key. A process killed in the
middle of a write, a full disk and a fork leave every committed document as it was.

Floor 0, standard library only. It knows keys and documents, not what the keys are made of.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

from zcontext.errors import ConfigError, CorruptSpanError, StoreError, VocabularyError
from zcontext.spans import ZDocument
from zcontext.vocabulary import utf8_bytes

_APPLICATION_ID: Final = 0x5A434F4E  # "ZCON": tells our files from other SQLite databases
_USER_VERSION: Final = 1
_QUERY_KEYS: Final = 500  # below SQLite's limit on bound parameters in every build
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS documents (
    key TEXT PRIMARY KEY NOT NULL,
    document BLOB NOT NULL,
    checksum BLOB NOT NULL
) WITHOUT ROWID
"""
# Cast, because a damaged row may hold text, which sqlite3 would fail to decode.
_SELECT: Final = "SELECT key, CAST(document AS BLOB), CAST(checksum AS BLOB) FROM documents"
_UPSERT: Final = "INSERT OR REPLACE INTO documents (key, document, checksum) VALUES (?, ?, ?)"


_REMEDIES: Final = {
    "SQLITE_FULL": "free some disk space; what was stored before is intact",
    "SQLITE_IOERR": "check the disk's free space, quota and health; what was stored is intact",
    "SQLITE_BUSY": "another process held it too long; raise busy_seconds or run fewer writers",
    "SQLITE_NOTADB": "it is not an SQLite file and was left as it is; give another path",
    "SQLITE_CORRUPT": "the file is damaged; delete it, the texts will be compressed again",
    "SQLITE_READONLY": "it is read-only; change its rights or give another path",
    "SQLITE_CANTOPEN": "check that its folder exists and is writable",
}
_UNKNOWN: Final = "check that no other program uses the file"


def check_key(key: str) -> str:
    """The key, if it is one that `store_key` can have made.

    Args:
        key: What was given as a key.

    Returns:
        The same.

    Raises:
        StoreError: if it is anything else.
    """
    if not isinstance(key, str) or len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise StoreError(f"key={key!r}: give the 64 hex digits that store_key() returns.")
    return key


class SQLiteStore:
    """Documents in one SQLite file, shared by any number of processes and threads.

    Each `put` is one durable transaction: a process killed at any moment loses at most the
    document it was putting. Keep the file on a local disk; network file systems do not lock well.

    Args:
        path: The file. It and its folder are made if they are not there, readable by the user only
            (symbols can be decompressed: they are as private as the text).
        busy_seconds: How long to wait for another process's write.

    Raises:
        StoreError: if the path cannot hold a store, or holds something else.
        ConfigError: if `busy_seconds` is negative.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_seconds: float = 30.0) -> None:
        if not busy_seconds >= 0:
            raise ConfigError(
                f"busy_seconds={busy_seconds!r}: give 0 or more seconds.",
                field="busy_seconds",
                value=busy_seconds,
            )
        self.path = _checked_path(path)
        self._busy_seconds = busy_seconds
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        with self._lock, self._translated("open"):
            self._connection = self._open()
        _watch_forks()
        with _registering:
            _open_stores.add(self)

    def get(self, key: str) -> ZDocument | None:
        """The document, or None if none was put under the key.

        Args:
            key: What `store_key` returned.

        Returns:
            The document, or None.

        Raises:
            CorruptSpanError: if the row is damaged.
            StoreError: if the file cannot be read.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[ZDocument | None]:
        """`get` for each key, in order.

        Args:
            keys: What `store_key` returned; repeats are allowed.

        Returns:
            A document or None for each key.

        Raises:
            CorruptSpanError: if a row is damaged.
            StoreError: if the file cannot be read.
        """
        wanted = list(dict.fromkeys(map(check_key, keys)))
        found: dict[str, ZDocument] = {}
        with self._lock, self._translated("read"):
            connection = self._connected()
            for at in range(0, len(wanted), _QUERY_KEYS):
                chunk = wanted[at : at + _QUERY_KEYS]
                marks = ",".join("?" * len(chunk))
                query = f"{_SELECT} WHERE key IN ({marks})"
                for key, packed, checksum in connection.execute(query, chunk):
                    found[key] = self._unpack(key, packed, checksum)
        return [found.get(key) for key in keys]

    def put(self, key: str, document: ZDocument) -> None:
        """Keep the document; it is on disk when this returns.

        Args:
            key: What `store_key` returned.
            document: What to keep.

        Raises:
            StoreError: if it cannot be written: no space, no rights, or locked for too long.
        """
        packed = document.to_bytes()
        with self._lock, self._translated("write"):
            row = (check_key(key), packed, _row_checksum(key, packed))
            self._connected().execute(_UPSERT, row)

    def discard(self, key: str) -> None:
        """Forget a document, if it is there: the way out of a damaged row.

        Args:
            key: What `store_key` returned.

        Raises:
            StoreError: if the file cannot be written.
        """
        with self._lock, self._translated("write"):
            self._connected().execute("DELETE FROM documents WHERE key = ?", (check_key(key),))

    def damaged(self) -> tuple[str, ...]:
        """Keys of all rows that fail their checks, in order.

        Returns:
            The keys.

        Raises:
            StoreError: if the file cannot be read.
        """
        bad: list[str] = []
        with self._lock, self._translated("read"):
            for key, packed, checksum in self._connected().execute(f"{_SELECT} ORDER BY key"):
                try:
                    self._unpack(key, packed, checksum)
                except CorruptSpanError:
                    bad.append(str(key))
        return tuple(bad)

    def __len__(self) -> int:
        with self._lock, self._translated("read"):
            row = self._connected().execute("SELECT count(*) FROM documents").fetchone()
            return int(row[0])

    def close(self) -> None:
        """Close the file; closing twice is allowed, using the store afterwards is not."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"The store {self.path} is closed: open a new SQLiteStore.")
        if self._connection is None:  # closed for a fork
            self._connection = self._open()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")  # two processes may be making the file at once
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and (application or version or n_tables):
            raise StoreError(
                f"{self.path} is an SQLite database of another program; it was left as it is. "
                "Give another path."
            )
        if application == _APPLICATION_ID and version != _USER_VERSION:
            raise StoreError(
                f"{self.path} has schema version {version}, this zcontext reads {_USER_VERSION}: "
                "use the version that wrote it, or give another path."
            )
        if application != _APPLICATION_ID:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_USER_VERSION}")
            connection.execute(_TABLE)
        connection.execute("COMMIT")
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Turn the write-ahead log on; SQLite does not wait for others in this one statement."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                if not busy or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _unpack(self, key: str, packed: bytes, checksum: bytes) -> ZDocument:
        try:
            # A file from elsewhere can hold anything, also keys that are not text.
            if not isinstance(key, str) or _row_checksum(key, packed) != checksum:
                raise CorruptSpanError("its checksum does not match")
            return ZDocument.from_bytes(packed)
        except CorruptSpanError as error:
            raise CorruptSpanError(
                f"The row {key} of {self.path} is damaged: {error} Call discard(key) and compress "
                "the text again; damaged() lists all such rows."
            ) from error

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # damaged names are not UTF-8
            self._rollback()
            raise StoreError(self._explained(action, error)) from error

    def _rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself after such errors
                self._connection.execute("ROLLBACK")

    def _explained(self, action: str, error: Exception) -> str:
        name = getattr(error, "sqlite_errorname", "")
        known = (remedy for code, remedy in _REMEDIES.items() if name.startswith(code))
        return f"Cannot {action} the store {self.path} ({error}): {next(known, _UNKNOWN)}."


# SQLite cannot carry a connection through a fork: the child would believe in locks that only its
# parent holds, and a parent closing would then delete the log the child still writes to. So all
# stores are disconnected while the process forks, and connect again when they are used next.
_open_stores: WeakSet[SQLiteStore] = WeakSet()
_registering = Lock()  # held through a fork: no store is opened between the look and the fork
_at_fork: list[SQLiteStore] = []


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
        )


def _before_fork() -> None:
    _registering.acquire()
    for store in sorted(_open_stores, key=id):  # one order, so that two threads cannot deadlock
        store._lock.acquire()
        store._disconnect()
        _at_fork.append(store)


def _after_fork() -> None:
    while _at_fork:
        _at_fork.pop()._lock.release()
    _registering.release()


def _row_checksum(key: str, packed: bytes) -> bytes:
    """Binds a row's content to its key, so that a swapped row is seen too."""
    return sha256(key.encode() + packed).digest()


def _checked_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that is, or can become, a store."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise StoreError(f"path={text!r}: give the path of a file.")
    if text.startswith((":memory:", "file:")):
        raise StoreError(
            f"path={text!r}: SQLite addresses are not paths; give a file, or use MemoryStore()."
        )
    try:
        utf8_bytes(text)
        resolved = Path(text).expanduser().resolve()
        resolved.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made here and not by SQLite, which would make it readable by everybody.
        os.close(os.open(resolved, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if not resolved.is_file():
            raise StoreError(f"path={text!r} is not a regular file: give another path.")
    except (OSError, RuntimeError, VocabularyError) as error:
        raise StoreError(
            f"path={text!r} cannot hold a store: {error}. Give a file in a folder you may write."
        ) from error
    return resolved
