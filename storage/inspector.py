"""The inspector: whether a part of a store is what its name says, and as it must lie there."""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH116

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from storage.blob_reading import forget_cached
from storage.blobs import is_executable
from storage.digest import DIGEST_BYTES, Digest
from storage.files import read_up_to
from storage.layout import STATEMENT_MODE, Layout, blob_mode, blob_mtime
from storage.parts import Part, PartKind

# Called with the size of each piece before that is read; may take its time, and what it raises ends
# the reading.
Pace = Callable[[int], object]

PIECE_BYTES = 1 << 20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What says nothing about the file: this process, or the machine, is out of something.
_OF_THE_PROCESS = frozenset(
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBADF]
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a part.

    Attributes:
        text: For people, without its name.
        is_of_bytes: Its bytes are not those that it must have; otherwise only what is beside them
            is wrong: its mode, its time, its owner.
        stamp: Which file, in which state, was looked at; None when there is none.
    """

    text: str
    is_of_bytes: bool
    stamp: tuple[int, int, int] | None = None


class Inspector:
    """Looks at the parts of one store. Changes nothing; any thread may use it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._uid = os.stat(layout.root).st_uid

    def fault(
        self,
        part: Part,
        size_bytes: int | None,
        *,
        reads: bool = True,
        pace: Pace | None = None,
    ) -> Fault | None:
        """Say what is wrong with a part.

        `size_bytes`: that of a blob, by its row. `reads`: hold the contents of a blob against its
        name too. `pace`: the medium is read, not what the system remembers of it.

        Raises:
            OSError: It cannot be looked at, which says nothing about the part.
        """
        if part.kind is not PartKind.BLOB:
            return self._statement_fault(part, pace)
        assert size_bytes is not None, "its row has it"
        return self.blob_fault(part.key, size_bytes, reads=reads, pace=pace)

    def blob_fault(
        self,
        key: bytes,
        size_bytes: int,
        *,
        reads: bool,
        pace: Pace | None = None,
    ) -> Fault | None:
        """As `fault`."""
        digest = Digest(key[:DIGEST_BYTES])
        path = self._layout.blob(digest, executable=is_executable(key))
        try:
            if not reads:
                status = os.lstat(path)
                return self._blob_status_fault(status, digest, key, size_bytes)
            fd = os.open(path, _OPEN)
            try:
                status = os.fstat(fd)
                beside = self._blob_status_fault(status, digest, key, size_bytes)
                if beside is not None and beside.is_of_bytes:
                    return beside
                if _digest_of(fd, size_bytes, pace) == digest:
                    return beside
            finally:
                os.close(fd)
        except OSError as error:
            return _unreadable(path, error)
        before = "was written to, and " if int(status.st_mtime) != blob_mtime(digest) else ""
        return Fault(f"{before}has other bytes", is_of_bytes=True, stamp=stamp_of(status))

    def _blob_status_fault(
        self, status: os.stat_result, digest: Digest, key: bytes, size_bytes: int
    ) -> Fault | None:
        mode = status.st_mode
        if not stat.S_ISREG(mode):
            return Fault("is no regular file", is_of_bytes=True, stamp=stamp_of(status))
        if status.st_size != size_bytes:
            text = f"has {status.st_size} bytes instead of {size_bytes}"
            return Fault(text, is_of_bytes=True, stamp=stamp_of(status))
        if stat.S_IMODE(mode) != blob_mode(executable=is_executable(key)):
            text = f"has the mode {stat.S_IMODE(mode):04o}"
        elif int(status.st_mtime) != blob_mtime(digest):
            text = "was written to, or its time was set"
        elif status.st_uid != self._uid:
            text = f"belongs to the user {status.st_uid} instead of {self._uid}"
        else:
            return None
        return Fault(text, is_of_bytes=False, stamp=stamp_of(status))

    def _statement_fault(self, part: Part, pace: Pace | None) -> Fault | None:
        path = part.path(self._layout)
        try:
            status = os.lstat(path)
            if pace is not None:
                pace(status.st_size)
            if not stat.S_ISREG(status.st_mode):
                return Fault("is no regular file", is_of_bytes=True, stamp=stamp_of(status))
            fd = os.open(path, _OPEN)
            try:
                data = _read(fd, part.size_bytes_max, pace)
            finally:
                os.close(fd)
        except OSError as error:
            return _unreadable(path, error)
        if len(data) > part.size_bytes_max:
            return Fault("is far too long", is_of_bytes=True, stamp=stamp_of(status))
        if not part.names(data):
            return Fault("has other bytes", is_of_bytes=True, stamp=stamp_of(status))
        if stat.S_IMODE(status.st_mode) != STATEMENT_MODE:
            text = f"has the mode {stat.S_IMODE(status.st_mode):04o}"
        elif status.st_uid != self._uid:
            text = f"belongs to the user {status.st_uid} instead of {self._uid}"
        else:
            return None
        return Fault(text, is_of_bytes=False, stamp=stamp_of(status))

    def is_copy(self, path: str, part: Part, size_bytes: int | None, pace: Pace | None) -> bool:
        """Whether a file, wherever it lies, has the bytes of a part. `size_bytes`, `pace`: as for
        `fault`.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        fd = os.open(path, _OPEN)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return False
            if part.kind is PartKind.BLOB:
                return status.st_size == size_bytes and (
                    _digest_of(fd, status.st_size, pace) == part.digest
                )
            if status.st_size > part.size_bytes_max:
                return False
            if pace is not None:
                pace(status.st_size)
            return part.names(_read(fd, status.st_size, pace))
        finally:
            os.close(fd)

    def is_as_before(self, part: Part, fault: Fault) -> bool:
        """Whether what the fault was found in lies there still, unchanged since."""
        try:
            return stamp_of(os.lstat(part.path(self._layout))) == fault.stamp
        except OSError:
            return fault.stamp is None


def from_medium(_: int) -> None:
    """A pace that is none: the medium is asked, as fast as it answers."""


def _read(fd: int, size_bytes_max: int, pace: Pace | None) -> bytes:
    """Read a small file: a byte more than the bound when it is longer."""
    if pace is not None:
        forget_cached(fd)
    return read_up_to(fd, size_bytes_max + 1)


def _digest_of(fd: int, size_bytes: int, pace: Pace | None) -> bytes:
    """Read a file of that size, and see whether it goes on after it."""
    if pace is not None:
        forget_cached(fd)
        pace(min(size_bytes, PIECE_BYTES))
    data = os.read(fd, PIECE_BYTES)
    if len(data) == size_bytes < PIECE_BYTES:
        return blake3(data).digest()
    hasher = blake3(data)
    while data:
        if pace is not None:
            pace(len(data))
        data = os.read(fd, PIECE_BYTES)
        hasher.update(data)
    return hasher.digest()


def _unreadable(path: str, error: OSError) -> Fault:
    if error.errno in _OF_THE_PROCESS:
        raise error
    if error.errno == errno.ENOENT:
        return Fault("is missing", is_of_bytes=True)
    if error.errno == errno.EACCES:
        # Nobody knows what is in it before its mode is set right.
        return Fault("may not be read", is_of_bytes=False, stamp=_stamp_at(path))
    return Fault(f"cannot be read: {error.strerror}", is_of_bytes=True, stamp=_stamp_at(path))


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is another one, or was written to."""
    return status.st_ino, status.st_size, status.st_ctime_ns


def _stamp_at(path: str) -> tuple[int, int, int] | None:
    try:
        return stamp_of(os.lstat(path))
    except OSError:
        return None
