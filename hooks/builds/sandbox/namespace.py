"""What is known of a sandbox's processes: what bubblewrap tells, and process 1 of the namespace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

OUTPUT_TAIL_BYTES = 2_000  # kept for the message when the sandbox itself fails


class Init:
    """The sandbox's process 1: when it is gone, the kernel has ended every process beside it."""

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._gone = asyncio.Event()
        if pidfd is None:
            self._gone.set()
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @classmethod
    def open(cls, pid: int | None, *, parent_pid: int) -> Init:
        if pid is None:
            return cls(0, None)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return cls(pid, None)
        if not _is_init_of_a_namespace(pid, parent_pid):
            os.close(pidfd)  # it ended already, and the number belongs to somebody else
            return cls(pid, None)
        return cls(pid, pidfd)

    def kill(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def is_there(self) -> bool:
        """Say whether `pid` is still its number. Not once it is reaped."""
        if self._pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def is_gone(self) -> bool:
        """Whether it was seen to have ended, by the loop that runs."""
        return self._gone.is_set()

    async def gone(self) -> None:
        await self._gone.wait()

    def reap(self) -> None:
        """Once it and bubblewrap have ended: take its exit, if bubblewrap ended without."""
        if self._pidfd is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            os.close(self._pidfd)
            self._pidfd = None

    def _on_end(self) -> None:
        assert self._pidfd is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._gone.set()

    def descendants(self) -> list[int]:
        """Return the pids of all processes below it: orphans too, as it adopts them."""
        if self._pidfd is None:
            return []
        children: dict[int, list[int]] = {}
        for pid, parent_pid in _parents():
            children.setdefault(parent_pid, []).append(pid)
        found = list(children.get(self.pid, ()))
        for pid in found:
            found += children.get(pid, ())
        return found

    def holds(self, inodes: Collection[int]) -> bool:
        """Say whether some process of the sandbox has each of these sockets open; not of none."""
        missing = {f"socket:[{inode}]" for inode in inodes}
        return bool(inodes) and missing.issubset(self._open())

    def those_held(self, inodes: Collection[int]) -> frozenset[int]:
        """Return those of these sockets that some process of the sandbox has open."""
        opened = self._open()
        return frozenset(inode for inode in inodes if f"socket:[{inode}]" in opened)

    def _open(self) -> set[str]:
        """What the processes of the sandbox have open, as the links in /proc name it."""
        found = set()
        for pid in (self.pid, *self.descendants()):
            with contextlib.suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        found.add(str(Path(entry.path).readlink()))
        return found


class Written(NamedTuple):
    """What was written to disks, in bytes; `removed`: of that, or of what others wrote, what was
    removed before it came there.
    """

    written: int
    removed: int


class Status:
    """What bubblewrap tells of its sandbox: the first process's pid, then the exit code."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        self.exit_code: int | None = None
        self._init_pid: int | None = None
        self._on_output = on_output
        self._tail = b""
        self._heard = b""
        self._fd = -1
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def open(self, files: contextlib.ExitStack) -> int:
        """Return the end that bubblewrap writes to; it is closed here with `files`."""
        self._fd, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        files.callback(os.close, writing)
        self._loop.add_reader(self._fd, self._read)
        return writing

    async def started(self) -> None:
        """Return once it told the pid of the first process, or that there will be none."""
        await self._told.wait()

    def told(self) -> int | None:
        """Return the pid of the sandbox's first process, None when it told none up to now."""
        if self._fd >= 0:
            self._read()
        return self._init_pid

    def on_output(self, chunk: bytes) -> None:
        if self.exit_code is None:
            self._tail = (self._tail + chunk)[-OUTPUT_TAIL_BYTES:]
        self._on_output(chunk)

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace").strip() or "it said nothing"

    def close(self) -> None:
        if self._fd >= 0:
            self._read()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._fd, 4096)
            except BlockingIOError:
                return
            if not chunk:
                break
            *lines, self._heard = (self._heard + chunk).split(b"\n")
            for line in lines:
                self._hear(msgspec.json.decode(line, type=dict[str, int]))
        self._told.set()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _hear(self, told: dict[str, int]) -> None:
        if "child-pid" in told:
            self._init_pid = told["child-pid"]
            self._told.set()
        if "exit-code" in told:
            self.exit_code = told["exit-code"]


def written_in(io: str) -> Written:
    """Return what a process wrote, with its children that it waited for: see `/proc/pid/io`.

    `io` is what that file has; of a process that ended, nothing.
    """
    facts = dict(line.split(": ", 1) for line in io.splitlines())
    return Written(int(facts.get("write_bytes", 0)), int(facts.get("cancelled_write_bytes", 0)))


def end_named(name: str) -> int:
    """Kill this user's processes that are called `name`, and return how many there were."""
    count = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(entry.name))
            try:
                called = Path(entry.path, "cmdline").read_bytes().partition(b"\0")[0]
                if called == name.encode() and entry.stat().st_uid == os.geteuid():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    count += 1
            finally:
                os.close(pidfd)
    return count


def _is_init_of_a_namespace(pid: int, parent_pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if facts.get("PPid") == str(parent_pid):
        return True
    inner_pids = facts.get("NSpid", "").split()
    return len(inner_pids) > 1 and inner_pids[-1] == "1"


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (pid, parent's pid) of every process that can be seen."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(entry.path, "stat").read_bytes()
                yield int(entry.name), int(stat.rpartition(b")")[2].split()[1])
