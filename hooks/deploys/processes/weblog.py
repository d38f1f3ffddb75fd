"""Lines: a program's output, cut into lines; and the bounded log of a web process."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hooks.builds.logs.masking import Masker
from hooks.clock import now_ms, rfc3339
from storage.counted import counted

LINE_BYTES_MAX: Final = 8 * 1024
FILE_BYTES_MAX: Final = 1024 * 1024
"""A log has two files of up to this size: the one being written and the one before."""
TAIL_LINES: Final = 200
LINES_PER_S: Final = 2_000
BURST_LINES: Final = 4_000
"""What a program may say in a second, and at once; about 5 µs of the loop for each."""
TAIL_BYTES_MAX: Final = 64 * 1024
OURS: Final = "[gitd]"
"""So begin the host's own lines, and no program's: theirs get a backslash before it."""

LineSink = Callable[[str], None]


def older_log(path: Path) -> Path:
    """Where the file before the one at `path` is."""
    return path.with_suffix(".log.1")


class Lines:
    """Cuts output into lines as it comes. A longer line than 8 KiB becomes several.

    What the `masker` knows as secret is masked before that: no piece shows a part of it.

    Every line costs time in the loop that serves all sites. A program that floods has what is too
    much left out: a line of ours says how much, and the last ones are passed on all the same.
    """

    def __init__(
        self,
        on_line: LineSink,
        seconds: Callable[[], float] = time.monotonic,
        *,
        masker: Masker | None = None,
    ) -> None:
        self._on_line = on_line
        self._seconds = seconds
        self._mask = (masker or Masker()).stream()
        self._begun = b""  # of a long line that has no end yet: what is masked already,
        self._rest = b""  # and what came after that
        self._allowed = float(BURST_LINES)
        self._refilled_at = seconds()
        self._left_out = 0
        self._tail = b""  # the last bytes left out

    def write(self, chunk: bytes) -> None:
        room = self._room()
        if room > 0:
            self._tell_what_is_left_out()
            *lines, self._rest = (self._rest + chunk).split(b"\n", room)
            self._allowed -= sum(self._pass_on(line) for line in lines)
            if b"\n" in self._rest:
                chunk, self._rest = self._rest, b""
            else:
                self._cut_rest()
                return
        self._left_out += len(chunk)
        self._tail = (self._tail + chunk)[-TAIL_BYTES_MAX:]

    def close(self) -> None:
        """Pass on what came without a line's end, and the last of what was left out."""
        self._tell_what_is_left_out()
        self._pass_on_rest()

    def _room(self) -> int:
        now = self._seconds()
        earned = (now - self._refilled_at) * LINES_PER_S
        self._allowed = min(self._allowed + earned, BURST_LINES)
        self._refilled_at = now
        return int(self._allowed)

    def _tell_what_is_left_out(self) -> None:
        if not self._tail:
            return
        self._pass_on_rest()
        *last, self._rest = self._tail.split(b"\n")
        shown = last[-TAIL_LINES:]
        hidden = self._left_out - len(self._rest) - sum(len(line) + 1 for line in shown)
        self._on_line(f"{OURS} {counted(hidden, 'byte')} left out: too much at once")
        self._allowed -= 1 + sum(self._pass_on(line) for line in shown)
        self._left_out, self._tail = 0, b""
        self._cut_rest()

    def _cut_rest(self) -> None:
        if len(self._rest) > LINE_BYTES_MAX:
            masked = self._begun + self._mask.feed(self._rest)
            whole = len(masked) - len(masked) % LINE_BYTES_MAX
            if whole:
                self._allowed -= self._pass_on_masked(masked[:whole])
            self._begun, self._rest = masked[whole:], b""

    def _pass_on_rest(self) -> None:
        """Pass on a line that has no end, if there is one."""
        held = self._mask.held_bytes
        if self._begun or self._rest or held:
            self._allowed -= self._pass_on(self._rest)
            self._rest = b""

    def _pass_on(self, end: bytes) -> int:
        """Mask the end of a line and pass the line on; return the number of its pieces."""
        masked = self._begun + self._mask.end(end)
        self._begun = b""
        return self._pass_on_masked(masked)

    def _pass_on_masked(self, line: bytes) -> int:
        starts = range(0, max(len(line), 1), LINE_BYTES_MAX)
        for start in starts:
            part = line[start : start + LINE_BYTES_MAX]
            text = part.decode("utf-8", "replace").rstrip("\r")
            self._on_line(f"\\{text}" if text.lstrip().startswith(OURS) else text)
        return len(starts)


class WebLog:
    """What a web process says: in a file that never outgrows its bound, and its last lines here.

    What its `masker` knows as secret is masked, line by line, before long lines are cut.

    Trouble with the file is no trouble of the site's: the lines are then only kept here.
    """

    def __init__(self, path: Path, masker: Masker | None = None) -> None:
        self._path = path
        self._masker = masker or Masker()
        self._lines = Lines(self._append, masker=masker)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._fd = -1
        self._size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._lines.write(chunk)

    def note(self, line: str, *, is_said: bool = False) -> None:
        """Add a line of ours. One that `is_said` elsewhere too is in the file alone."""
        line = self._masker.masked(f"{OURS} {line}")
        if is_said:
            self._write(line)
        else:
            self._append(line)

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
        self._write(line)

    def _write(self, line: str) -> None:
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
                self._path.replace(older_log(self._path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size
