"""How fast sandboxes write to the disk: as fast as they can for a while, then at a pace.

A disk has no idle class as a processor has: what one writes without end, all others wait for, and
the kernel takes other processors than the writer's for it. Control groups of version 1 cannot bound
what goes through the page cache. So whoever makes the sandboxes counts what each has written, and
halts one that is ahead (`cgroup.freeze`, the freezer of version 1) until it is no more.

What is removed again before the kernel wrote it does not count.

Source: proc(5), `/proc/pid/io`; Linux 6.1, Documentation/admin-guide/cgroup-v2.rst,
"cgroup.freeze", and cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hooks.builds.sandbox.cgroups import Group
from hooks.builds.sandbox.inside import Inside
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.namespace import Written

HALT_S_MAX: Final = 1.0
"""So long at most one is halted before it is looked at again: what it removed may pay for it."""
_LITTLE_BYTES: Final = 256 << 10  # between two looks: not worth asking each process
_VMSTAT: Final = Path("/proc/vmstat")
_UNITS: Final = {"nr_dirtied": mmap.PAGESIZE, "pgpgout": 1 << 10}


class WritePace:
    """What the sandboxes of one process have written of late, one after the other.

    A bucket that leaks: each sandbox goes on with what those before it have left of the burst, so
    that to begin anew gains nothing. For one thread at a time.
    """

    def __init__(self) -> None:
        self._ahead_bytes = 0.0
        self._at = time.monotonic()

    def wrote(self, count: int, limits: Limits, now: float) -> float:
        """Add so many bytes, written up to `now`, and return for how many seconds to halt.

        `count` is below zero where more was removed than written.
        """
        rate = limits.write_bytes_per_s
        if rate is None:
            return 0.0
        passed = rate * (now - self._at)
        self._ahead_bytes = max(0.0, max(0.0, self._ahead_bytes - passed) + count)
        self._at = now
        return max(0.0, (self._ahead_bytes - limits.write_burst_bytes) / rate)


class PacedWrites:
    """Keeps one sandbox to the pace. `look` now and then, in one thread at a time; `end` it."""

    def __init__(self, pace: WritePace, limits: Limits, group: Group) -> None:
        """Nothing of its own runs before `look`; `group` is the sandbox's."""
        self._pace = pace
        self._limits = limits
        self._group = group
        self._seen = Written(0, 0)
        self._by_all_bytes = _written_by_all() or 0
        self._halted_since: float | None = None
        self._halted_until = 0.0
        self._lock = threading.Lock()
        self._is_ended = False
        self.halted_s = 0.0
        """For how long it was halted, all in all."""
        self.was_halted = False

    def look(self, inside: Inside) -> None:
        """Count what it has written, and halt it, or let it go on."""
        now = time.monotonic()
        if now < self._halted_until:
            return
        halt_s = self._count(inside.written if self._may_have_written() else None, now)
        if halt_s > 0:
            self._halt(now, min(halt_s, HALT_S_MAX))
        else:
            self._go_on(now)

    def end(self) -> None:
        """Let it go on, and halt it no more: it is to end. May be called again, from anywhere."""
        with self._lock:
            self._is_ended = True
        self._go_on(time.monotonic())

    def count_rest(self, written: Callable[[], Written]) -> None:
        """Count what it wrote since the last look, once it has ended."""
        self._count(written, time.monotonic())

    def _may_have_written(self) -> bool:
        """Say whether anybody on the machine has: one look, however many processes it has."""
        by_all = _written_by_all()
        if by_all is not None and by_all - self._by_all_bytes < _LITTLE_BYTES:
            return False
        self._by_all_bytes = by_all or 0
        return True

    def _count(self, look: Callable[[], Written] | None, now: float) -> float:
        new = 0
        if look is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                before, self._seen = self._seen, look()
                if self._seen.written < before.written or self._seen.removed < before.removed:
                    # Who ended during the look may have been passed over, after who waited for it.
                    # It must not count as new at the next one: so look again.
                    self._seen = look()
                # There may still be less: of processes whose end nobody waited for.
                new = max(0, self._seen.written - before.written)
                new -= max(0, self._seen.removed - before.removed)
        return self._pace.wrote(new, self._limits, now)

    def _halt(self, now: float, seconds: float) -> None:
        with self._lock:
            if self._is_ended:
                return
            self._halted_until = now + seconds
            if self._halted_since is None and self._group.freeze():
                self._halted_since = now
                self.was_halted = True

    def _go_on(self, now: float) -> None:
        with self._lock:
            if self._halted_since is not None:
                self._group.thaw()
                self.halted_s += now - self._halted_since
                self._halted_since = None
                self._halted_until = 0.0


def _written_by_all() -> int | None:
    """Return what all programs of the machine have written since it was started, or more.

    To files, and past the page cache to disks (`O_DIRECT`); what comes from the one to the others
    counts twice. None where the kernel does not tell.
    """
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return None
    counts = [int(count) * _UNITS[name] for name, count in map(str.split, lines) if name in _UNITS]
    return sum(counts) if len(counts) == len(_UNITS) else None
