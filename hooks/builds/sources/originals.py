"""Originals: the commit's files in a build's tree, and which of them nobody has touched since.

The kernel notes in a file's `ctime` when it was last written to, renamed, linked, or given another
mode. No call sets it, and those that write past it are refused in sandboxes (ext4 and f2fs move
contents from file to file, XFS swaps them: see `seccomp`). So what has the marks that it had when
it was unpacked is what was unpacked, and need not be read to be known.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from pathlib import Path

_TICK_S = 0.002
_TICKS_MAX = 10  # longer than the kernel's clock stands still
_MARK = struct.Struct("=QQIQqq")  # a third of the memory of a tuple
_SIZE = 3  # where it stands in one


class Originals:
    """What was unpacked, by its path in the tree."""

    def __init__(self) -> None:
        self._marks: dict[bytes, bytes] = {}
        self._newest_ns = 0
        self._sealed_at_ns = 0

    def clear(self) -> None:
        """Forget what was noted: it is not there any more."""
        self._marks.clear()

    def take_over(self, other: Originals) -> None:
        """Note what is noted there: the folder that it lies in is this one now."""
        self._marks |= other._marks
        self._newest_ns = max(self._newest_ns, other._newest_ns)

    def forget(self, path: bytes) -> int:
        """Forget a file that is removed; return its size, 0 of what was not noted."""
        mark = self._marks.pop(path, None)
        return 0 if mark is None else _MARK.unpack(mark)[_SIZE]

    def note(self, path: bytes, status: os.stat_result) -> None:
        """Note a file that was just written, with all of its contents."""
        self._marks[path] = _mark(status)
        self._newest_ns = max(self._newest_ns, status.st_ctime_ns)

    def seal(self, folder: Path) -> None:
        """Call it after the last `note`, and before anybody else may write. Blocking.

        What is written later has no earlier time than this moment; so this waits for the clock of
        the file system to go on, and what is of this very moment still is none that could be told.
        `folder`: beside the files, on the same file system.
        """
        for _ in range(_TICKS_MAX):
            status = _new_file(folder)
            if status.st_ctime_ns > self._newest_ns:
                break
            time.sleep(_TICK_S)
        if are_mapped_writes_shown(status.st_dev, folder):
            self._sealed_at_ns = status.st_ctime_ns

    def has(self, path: bytes, status: os.stat_result) -> bool:
        """Say whether the file of this status is the one that was unpacked there, untouched.

        Whoever could write to it must be dead. False where that cannot be told, too.
        """
        return status.st_ctime_ns < self._sealed_at_ns and self._marks.get(path) == _mark(status)


def _mark(status: os.stat_result) -> bytes:
    return _MARK.pack(
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _new_file(folder: Path) -> os.stat_result:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno())


_shown_by_device: dict[int, bool] = {}


def are_mapped_writes_shown(device: int, folder: Path) -> bool:
    """Say whether the file system `device`, of this folder, notes each write to a file that is
    mapped into memory. Found out once.
    """
    if device not in _shown_by_device:
        _shown_by_device[device] = _shows_mapped_writes(folder)
    return _shown_by_device[device]


def _shows_mapped_writes(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        before_ns = os.fstat(file.fileno()).st_ctime_ns
        time.sleep(_TICKS_MAX * _TICK_S)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as mapped:
            # Once a page was read, tmpfs does not notice that it is written to.
            mapped[0] = mapped[0] + 1
        return os.fstat(file.fileno()).st_ctime_ns > before_ns
