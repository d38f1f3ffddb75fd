"""The database of records: one sqlite file, one writer thread with group commit, readers beside it.

A change is a function of the writer's connection. Changes that arrive together are committed
together: each runs in a savepoint of its own, so that one failing change takes nothing else with
it, and all of them become durable with one sync of the write-ahead log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from sqlite_utils import Database

from storage.errors import RecordConflictError, RecordsError, StorageFullError
from storage.records.migrations import MIGRATIONS

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

BUSY_TIMEOUT_S = 10.0
GROUP_COUNT_MAX = 256  # changes in one commit
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY")


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn the driver's errors into ours: the only place that knows them."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise RecordConflictError(str(error)) from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFullError("the database: the disk is full") from error
        raise RecordsError(f"the database refused: {error}") from error


class Records:
    """The open database. Thread safe: any thread may write; each thread reads by its own handle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = 0  # by this process; grows before the writers of a commit hear of it
        self._queue: queue.SimpleQueue[tuple[Change[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._closing = threading.Lock()
        self._is_closed = False
        self._writer = threading.Thread(target=self._run, name="records-writer", daemon=True)

    @classmethod
    def open(cls, path: Path) -> Records:
        """Open the database at `path`, making or migrating it first.

        Two processes may open at once: migrations run under a file lock.

        Raises:
            RecordsError: The file is no database, or a migration failed.
        """
        with mapped_errors():
            _migrate(path)
        records = cls(path)
        records._writer.start()
        return records

    def reader(self) -> sqlite3.Connection:
        """Return this thread's read-only connection (`row_factory` is `sqlite3.Row`).

        It sees every change whose `write` has returned. Never keep a cursor half read: that pins
        an old state.
        """
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only=ON")
            self._local.connection = connection
            with self._closing:
                self._readers.append(connection)
        return connection

    def submit(self, change: Change[T]) -> Future[T]:
        """Queue `change` for the writer. The future ends when the change is durable, or raised.

        A change reads and writes records and does nothing else: its group may fail to commit.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._is_closed:
                raise RecordsError("the database is closed")
            self._queue.put((change, future))
        return future

    def write(self, change: Change[T]) -> T:
        """Run `change` on the writer's thread and return its answer. Durable when it returns."""
        return self.submit(change).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is queued, then close. A second call does nothing."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            self._queue.put(None)
        self._writer.join()
        for connection in self._readers:
            connection.close()

    # -- the writer's thread ------------------------------------------------------------------

    def _run(self) -> None:
        connection = _connect(self.path)
        try:
            while (group := self._next_group()) is not None:
                self._commit(connection, group)
        finally:
            connection.close()

    def _next_group(self) -> list[tuple[Change[Any], Future[Any]]] | None:
        first = self._queue.get()
        if first is None:
            return None
        group = [first]
        while len(group) < GROUP_COUNT_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            group.append(item)
        return group

    def _commit(
        self, connection: sqlite3.Connection, group: list[tuple[Change[Any], Future[Any]]]
    ) -> None:
        answers: list[tuple[Future[Any], Any]] = []
        try:
            with mapped_errors():
                connection.execute("BEGIN IMMEDIATE")
            for change, future in group:
                try:
                    with savepoint(connection):
                        answer = change(connection)
                    answers.append((future, answer))
                except Exception as error:  # the ring of a change: its caller gets it
                    future.set_exception(error)
                    if not connection.in_transaction:
                        raise  # a full disk can end it, and with it the changes of the others
            with mapped_errors():
                connection.execute("COMMIT")
            self.commits += 1
        except Exception as error:  # noqa: BLE001 - the ring of a group: every caller gets it
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for future, answer in answers:
            future.set_result(answer)


@contextlib.contextmanager
def savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """A part of a transaction that may fail by itself: only what it did is undone."""
    connection.execute("SAVEPOINT part")
    try:
        with mapped_errors():
            yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO part")
            connection.execute("RELEASE part")
        raise
    connection.execute("RELEASE part")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _migrate(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".migrate"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = _connect(path)
        try:
            MIGRATIONS.apply(Database(cast("Any", connection)))
        finally:
            connection.close()
    finally:
        os.close(lock)
