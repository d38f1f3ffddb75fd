"""Files: the one place that maps the operating system's errors, and how bytes become durable."""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH102, PTH106, PTH110

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from storage.errors import StorageFullError, StorageIoError

_DRAFT = re.compile(r"\..+\.[0-9a-f]{12}")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
PROBE_BYTES = 64 << 10
_MORE_BYTES = 1 << 20  # asked for at once where a file goes on behind its size
# Up to so many files (or directories) each is synced alone, which leaves other people's dirty
# pages alone; beyond it one sync of the filesystem is much cheaper.
SYNC_EACH_COUNT_MAX = 16
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7

T = TypeVar("T")


@contextlib.contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Turn `OSError` into ours; `doing` says what was tried, for people."""
    try:
        yield
    except OSError as error:
        raise mapped(error, doing) from error


def mapped(error: OSError, doing: str) -> StorageFullError | StorageIoError:
    if error.errno in FULL:
        return StorageFullError(f"{doing}: the disk is full ({error.strerror})")
    return StorageIoError(f"{doing}: {error}", code=error.errno)


# -- reading -------------------------------------------------------------------------------------


def open_regular(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading; never follows a link there, never waits for a pipe.

    Raises:
        OSError: Not there, a link (ELOOP), or not a regular file (EINVAL).
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_bounded(path: str | Path, *, size_bytes_max: int) -> bytes:
    """Read a small regular file whole.

    Raises:
        OSError: As `open_regular`, or EFBIG when it is longer than the bound.
    """
    fd = open_regular(path)
    try:
        data = read_up_to(fd, size_bytes_max + 1)
    finally:
        os.close(fd)
    if len(data) > size_bytes_max:
        raise OSError(errno.EFBIG, "longer than it may be", str(path))
    return data


def read_up_to(fd: int, count: int) -> bytes:
    """Read until `count` bytes or the end of the file.

    A bound may be far more than what there is, and Python makes room for all that is asked for.
    """
    data = os.read(fd, min(count, os.fstat(fd).st_size + 1))
    if len(data) == count or not data:
        return data
    parts = [data]
    missing = count - len(data)
    while missing and (data := os.read(fd, min(missing, _MORE_BYTES))):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def read_sized(fd: int, size_bytes: int) -> bytes:
    """Read a regular file that ought to be so long: a byte more than that when it is longer."""
    data = os.read(fd, size_bytes + 1)
    if len(data) >= size_bytes:
        return data
    return data + read_up_to(fd, size_bytes + 1 - len(data))  # some filesystems give less at once


# -- writing -------------------------------------------------------------------------------------


def write_all(fd: int, data: bytes | memoryview) -> None:
    written = os.write(fd, data)
    if written == len(data):
        return
    rest = memoryview(data)[written:]
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_atomic(path: Path, data: bytes, *, mode: int, replace: bool = True) -> bool:
    """Put a whole file in place, or nothing. Durable when it returns.

    A crash leaves at most a draft beside it, for `remove_drafts`.

    Returns:
        False when `replace` is false and the name was taken; the file there is left alone.
    """
    draft, fd = _new_draft(path)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            os.fsync(fd)
            if replace:
                draft.rename(path)
            else:
                os.link(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            os.close(fd)
    except FileExistsError:
        return False
    sync_directory(path.parent)
    return True


def remove_drafts(folder: str | Path) -> int:
    """Remove what broken-off `write_atomic` left in a folder; return how many files.

    A draft is locked as long as its writer lives, so others may write meanwhile.
    """
    return sum(remove_draft(f"{folder}/{name}") for name in os.listdir(folder) if is_draft(name))  # noqa: PTH208 - names alone are wanted


def is_draft(name: str) -> bool:
    return _DRAFT.fullmatch(name) is not None


def remove_draft(path: str) -> bool:
    """Remove a draft, and say so, unless its writer lives or has put it in place."""
    with contextlib.suppress(OSError):
        fd = open_regular(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)  # noqa: PTH108 - a plain string
            return True
        finally:
            os.close(fd)
    return False


def _new_draft(path: Path) -> tuple[Path, int]:
    while True:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return draft, fd
        os.close(fd)  # taken for a dead writer's, and removed, before it could be locked


def sync_directory(path: str | Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_together(paths: Collection[str], threads: ThreadPoolExecutor | None) -> None:
    """Make a few files or directories durable, all at once.

    A commit of the filesystem's journal takes in what is asked for meanwhile: one after the other,
    each would wait for a commit of its own.

    Raises:
        OSError: One of them was refused; the others may be durable or not.
    """
    _call_for_each(sync_file, paths, threads)


def _call_for_each(
    call: Callable[[T], object], subjects: Collection[T], threads: ThreadPoolExecutor | None
) -> None:
    """Call for all of them, all at once. Also when one fails, none of the calls goes on after it:
    a descriptor that is closed then may be another file's at once.
    """
    if threads is None:
        for subject in subjects:
            call(subject)
        return
    calls: list[Future[object]] = []
    try:
        calls.extend(threads.submit(call, subject) for subject in subjects)
    finally:
        wait(calls)
    for one in calls:
        one.result()


def sync_in_order(paths: Iterable[str | Path], meanwhile: Callable[[], T]) -> T:
    """Make a few files durable, and do something else while the disk is at it.

    All are handed to the disk before the first is waited for: that one's commit of the journal
    then takes in the others, where `sync_together` needs threads for it.

    Raises:
        OSError: One of them was refused; the others may be durable or not.
    """
    with contextlib.ExitStack() as stack:
        descriptors = []
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            begin_writing(fd)
            descriptors.append(fd)
        done = meanwhile()
        for fd in descriptors:
            os.fsync(fd)
    return done


def begin_writing(fd: int, offset: int = 0, size_bytes: int = 0) -> None:
    """Have the disk begin with a part of a file; without a size, with all behind the offset.

    It is no more than a beginning, and nothing is said of what failed: fsync is called as ever.

    Source: sync_file_range(2).
    """
    _sync_range(fd, offset, size_bytes, _SYNC_FILE_RANGE_WRITE)


def finish_writing(fd: int, offset: int, size_bytes: int) -> None:
    """Wait until the disk has taken a part of a file, which is not durable for all that. Does not
    where the kernel has no such call, or keeps this process from it.

    Raises:
        OSError: It could not write something of the file. It says so once: a later fsync does not.

    Source: sync_file_range(2).
    """
    if _sync_range(fd, offset, size_bytes, _SYNC_FILE_RANGE_WRITE_AND_WAIT) != 0:
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):
            raise OSError(code, os.strerror(code), "sync_file_range")


def _sync_range(fd: int, offset: int, size_bytes: int, flags: int) -> int:
    part = ctypes.c_int64(offset), ctypes.c_int64(size_bytes)
    return int(_LIBC.sync_file_range(fd, *part, flags))


def sync_filesystem(fd: int) -> None:
    """Write out the whole filesystem that `fd` lies on.

    Errors of writes made since `fd` was opened are reported, so open it before writing.
    After an error never try again: the kernel may have dropped what it could not write.

    Source: syncfs(2), Linux 5.8 and later.
    """
    if _LIBC.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "syncfs")


def may_grow(folder: str | Path) -> bool:
    """Whether a file in a folder may take some more bytes: the disk is not full, nor a quota."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
    except OSError as error:
        return error.errno not in FULL
    return True


# -- removing ------------------------------------------------------------------------------------


class Remover:
    """Removes files, each by itself: one that cannot be removed holds up no other.

    Attributes:
        count: How many files it removed.
        refused: Why the others are there still, for people, by their paths.
    """

    def __init__(self) -> None:
        self.count = 0
        self.refused: dict[str, str] = {}

    def remove(self, path: str) -> bool:
        """Remove a file, and say whether there is no such file now."""
        try:
            os.unlink(path)  # noqa: PTH108 - a plain string
        except FileNotFoundError:
            return True
        except OSError as error:
            self.refused[path] = error.strerror or str(error)
            return False
        self.count += 1
        return True

    def stuck(self) -> tuple[str, ...]:
        """What is there still, a sentence each."""
        return tuple(f"{path}: {reason}" for path, reason in self.refused.items())


# -- leases --------------------------------------------------------------------------------------


class Lease:
    """A scratch directory that lives as long as its owner: the lease is a lock on the directory.

    The kernel drops the lock when the owner dies, so nobody needs a clock to know. A directory
    whose lock is free is rubbish.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.is_abandoned = False
        self.closing = contextlib.ExitStack()  # what is closed with it

    @classmethod
    def take(cls, parent: Path) -> Lease:
        """Make a new lease in `parent`.

        Raises:
            OSError: The system refused.
        """
        while True:
            path = f"{parent}/{secrets.token_hex(8)}"
            os.mkdir(path, 0o700)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # taken for a dead owner's, and removed, before it could be locked
            except OSError:
                os.rmdir(path)
                raise
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(path):
                return cls(path, fd)
            os.close(fd)  # the same, a moment later

    @classmethod
    def seize(cls, path: Path) -> Lease | None:
        """Take over a dead owner's lease; None when its owner lives, or it is gone or no lease."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return cls(str(path), fd)

    def release(self) -> None:
        """Remove the directory and all in it, unless it is abandoned: then whoever seizes it does.

        A second call does nothing.
        """
        if self.fd < 0:
            return
        if not self.is_abandoned:
            shutil.rmtree(self.path, ignore_errors=True)
        self.closing.close()
        os.close(self.fd)
        self.fd = -1


class Unsynced:
    """The files that were written below a lease, and are not durable yet.

    A few stay open until they are synced. What could not be written is told to whoever has the file
    open; once nobody has, memory that runs short forgets the file, and the error with it. Of many
    the lease is told, which was opened before the first of them.
    """

    def __init__(self, lease: Lease, threads: ThreadPoolExecutor | None = None) -> None:
        """`threads`: those that wait for the disk; without them one file is synced at a time."""
        self._lease = lease
        self._threads = threads
        self._count = 0
        self._open: list[int] = []
        lease.closing.callback(self._close)

    @property
    def are_many(self) -> bool:
        """Whether the filesystem will be synced, and not each file."""
        return self._count > SYNC_EACH_COUNT_MAX

    def add(self, fd: int) -> None:
        """Take over a file that was written: it is closed in time."""
        self._count += 1
        if self._count <= SYNC_EACH_COUNT_MAX:
            self._open.append(fd)
            return
        os.close(fd)
        if self._open:
            self._close()

    def sync(self) -> None:
        """Make them durable.

        Raises:
            OSError: One of them was refused; the others may be durable or not. Never try again.
        """
        if self.are_many:
            sync_filesystem(self._lease.fd)
        else:
            _call_for_each(os.fsync, self._open, self._threads)
        self._close()
        self._count = 0

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())
