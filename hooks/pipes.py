"""Pipes that hold more: who fills one and who empties it take turns less often."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

PIPE_BYTES: Final = 1 << 20


def wide_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, to read from and to write to, both closed on exec.

    It holds `PIPE_BYTES`, or less where a user may not have so many of them.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer
