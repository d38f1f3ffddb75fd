"""Lines: a program's output, cut into lines; and the bounded log of a web process."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hooks.clock import now_ms, rfc3339

LINE_BYTES_MAX: Final = 8 * 1024
FILE_BYTES_MAX: Final = 1024 * 1024
"""A log has two files of up to this size: the one being written and the one before."""
TAIL_LINES: Final = 200

LineSink = Callable[[str], None]


class Lines:
    """Cuts output into lines as it comes. A longer line than 8 KiB becomes several."""

    def __init__(self, on_line: LineSink) -> None:
        self._on_line = on_line
        self._rest = b""

    def write(self, chunk: bytes) -> None:
        *whole, rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._pass_on(line)
        while len(rest) > LINE_BYTES_MAX:
            self._pass_on(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._rest = rest

    def close(self) -> None:
        """Pass on what came without a line's end."""
        if self._rest:
            self._pass_on(self._rest)
            self._rest = b""

    def _pass_on(self, line: bytes) -> None:
        for start in range(0, max(len(line), 1), LINE_BYTES_MAX):
            part = line[start : start + LINE_BYTES_MAX]
            self._on_line(part.decode("utf-8", "replace").rstrip("\r"))


class WebLog:
    """What a web process says: in a file that never outgrows its bound, and its last lines here.

    Trouble with the file is no trouble of the site's: the lines are then only kept here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = Lines(self._append)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._fd = -1
        self._size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._lines.write(chunk)

    def note(self, line: str) -> None:
        """Add a line of ours."""
        self._append(f"[gitd] {line}")

    def tail(self) -> tuple[str, ...]:
        self._lines.close()
        return tuple(self._tail)

    def close(self) -> None:
        self._lines.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: str) -> None:
        self._tail.append(line)
        data = f"{rfc3339(now_ms())} {line}\n".encode()
        with contextlib.suppress(OSError):
            if self._fd < 0 or self._size_bytes + len(data) > FILE_BYTES_MAX:
                self._open()
            self._size_bytes += os.write(self._fd, data)

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + LINE_BYTES_MAX > FILE_BYTES_MAX:
                self._path.replace(self._path.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size
