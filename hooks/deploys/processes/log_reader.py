"""Reading the log of an environment's programs while they write it.

A log has two files, the newer at its path (`weblog`). Whoever lost the connection to
a reader goes on behind a position.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hooks.deploys.log_position import file_and_offset
from hooks.deploys.processes.weblog import FILE_BYTES_MAX, older_log
from hooks.deploys.wire import LogPiece

PIECE_BYTES: Final = 64 * 1024
"""More than the longest line: at least one whole line is always in a piece."""
FILE_NAME_BYTES: Final = len("2026-01-01T00:00:00.000Z")


@dataclass(slots=True)
class _File:
    fd: int
    inode: int
    offset: int = 0

    @property
    def name(self) -> str:
        """The time of its first line; empty as long as there is none."""
        return os.pread(self.fd, FILE_NAME_BYTES, 0).decode("ascii", "replace")

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    def seek_last_lines(self, count: int) -> int:
        """Go to where the last `count` lines begin, or to the beginning; return how many follow."""
        data = os.pread(self.fd, 2 * FILE_BYTES_MAX, 0)
        end, found = data.rfind(b"\n") + 1, 0
        while found < count and end > 0:
            end, found = data.rfind(b"\n", 0, end - 1) + 1, found + 1
        self.offset = end
        return found


class LogReader:
    """A reader of the log at `path`, from its last so many `lines` on, or from what came `after` a
    position: from the oldest that there is, when that place is gone. Blocking; `close` it.

    What is written between two looks is lost to it where that is more than both files hold.
    """

    def __init__(self, path: Path, *, lines: int, after: str | None = None) -> None:
        self._path = path
        self._files: deque[_File] = deque()
        self._goes_on()
        if after is None:
            self._seek_last_lines(lines)
        else:
            self._seek(after)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popleft().fd)

    @property
    def is_over(self) -> bool:
        """Nothing will follow: the environment was removed."""
        return not self._path.parent.exists()

    def next(self) -> LogPiece | None:
        """The next lines; None when there are none yet."""
        while self._files or self._goes_on():
            file = self._files[0]
            data = os.pread(file.fd, PIECE_BYTES, file.offset)
            whole = data[: data.rfind(b"\n") + 1]
            if whole:
                piece = LogPiece(file.name, file.offset, whole)
                file.offset += len(whole)
                return piece
            if len(self._files) > 1:
                os.close(self._files.popleft().fd)
            elif file.offset > file.size_bytes:  # somebody emptied it
                file.offset = 0
            elif not self._goes_on():
                return None
        return None

    def _goes_on(self) -> bool:
        """Look whether there are newer files than those that are known."""
        known = {self._files[-1].inode} if self._files else set()
        found: list[_File] = []
        for at in (self._path, older_log(self._path)):
            file = _opened(at)
            if file is None:
                continue
            if file.inode in known:  # as is all that is older; or it was renamed between the two
                os.close(file.fd)
                break
            known.add(file.inode)
            found.append(file)
        self._files.extend(reversed(found))
        return bool(found)

    def _seek_last_lines(self, count: int) -> None:
        for file in reversed(self._files):
            count -= file.seek_last_lines(count)

    def _seek(self, after: str) -> None:
        named = file_and_offset(after)
        if named is None:
            return
        name, offset = named
        while any(file.name == name for file in self._files):
            if self._files[0].name == name:
                self._files[0].offset = min(offset, self._files[0].size_bytes)
                return
            os.close(self._files.popleft().fd)


def _opened(path: Path) -> _File | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    return _File(fd, os.fstat(fd).st_ino)
