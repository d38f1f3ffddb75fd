"""The database of records: one sqlite file, one writer thread with group commit, readers beside it.

A change is a function of the writer's connection. Changes that arrive together are committed
together: each runs in a savepoint of its own, so that one failing change takes nothing else with
it, and all of them become durable with one sync of the write-ahead log. A change may run twice:
when the disk was full and room could be made, it is tried again.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from storage.errors import RecordConflictError, RecordsError, StorageFullError
from storage.files import mapped_errors as mapped_file_errors
from storage.files import may_grow
from storage.records import migrations

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

BUSY_TIMEOUT_S = 10.0
LOG_TIMEOUT_MS = 500  # for readers to let go of the write-ahead log at the end
_CLOSED = "the database is closed"
GROUP_COUNT_MAX = 256  # changes in one commit
# Full, in sqlite's words. The second: there was no room for the file that its processes share.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY")


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn the driver's errors into ours: the only place that knows them."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise RecordConflictError(str(error)) from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in _FULL:
            raise StorageFullError("the database: the disk is full") from error
        raise RecordsError(f"the database refused: {error}") from error
    except UnicodeDecodeError as error:  # the driver's, of a message that quotes damage
        raise RecordsError(
            f"the database refused, with a message that is no text: {error}"
        ) from error


class Records:
    """The open database. Thread safe: any thread may write; each thread reads by its own handle."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, relieve: Callable[[], bool]
    ) -> None:
        """For `open`: `connection` is the writer's."""
        self.path = path
        self._relieve = relieve
        self.commits = 0  # by this process; grows before the writers of a commit hear of it
        self._queue: queue.SimpleQueue[tuple[Change[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._closing = threading.Lock()
        self._is_closed = False
        self._writer = threading.Thread(
            target=self._run, args=(connection,), name="records-writer", daemon=True
        )

    @classmethod
    def open(cls, path: Path, *, relieve: Callable[[], bool] = lambda: False) -> Records:
        """Open the database at `path`, making or migrating it first.

        Two processes may open at once: migrations run under a file lock. `relieve` is asked to make
        room when the disk is full, and says whether it did: then the write is tried once more.

        Raises:
            RecordsError: The file is no database, or a migration failed.
            StorageFullError: The disk is full.
            StorageIoError: The folder cannot be written to.
        """
        try:
            _migrate(path)
        except (StorageFullError, RecordsError) as error:
            told = _told(error, path)
            if not isinstance(told, StorageFullError):
                raise
            if not relieve():
                raise told from error
            _migrate(path)
        records = cls(path, _connect(path), relieve)
        records._writer.start()
        return records

    def reader(self) -> sqlite3.Connection:
        """Return this thread's read-only connection (`row_factory` is `sqlite3.Row`).

        It sees every change whose `write` has returned. Never keep a cursor half read: that pins
        an old state.

        Raises:
            RecordsError: The database cannot be opened, for want of files for instance.
        """
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self.path)
            connection.execute("PRAGMA query_only=ON")
            self._local.connection = connection
        return connection

    def submit(self, change: Change[T]) -> Future[T]:
        """Queue `change` for the writer. The future ends when the change is durable, or raised.

        A change reads and writes records and does nothing else: its group may fail to commit.
        """
        future: Future[T] = Future()
        # It runs whatever becomes of whoever waits: a future that they could cancel would end the
        # writer when it tells the answer.
        future.set_running_or_notify_cancel()
        with self._closing:
            if self._is_closed:
                raise RecordsError(_CLOSED)
            self._queue.put((change, future))
        return future

    def write(self, change: Change[T]) -> T:
        """Run `change` on the writer's thread and return its answer. Durable when it returns."""
        return self.submit(change).result()

    def settle(self) -> None:
        """Make a commit, so that no earlier one is in doubt: what the records do not know after it
        they will not know later.

        One that failed may lie in the write-ahead log, whole, and come back when the last process
        that has the database open is killed. The next commit is written over its beginning.

        Raises:
            RecordsError: It failed as well.
            StorageFullError: The disk is full.
        """
        self.write(_change_nothing_known)

    def copy_into(self, path: Path) -> None:
        """Write the database as it is at this moment into a new file. Writers go on meanwhile.

        The caller makes it durable.

        Raises:
            StorageFullError: No room there.
            RecordsError: The database refused.
        """
        with mapped_errors():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            copy = sqlite3.connect(path, isolation_level=None)
            try:
                copy.execute("PRAGMA synchronous=OFF")
                self.reader().backup(copy)
            finally:
                copy.close()

    def checkpoint(self) -> None:
        """Move what the write-ahead log holds into the database, as far as no reader needs it.

        Done by itself from time to time, in the middle of some commit, which then takes longer.
        Who cannot afford that does it before. Nobody waits for it: writing goes on meanwhile.
        """
        with mapped_errors():
            self.reader().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is queued, then close. A second call does nothing.

        Other threads read on by theirs, which go with them: to close one that is read by just now
        ends the whole process.
        """
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._writer.join()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()

    # -- the writer's thread ------------------------------------------------------------------

    def _run(self, connection: sqlite3.Connection) -> None:
        try:
            while (group := self._next_group()) is not None:
                self._commit_or_tell(connection, group)
        finally:  # nobody waits for ever for what nobody does
            _empty_log(connection)
            connection.close()
            self._refuse_what_waits()

    def _commit_or_tell(
        self, connection: sqlite3.Connection, group: list[tuple[Change[Any], Future[Any]]]
    ) -> None:
        """Commit; what goes wrong around that is told to everyone in the group as well."""
        try:
            self._commit(connection, group)
        except Exception as error:  # noqa: BLE001 - as the ring of a group
            _fail(group, error)
        except BaseException:
            _fail(group, RecordsError(_CLOSED))
            raise

    def _refuse_what_waits(self) -> None:
        with self._closing:
            self._is_closed = True
        while not self._queue.empty():
            if (item := self._queue.get_nowait()) is not None:
                _fail([item], RecordsError(_CLOSED))

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
        changes = [change for change, _ in group]
        outcomes = self._outcomes(connection, changes)
        again = [n for n, outcome in enumerate(outcomes) if _is_full(outcome)]
        if again and self._relieve():
            retried = self._outcomes(connection, [changes[n] for n in again])
            for n, outcome in zip(again, retried, strict=True):
                outcomes[n] = outcome
        if any(not isinstance(outcome, _Failed) for outcome in outcomes):
            self.commits += 1
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, _Failed):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)

    def _outcomes(self, connection: sqlite3.Connection, changes: list[Change[Any]]) -> list[Any]:
        """As `_run_group`; a quota that is used up is told as a full disk."""
        return [
            _Failed(_told(outcome.error, self.path)) if isinstance(outcome, _Failed) else outcome
            for outcome in _run_group(connection, changes)
        ]


def _change_nothing_known(connection: sqlite3.Connection) -> None:
    """A change for a commit's own sake: a number that nobody reads, since the same value again
    would write nothing.
    """
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {(number + 1) % (1 << 31)}")


def _empty_log(connection: sqlite3.Connection) -> None:
    """Let the database be whole without its write-ahead log, where nobody needs that.

    The last connection that is closed does so by itself, but threads may have theirs for longer:
    who copies the one file of a server that was stopped would have an old state.
    """
    with contextlib.suppress(sqlite3.Error):
        connection.execute(f"PRAGMA busy_timeout={LOG_TIMEOUT_MS}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


def _fail(group: list[tuple[Change[Any], Future[Any]]], error: Exception) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)


def _told(error: Exception, path: Path) -> Exception:
    """Tell a write that was refused for want of room as that; other errors stay as they are.

    The driver calls a disk full only for ENOSPC: behind its other error may be a quota. The folder
    of the database is asked.
    """
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    if code != sqlite3.SQLITE_IOERR_WRITE or may_grow(path.parent):
        return error
    full = StorageFullError("the database: the disk is full, or a quota is used up")
    full.__cause__ = error
    return full


def _is_full(outcome: object) -> bool:
    return isinstance(outcome, _Failed) and isinstance(outcome.error, StorageFullError)


def _run_group(connection: sqlite3.Connection, changes: list[Change[Any]]) -> list[Any]:
    """Run changes in one transaction; return for each its answer, or how it failed."""
    outcomes: list[Any] = []
    try:
        with mapped_errors():
            connection.execute("BEGIN IMMEDIATE")
        for change in changes:
            try:
                with savepoint(connection):
                    answer = change(connection)
                outcomes.append(answer)
            except Exception as error:  # the ring of a change: its caller gets it
                outcomes.append(_Failed(error))
                if not connection.in_transaction:
                    raise  # a full disk can end it, and with it the changes of the others
        with mapped_errors():
            connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - the ring of a group: every caller gets it
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        own = {n: o for n, o in enumerate(outcomes) if isinstance(o, _Failed)}
        return [own.get(n, _Failed(error)) for n in range(len(changes))]
    return outcomes


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
    with mapped_errors():
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
    return connection


def _migrate(path: Path) -> None:
    with mapped_errors(), mapped_file_errors("open the database"):
        _migrate_locked(path)


def _refuse_newer(connection: sqlite3.Connection) -> None:
    """Touch nothing of what a later version made: half of what it says would be lost."""
    if steps := migrations.unknown(migrations.applied(connection)):
        raise RecordsError(
            "the database was made by a newer gitd, by steps that this one does not know"
            f" ({', '.join(steps)}): install that version again, or restore a backup of before"
        )


def _migrate_locked(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".migrate"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = _connect(path)
        try:
            _refuse_newer(connection)
            migrations.apply(connection)
        finally:
            connection.close()
    finally:
        os.close(lock)
