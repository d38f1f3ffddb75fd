"""The share that the sandboxes of a process have in the processors, beside everybody else.

A weight says how much of a processor each gets, not when: who wakes up where a sandbox of little
weight runs may wait for the end of its slice, some milliseconds. What runs in an idle group gives
way at once. But beside somebody who wants all processors and never rests it would get nothing, or
a three hundredth: then it has its weight after all.

Who makes the sandboxes is in that group too, since it may move processes only below it, and cannot
see that it starves while it does. A keeper outside of the group does: a copy of it, made at its
start, which ends with it.

Source: Linux 6.1, Documentation/admin-guide/cgroup-v2.rst, "cpu.idle", "cpu.weight" and
"Delegation Containment".
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hooks.builds.sandbox import cgroupfs
from hooks.process import die_with_parent, drop_privileges

_SHARES_PER_WEIGHT: Final = 1024 / 100  # of version 1
_SHARES_MIN: Final = 2
_FDS_MAX: Final = 1 << 16
_WATCH, _REST = b"w", b"r"  # what the keeper is told
KEEPER_NAME: Final = "gitd-keeper"
"""What `ps -o comm` shows of a keeper; its command is that of whom it is a copy of."""
STARVED_S: Final = 2.0  # less than half of the time that a lease lasts without a heartbeat
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
    """What a group gets of the processors: its weight, or only what nobody else wants.

    It holds the files open as long as this process lives, whoever that becomes. They stay their
    owner's.
    """

    def __init__(self, idle: int, weighing: int, weight: int, orders: int) -> None:
        """The open files `cpu.idle` and that of the weight, what is written to the latter, a pipe.

        The keeper reads from the pipe what it is told. Nothing waits for it.
        """
        self._idle = idle
        self._weighing = weighing
        self._weight = weight
        self._orders = orders
        self.keeper_pid = 0
        """Known once it was started."""
        os.set_blocking(orders, False)

    @classmethod
    def open(
        cls,
        folder: Path,
        weight: int,
        *,
        version: int,
        counting: Path,
        outside: Path,
        owner: tuple[int, int] | None,
    ) -> Self | None:
        """Take over the group `folder`, which this process is below, and start its keeper.

        `counting`: the same group where processor time is counted. `outside`: the group that this
        process was in before, for the keeper. `owner`: the uid and gid that this process, now root,
        will go on as. None where the kernel knows no idle groups (before Linux 5.15), or this
        process may not have them. Call it without other threads.
        """
        name, value = _weight_file(weight, version=version)
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            fds = []
            for path in (folder / "cpu.idle", folder / name):
                fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                opened.callback(os.close, fds[-1])
            orders, ours = os.pipe()
            opened.callback(os.close, ours)
            share = cls(fds[0], fds[1], value, ours)
            with contextlib.closing(os.fdopen(orders, "rb", buffering=0)):
                share._start_keeper(_Watched(folder, counting), outside, owner, orders)
            opened.pop_all()
            return share
        return None

    def give_way(self) -> None:
        """Run only while nobody else wants the processor. Does nothing where that is refused."""
        with contextlib.suppress(OSError):
            os.write(self._orders, _WATCH)  # first: nothing is idle that nobody watches
            _write(self._idle, 1)

    def insist(self) -> None:
        """Have the weight again, which the kernel has forgotten meanwhile."""
        self._have_weight()
        with contextlib.suppress(OSError):
            os.write(self._orders, _REST)

    def _have_weight(self) -> None:
        with contextlib.suppress(OSError):
            _write(self._idle, 0)
            _write(self._weighing, self._weight)

    def _start_keeper(
        self, watched: _Watched, outside: Path, owner: tuple[int, int] | None, orders: int
    ) -> None:
        parent_pid = os.getpid()
        gc.freeze()
        try:
            child_pid = os.fork()
        finally:
            gc.unfreeze()
        if child_pid != 0:
            self.keeper_pid = child_pid
            return
        try:
            Path("/proc/self/comm").write_text(KEEPER_NAME)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # it ends after its parent
            cgroupfs.write(outside / "cgroup.procs", 0)
            if owner is not None:
                drop_privileges(*owner)
            die_with_parent(parent_pid)
            _close_all_but((orders, self._idle, self._weighing))
            self._keep(watched, orders)
        finally:
            os._exit(0)

    def _keep(self, watched: _Watched, orders: int) -> None:
        """Give the group its weight when it starves while it is idle; until the pipe ends."""
        starvation: Starvation | None = None
        while True:
            pause_s = LOOK_EVERY_S if starvation is not None else None
            ready, _, _ = select.select([orders], [], [], pause_s)
            now = time.monotonic()
            if ready:
                told = os.read(orders, 4096)
                if not told:
                    return
                is_idle = told.endswith(_WATCH)
                starvation = Starvation(now, watched.cpu_s()) if is_idle else None
            elif starvation is not None and starvation.is_seen(
                now, watched.cpu_s(), watched.wants_processor
            ):
                self._have_weight()


@dataclass(frozen=True, slots=True)
class _Watched:
    """A group with those below it. `counting`: the same one, where processor time is counted."""

    folder: Path
    counting: Path

    def wants_processor(self) -> bool:
        """Say whether a thread runs or could."""
        return any(
            cgroupfs.is_runnable(thread)
            for group in (self.folder, *cgroupfs.below(self.folder))
            for thread in cgroupfs.threads(group)
        )

    def cpu_s(self) -> float:
        """Return what it has used since it was made; 0 where the kernel does not count that."""
        with contextlib.suppress(FileNotFoundError, KeyError):
            return cgroupfs.values(self.counting / "cpu.stat")["usage_usec"] / 1e6  # version 2
        return cgroupfs.number(self.counting / "cpuacct.usage") / 1e9


class Starvation:
    """Tells whether a group that wants a processor has hardly had one for a while."""

    def __init__(self, now: float, cpu_s: float) -> None:
        self._since = now
        self._cpu_s = cpu_s

    def is_seen(self, now: float, cpu_s: float, wants_processor: Callable[[], bool]) -> bool:
        """Look again. `cpu_s`: what it has used by now; only if that is little, it is asked."""
        had_enough = cpu_s - self._cpu_s >= ENOUGH * (now - self._since)
        if had_enough or not wants_processor():
            self._since, self._cpu_s = now, cpu_s
        return now - self._since >= STARVED_S


def _close_all_but(fds: Sequence[int]) -> None:
    """Hold nothing of this process's parent: no pipe of its output, no lock, no socket."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    begin = 3
    for fd in sorted(fds):
        os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, _FDS_MAX)


def _weight_file(weight: int, *, version: int) -> tuple[str, int]:
    if version == 1:
        return "cpu.shares", max(_SHARES_MIN, round(weight * _SHARES_PER_WEIGHT))
    return "cpu.weight", weight


def _write(fd: int, value: int) -> None:
    os.pwrite(fd, str(value).encode(), 0)
