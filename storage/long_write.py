"""A long write: the disk begins with what is there of a new file, while more of it comes."""

from __future__ import annotations

import os

from storage.files import begin_writing, finish_writing, write_all

LONG_BYTES_MIN = 256 << 20
"""So long a file is not kept in memory: it would push out what others read, sites among them."""

WINDOW_BYTES = 8 << 20
"""So much is handed to the disk at once."""

AHEAD_BYTES = 32 << 20
"""So much the disk may have to write still while more comes."""


class LongWrite:
    """The contents of a new file of any length. What is written is durable after `os.fsync` of the
    same descriptor, as ever: there is little left for it to do.

    `size_bytes`: how long it will be.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._is_kept = size_bytes < LONG_BYTES_MIN
        self._end = 0  # of what is written
        self._begun = 0  # up to here the disk was told of it
        self._finished = 0  # up to here the disk has it

    def write(self, piece: bytes) -> None:
        """Write what comes next. Waits for the disk where that is far behind.

        Raises:
            OSError: It was refused, or the disk could not write what came before: it says so once,
                so that a later sync must not be believed.
        """
        write_all(self._fd, piece)
        self._end += len(piece)
        if self._end - self._begun < WINDOW_BYTES:
            return
        begin_writing(self._fd, self._begun, self._end - self._begun)
        self._begun = self._end
        if self._begun - self._finished > AHEAD_BYTES:
            self._finish(self._begun - AHEAD_BYTES)

    def _finish(self, end: int) -> None:
        at, count = self._finished, end - self._finished
        finish_writing(self._fd, at, count)
        self._finished = end
        if not self._is_kept:
            os.posix_fadvise(self._fd, at, count, os.POSIX_FADV_DONTNEED)
