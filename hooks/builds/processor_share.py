"""The share that the sandboxes of a process have in the processors, beside everybody else.

A weight says how much of a processor each gets, not when: who wakes up where a sandbox of little
weight runs may wait for the end of its slice, some milliseconds. What runs in an idle group gives
way at once. But beside somebody who wants all processors and never rests it would get nothing, or
a three hundredth: then it has its weight after all.

Source: Linux 6.1, Documentation/admin-guide/cgroup-v2.rst, "cpu.idle" and "cpu.weight".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from hooks.builds import cgroupfs

_SHARES_PER_WEIGHT: Final = 1024 / 100  # of version 1
_SHARES_MIN: Final = 2
STARVED_S: Final = 2.0
LOOK_EVERY_S: Final = 0.25
ENOUGH: Final = 0.02  # of one processor: an idle group has less beside one that never rests


def weigh(folder: Path, weight: int, *, version: int) -> None:
    """Give a group this weight against 100 of others, in the units of its version.

    Raises:
        OSError: The kernel refuses.
    """
    name, value = _weight_file(weight, version=version)
    cgroupfs.write(folder / name, value)


class ProcessorShare:
    """What a group gets of the processors: its weight, or only what nobody else wants."""

    def __init__(self, idle: int, weighing: int, weight: int) -> None:
        """The open files `cpu.idle` and that of the weight, and what is written to the latter."""
        self._idle = idle
        self._weighing = weighing
        self._weight = weight

    @classmethod
    def open(cls, folder: Path, weight: int, *, version: int) -> Self | None:
        """Hold the files of a group open as long as this process lives, whoever it becomes.

        They stay their owner's. None where the kernel knows no idle groups (before Linux 5.15), or
        this process may not have them.
        """
        name, value = _weight_file(weight, version=version)
        with contextlib.ExitStack() as opened:
            fds = []
            for path in (folder / "cpu.idle", folder / name):
                try:
                    fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                except OSError:
                    return None
                opened.callback(os.close, fds[-1])
            opened.pop_all()
        return cls(fds[0], fds[1], value)

    def give_way(self) -> None:
        """Run only while nobody else wants the processor. Does nothing where that is refused."""
        with contextlib.suppress(OSError):
            _write(self._idle, 1)

    def insist(self) -> None:
        """Have the weight again, which the kernel has forgotten meanwhile."""
        with contextlib.suppress(OSError):
            _write(self._idle, 0)
            _write(self._weighing, self._weight)


class Starvation:
    """Tells whether a sandbox that wants a processor has hardly had one for a while."""

    def __init__(self, now: float) -> None:
        self._since = self._looked_at = now
        self._cpu_s = 0.0

    def is_seen(self, now: float, cpu_s: float, wants_processor: Callable[[], bool]) -> bool:
        """Look again, some times a second at most.

        `cpu_s`: what it has used so far. `wants_processor` is asked only where that is little.
        """
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        had_enough = cpu_s - self._cpu_s >= ENOUGH * (now - self._since)
        if had_enough or not wants_processor():
            self._since, self._cpu_s = now, cpu_s
        return now - self._since >= STARVED_S


def _weight_file(weight: int, *, version: int) -> tuple[str, int]:
    if version == 1:
        return "cpu.shares", max(_SHARES_MIN, round(weight * _SHARES_PER_WEIGHT))
    return "cpu.weight", weight


def _write(fd: int, value: int) -> None:
    os.pwrite(fd, str(value).encode(), 0)
