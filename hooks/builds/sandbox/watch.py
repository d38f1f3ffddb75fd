"""The watch over a running sandbox: it looks from time to time whether a limit was exceeded.

Memory, processes and processor time are kept by its control group, and the watch tells what
happened in there, at once when a process was refused; without one it adds up what the processes
use. The disk has no keeper but the watch: it looks at what the disk has left, which costs nothing,
and when too much is gone, at the files, for a tenth of its time at most. It halts what writes
faster than it may.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hooks.builds.sandbox.cgroups import Group
from hooks.builds.sandbox.disk import DiskUse, disk_use, shortage
from hooks.builds.sandbox.inside import Inside, ProcessUse
from hooks.builds.sandbox.limits import Limit, Limits
from hooks.builds.sandbox.namespace import Init
from hooks.builds.sandbox.write_pace import PacedWrites, WritePace

BACKGROUND_EVERY_S = 0.1
EVERY_S = 1.0
REFUSALS_EVERY_S = 0.02
SET_UP_EVERY_S = 0.001  # how often it looks whether bubblewrap has set all up ...
SET_UP_S_MAX = 0.5  # ... and for how long a program is kept waiting for that
REST_PER_LOOK = 9  # it rests so many times as long as a look took of the processor, or of the disk
WALK_EVERY_S = 2.0  # through the files, even when the disk seems to have lost nothing
_TOO_LARGE_STATUS = 128 + signal.SIGXFSZ


class Watch:
    """Watches one sandbox.

    Let it `look_inside` before the program begins, `run` it as a task from then on, and `end` it
    when the sandbox has ended.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        group: Group | None,
        in_memory: Sequence[str],
        on_disk: Mapping[str, Path],
        is_background: bool,
        pace: WritePace | None = None,
        on_halted: Callable[[], None] | None = None,
    ) -> None:
        """`on_disk`: the folders that it may write to, by the names that it sees them under.

        `pace`: what it and those before it wrote; `on_halted` is called when that first halts it.
        """
        self._limits = limits
        self._group = group
        self._in_memory = in_memory
        self._is_background = is_background
        self._every_s = BACKGROUND_EVERY_S if is_background else EVERY_S
        self._disk = _DiskWatch(limits, on_disk) if on_disk else None
        self._writes: PacedWrites | None = None
        if pace is not None and group is not None and limits.write_bytes_per_s is not None:
            self._writes = PacedWrites(pace, limits, group)
        self._on_halted = on_halted
        self._inside: Inside | None = None
        self.cpu_s = 0.0
        """The processor time that was seen to be used."""
        self._looked_s = 0.0  # of the processor, by the last look; not with the walk through files
        self._sessions: set[int] = set()
        self._is_ended = False
        self._is_woken = asyncio.Event()  # it has ended, or was refused a process
        self._stopped = threading.Event()

    async def look_inside(self, init: Init) -> None:
        """Return once it sees the folders that are in memory, of a sandbox that is to be strict.

        Who fills one and ends before the first look would not be told why: with the sandbox its
        folders are gone. bubblewrap does not say when it has made them.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + SET_UP_S_MAX
        while self._limits.is_strict and not init.is_gone and loop.time() < until:
            self._inside = Inside.open(init, self._in_memory)
            if self._inside is not None:
                return
            await asyncio.sleep(SET_UP_EVERY_S)

    async def run(self, init: Init) -> Limit | None:
        """Return the limit that was exceeded, or None once `end` is called.

        `init`: the sandbox's first process, not to be reaped before this has returned.
        """
        refusals = None
        if self._group is not None and self._limits.is_strict:
            refusals = _Refusals(self._group.refusals, self._is_woken.set)
        share = self._group.share if self._group is not None else None
        if share is not None:
            share.give_way()
        try:
            return await self._watch(init)
        finally:
            self.halt_no_more()
            if share is not None:  # what it ends now is to end soon
                share.insist()
            if refusals is not None:
                refusals.close()

    async def _watch(self, init: Init) -> Limit | None:
        pause_s = self._every_s
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_woken.wait(), pause_s)
            if self._is_ended:
                return None
            if self._is_woken.is_set():
                self._is_woken.clear()
                if exceeded := self._in_group():
                    return exceeded
            exceeded = await asyncio.to_thread(self._look, init)
            if exceeded is not None:
                return exceeded
            self._tell_of_halts()
            pause_s = max(self._every_s, REST_PER_LOOK * self._looked_s)

    @property
    def halted_s(self) -> float:
        """How long it was halted, for the pace of what it writes."""
        return 0.0 if self._writes is None else self._writes.halted_s

    def halt_no_more(self) -> None:
        """Let it go on: it is to end. Nothing halted dies, by a signal, in version 1."""
        if self._writes is not None:
            self._writes.end()

    def count_rest(self) -> None:
        """Count what it wrote since the last look, once all inside has ended and none is reaped."""
        if self._writes is not None and self._inside is not None:
            self._writes.count_rest(self._inside.written_by_first)

    def _tell_of_halts(self) -> None:
        if self._on_halted is not None and self._writes is not None and self._writes.was_halted:
            self._on_halted()
            self._on_halted = None

    def end(self) -> None:
        """Let `run` return."""
        self._stopped.set()
        self._is_ended = True
        self._is_woken.set()

    def last_look(self, exit_status: int) -> Limit | None:
        """Return the limit that the sandbox exceeded since the last look, now that it has ended.

        Blocking: call it in a thread, after `run` has returned.
        """
        is_full = self._has_full_folder()
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        exceeded = self._in_group() if self._group is not None else None
        if exceeded is None and is_full:  # most programs end as soon as they find no room
            exceeded = Limit.TMP
        if exceeded is None and self._disk is not None:
            exceeded = self._disk.last_look(exit_status)
        return exceeded

    def _look(self, init: Init) -> Limit | None:
        # Of its own time it rests, and not of what a bomb lets it wait: or it would look once in
        # minutes. What the disk has left is looked at on time, however long a walk through it took.
        began = time.thread_time()
        exceeded = self._look_at_use(init)
        self._looked_s = time.thread_time() - began
        if exceeded is None and self._disk is not None:
            exceeded = self._disk.look(self._inside, self._stopped)
        return exceeded

    def _look_at_use(self, init: Init) -> Limit | None:
        if self._inside is None:
            self._inside = Inside.open(init, self._in_memory)
        exceeded = None
        if self._group is not None:
            exceeded = self._in_group()
        elif self._inside is not None:
            exceeded = self._among_processes(self._inside)
        if exceeded is None and self._has_full_folder():
            exceeded = Limit.TMP
        if exceeded is None and self._writes is not None and self._inside is not None:
            self._writes.look(self._inside)
        return exceeded

    def _has_full_folder(self) -> bool:
        return (
            self._limits.is_strict and self._inside is not None and self._inside.has_full_folder()
        )

    def _in_group(self) -> Limit | None:
        assert self._group is not None, "there is one"
        use = self._group.use()
        if use.cpu_s is not None:
            self.cpu_s = use.cpu_s
        elif self._inside is not None:
            self._count_cpu(self._inside.processes())
        if use.oom_kill_count:
            return Limit.MEMORY if use.was_full else Limit.MACHINE_MEMORY
        if use.fork_failed_count and self._limits.is_strict:
            return Limit.PROCESSES
        return Limit.CPU if self._is_too_long() else None

    def _among_processes(self, inside: Inside) -> Limit | None:
        # Counted before they are looked at, of which a bomb makes more than can be looked at soon;
        # and the closer look at their memory waits for each that is just being forked.
        if self._are_too_many(inside.count()):
            return Limit.PROCESSES
        processes = inside.processes()
        self._put_last(inside, processes)
        if self._are_too_many(sum(each.thread_count for each in processes)):
            return Limit.PROCESSES
        files = inside.memory_files_bytes() + self._unnamed_in_memory(inside)
        if sum(each.memory_bytes for each in processes) + files > self._limits.memory_bytes:
            # What processes share was counted for each of them: look again, closer.
            private, shared = inside.shared_out_bytes()
            if private + max(shared, files) > self._limits.memory_bytes:
                return Limit.MEMORY
        self._count_cpu(processes)
        return Limit.CPU if self._is_too_long() else None

    def _are_too_many(self, count: int) -> bool:
        """Say so of processes or threads, bubblewrap's own one beside them."""
        return self._limits.is_strict and count > self._limits.process_count + 1

    def _count_cpu(self, processes: Sequence[ProcessUse]) -> None:
        self.cpu_s = max(self.cpu_s, sum(each.cpu_s for each in processes))

    def _is_too_long(self) -> bool:
        return self._limits.cpu_s is not None and self.cpu_s > self._limits.cpu_s

    def _unnamed_in_memory(self, inside: Inside) -> int:
        on_disk = self._disk.device if self._disk is not None else None
        return sum(count for device, count in inside.unnamed_files().items() if device != on_disk)

    def _put_last(self, inside: Inside, processes: Sequence[ProcessUse]) -> None:
        if self._is_background:
            for each in processes:
                if each.session not in self._sessions:
                    if not inside.put_last(each.pid):
                        break
                    self._sessions.add(each.session)


class _Refusals:
    """Looks all the time whether a group has refused a process, and wakes the watch then.

    What starts processes without end does most harm from that moment on. The kernel tells of it by
    itself in version 2 alone; a look takes some microseconds.
    """

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._first = self._read()
        self._later = self._rest()

    def close(self) -> None:
        self._later.cancel()
        os.close(self._fd)

    def _read(self) -> bytes:
        return os.pread(self._fd, 256, 0)

    def _rest(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(REFUSALS_EVERY_S, self._look)

    def _look(self) -> None:
        found = self._read()
        if found != self._first:
            self._first = found
            self._wake()
        self._later = self._rest()


class _DiskWatch:
    """What the sandbox's folders take, all on one disk."""

    def __init__(self, limits: Limits, folders: Mapping[str, Path]) -> None:
        self._limits = limits
        self._names = list(folders)
        self._folders = list(folders.values())
        self.device = _device_of_files(self._folders[0])
        self._free_at_start = self._free_bytes()
        self._free_at_walk = self._free_at_start
        self._known_bytes = 0
        self._walk_at = time.monotonic() + WALK_EVERY_S
        self._rest_until = 0.0
        self._free_at = 0.0
        self._is_short = False

    def look(self, inside: Inside | None, stopped: threading.Event) -> Limit | None:
        if short := self._shortage():
            return short
        free_bytes = self._free_bytes()
        now = time.monotonic()
        if now < self._rest_until or not (self._may_be_full(free_bytes) or now > self._walk_at):
            return None
        found = self._walk(inside, stopped)
        if stopped.is_set() or self._is_short:
            return self._shortage()  # the walk was cut short
        return self._exceeded(found, free_bytes)

    def last_look(self, exit_status: int) -> Limit | None:
        """Look at the files once more, if the command failed or may have taken too much.

        Where a file was cut off at its limit the command may have ended well all the same: its
        like is common (`gen | tee file`), and what it leaves is none of what was meant.
        """
        if short := self._shortage():
            return short
        free_bytes = self._free_bytes()
        if exit_status == _TOO_LARGE_STATUS:
            return Limit.FILE
        if exit_status == 0 and not (self._may_be_cut(free_bytes) or self._may_be_full(free_bytes)):
            return None
        return self._exceeded(self._walk(None, threading.Event()), free_bytes)

    def _exceeded(self, found: DiskUse, free_bytes: int) -> Limit | None:
        if self._is_full(found, free_bytes):
            return Limit.DISK
        return Limit.FILE if found.has_cut else None

    def _may_be_cut(self, free_bytes: int) -> bool:
        file_bytes = self._limits.file_bytes
        return file_bytes is not None and self._free_at_start - free_bytes >= file_bytes // 2

    def _may_be_full(self, free_bytes: int) -> bool:
        lost = max(0, self._free_at_walk - free_bytes)
        return self._limits.disk_bytes is not None and (
            self._known_bytes + lost > self._limits.disk_bytes
        )

    def _is_full(self, found: DiskUse, free_bytes: int) -> bool:
        if self._limits.disk_bytes is None:
            return False
        taken = found.size_bytes
        if not found.is_whole:  # what it hides is as much as the disk has lost
            taken = max(taken, self._free_at_start - free_bytes)
        self._free_at_walk = free_bytes
        self._known_bytes = taken
        return taken > self._limits.disk_bytes

    def _walk(self, inside: Inside | None, stopped: threading.Event) -> DiskUse:
        began = time.monotonic()
        enough = self._limits.disk_bytes if self._limits.disk_bytes is not None else 1 << 62
        found = disk_use(
            self._folders,
            enough_bytes=enough,
            cut_file_bytes=self._limits.cut_file_bytes,
            is_stopped=lambda: stopped.is_set() or self._is_short_by_now(),
        )
        if inside is not None:
            found.size_bytes += inside.unnamed_files().get(self.device, 0)
            lost = self._free_at_start - self._free_bytes()
            if found.size_bytes <= enough < lost and inside.may_hide_files(self._names):
                found.is_whole = False
        ended = time.monotonic()
        self._rest_until = ended + REST_PER_LOOK * (ended - began)
        self._walk_at = self._rest_until + WALK_EVERY_S
        return found

    def _is_short_by_now(self) -> bool:
        """Look now and then what the disk has left: to walk takes long where files are many."""
        now = time.monotonic()
        if now > self._free_at:
            self._free_at = now + BACKGROUND_EVERY_S
            self._is_short = self._shortage() is not None
        return self._is_short

    def _shortage(self) -> Limit | None:
        return shortage(self._folders[0], self._limits)

    def _free_bytes(self) -> int:
        state = os.statvfs(self._folders[0])
        return state.f_bavail * state.f_frsize


def _device_of_files(folder: Path) -> int:
    """Return the device that files in a folder are on: in an overlay it may not be the folder's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_dev
    except OSError:  # no room, say
        return folder.stat().st_dev
