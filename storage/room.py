"""Room: what is free on the filesystem of a store, what is promised, and what is set aside.

Some bytes and files always stay free: whoever takes a tree in claims its room before writing, and
is refused beyond that. A reserve lies beside, as a file: when the disk is full all the same, it is
given up, so that records can be written, releases rolled back and room be made.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from storage.errors import StorageFullError, StorageIoError
from storage.files import mapped_errors
from storage.layout import Layout

RELIEF_BYTES = 16 << 20  # with less than this free, what is set aside is needed
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """What is kept free.

    Attributes:
        free_bytes_min: Nothing is taken in that would leave less.
        free_inodes_min: The same, as a number of files, where the filesystem bounds that.
        reserve_bytes: How large the file is that is given up when the disk is full; 0 for none.
    """

    free_bytes_min: int = 256 << 20
    free_inodes_min: int = 4096
    reserve_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Space:
    """How a filesystem stands. `free_inodes` is None where there is no bound."""

    total_bytes: int
    free_bytes: int
    free_inodes: int | None


class Room:
    """The room of one store. Any thread may use it; promises are known to this process alone."""

    def __init__(self, layout: Layout, limits: RoomLimits) -> None:
        self.limits = limits
        self._layout = layout
        self._lock = threading.Lock()
        self._promised_bytes = 0
        self._promised_files = 0

    def space(self) -> Space:
        """Look at the filesystem.

        Raises:
            StorageIoError: The system refused.
        """
        with mapped_errors(f"look at the room of {self._layout.root}"):
            found = os.statvfs(self._layout.root)
        return Space(
            total_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            # Some filesystems have no fixed number of inodes and say 0.
            free_inodes=found.f_favail if found.f_files else None,
        )

    # -- promises -------------------------------------------------------------------------------

    def check(self, size_bytes: int = 0, files: int = 0) -> None:
        """Refuse when so much more could not be written beside all that is promised.

        Raises:
            StorageFullError: It could not; the message has the numbers.
        """
        with self._lock:
            self._check(size_bytes, files)

    @contextlib.contextmanager
    def claimed(self, size_bytes: int, files: int) -> Iterator[None]:
        """Promise room to whoever writes so much now; nobody else is promised the same.

        Raises:
            StorageFullError: As `check`.
        """
        with self._lock:
            self._check(size_bytes, files)
            self._promised_bytes += size_bytes
            self._promised_files += files
        try:
            yield
        finally:
            with self._lock:
                self._promised_bytes -= size_bytes
                self._promised_files -= files

    def _check(self, size_bytes: int, files: int) -> None:
        space, limits = self.space(), self.limits
        if space.free_bytes - self._promised_bytes - size_bytes < limits.free_bytes_min:
            raise StorageFullError(
                f"{_of(space.free_bytes)} of {_of(space.total_bytes)} are free on the disk, and "
                f"{_of(limits.free_bytes_min)} are kept free{_beside(size_bytes)}"
            )
        if space.free_inodes is None:
            return
        if space.free_inodes - self._promised_files - files < limits.free_inodes_min:
            raise StorageFullError(
                f"{space.free_inodes} more files can be made on the disk, and "
                f"{limits.free_inodes_min} are kept for what must go on"
            )

    # -- the reserve ----------------------------------------------------------------------------

    def set_aside(self) -> bool:
        """Make the reserve, unless it is there or would take what is kept free. Says if it is."""
        with self._lock, contextlib.suppress(OSError, StorageIoError):
            return self._set_aside(self.limits.reserve_bytes)
        return False

    def _set_aside(self, wanted: int) -> bool:
        path = self._layout.reserve
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == wanted:
                return True
        # Twice its size: or making it would at once be a reason to give it up again.
        if not wanted or self.space().free_bytes < self.limits.free_bytes_min + 2 * wanted:
            return False
        try:
            _allocate(str(path), wanted)
        except OSError:  # full after all, or a filesystem that cannot
            path.unlink(missing_ok=True)
            return False
        return True

    def relieve(self) -> bool:
        """Give the reserve up: the disk is full. Says whether there is more room now."""
        try:
            self._layout.reserve.unlink()
        except OSError:
            return False
        return True

    def relieve_if_full(self) -> None:
        """Give the reserve up when the disk is full, or nearly: for what must not fail.

        Cheap, and needs no room itself.
        """
        with contextlib.suppress(StorageIoError):
            if self.space().free_bytes < RELIEF_BYTES:
                self.relieve()


def size_in_words(size_bytes: int) -> str:
    """Write a size for people, such as `1.2 MB`."""
    size = float(size_bytes)
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


_of = size_in_words


def _beside(size_bytes: int) -> str:
    return f"; {_of(size_bytes)} more are needed" if size_bytes else ""


def _allocate(path: str, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    finally:
        os.close(fd)
