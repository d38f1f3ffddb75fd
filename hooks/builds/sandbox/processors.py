"""The processors that a process and what it starts leave to everybody else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path


class Processors:
    """Those that this process may run on, whichever it keeps to. Call it in the main thread."""

    def __init__(self) -> None:
        self._all: set[int] = set()
        self._kept_to: set[int] = set()

    def but(self, count: int) -> set[int]:
        """Return all but the first `count`, and the last one always."""
        now = os.sched_getaffinity(0)
        if now != self._kept_to:  # it was started so, or somebody has changed it since
            self._all = now
        return set(sorted(self._all)[min(count, len(self._all) - 1) :])

    def leave(self, count: int, *, also: Collection[int] = ()) -> None:
        """Keep this process, and those `also`, to all but the first `count`.

        What they start from now on is kept to the same. Does nothing where the system refuses.
        """
        wanted = self.but(count)
        if wanted == os.sched_getaffinity(0):
            return
        self._kept_to = wanted
        threads = (int(each.name) for each in Path("/proc/self/task").iterdir())
        for thread in (*threads, *also):
            with contextlib.suppress(OSError):  # it has ended, or may have none of them now
                os.sched_setaffinity(thread, wanted)
