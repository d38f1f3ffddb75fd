"""The gate: those who publish blobs pass it together, those who collect blobs pass it alone.

From its last look at what is there until its commit a publisher holds the gate; from its look at
what is used until the rows are gone a collector holds it alone. So nothing that a publisher
counts on goes away before it is referred to. The turnstile before the gate keeps a stream of
publishers from starving a collector, since file locks are not fair.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from storage.layout import Layout


class Gate:
    """Locks on two files, each time by descriptors of their own: threads and processes alike."""

    def __init__(self, layout: Layout) -> None:
        self._gate = layout.gate
        self._turnstile = layout.turnstile

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        with self._passed(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        with self._passed(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _passed(self, how: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with locked(self._turnstile, fcntl.LOCK_EX):
                stack.enter_context(locked(self._gate, how))
            yield


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock on a file, which is made if need be; wait for it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)
