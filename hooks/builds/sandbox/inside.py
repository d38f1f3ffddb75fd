"""What is seen of a running sandbox from outside: its processes, its files in memory.

Its own `/proc` lists its processes and nobody else's. It is looked at through the folder of the
sandbox's first process, and held open: a number that comes to mean another process leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hooks.builds.sandbox.namespace import Init, Written, written_in

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LAST: Final = b"19"  # as nice(1) has it
_EMPTY_FILE_BYTES: Final = 1024  # what the kernel keeps for a file in memory, whatever is in it
_DELETED: Final = " (deleted)"
OPEN_FILES_SEEN_MAX: Final = 50_000  # in one look; a sandbox with more is not looked through


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What a process of the sandbox uses. `cpu_s`: with that of its children that it waited for."""

    pid: int
    thread_count: int
    cpu_s: float
    memory_bytes: int
    session: int


class Inside:
    """A look into one sandbox. `close` it. Its methods read /proc: call them in a thread."""

    def __init__(self, proc: int, in_memory: list[int], first_io: int | None = None) -> None:
        """The open folders; `first_io`: what its first process wrote, of which it is the file.

        Held open from before that process ends: a zombie's file is root's to open.
        """
        self._proc = proc
        self._in_memory = in_memory
        self._first_io = first_io

    @classmethod
    def open(cls, init: Init, in_memory: Iterable[str]) -> Inside | None:
        """Look into the sandbox whose first process is `init`; None before and after it runs.

        `in_memory`: its folders that are file systems in memory.
        """
        with contextlib.ExitStack() as opened:

            def folder(path: str, parent: int | None = None) -> int:
                fd = os.open(path, _FOLDER, dir_fd=parent)
                opened.callback(os.close, fd)
                return fd

            try:
                root = folder(f"/proc/{init.pid}/root")
                proc = folder("proc", root)
                folders = [folder(path.removeprefix("/"), root) for path in in_memory]
            except OSError:
                return None
            is_set_up = os.fstat(proc).st_dev != Path("/proc").stat().st_dev
            if not is_set_up or not init.is_there():
                return None
            opened.pop_all()
            os.close(root)
            first_io = None
            with contextlib.suppress(OSError):
                first_io = os.open("1/io", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            return cls(proc, folders, first_io)

    def close(self) -> None:
        for fd in (self._proc, *self._in_memory):
            os.close(fd)
        if self._first_io is not None:
            os.close(self._first_io)

    def count(self) -> int:
        """Return how many processes there are."""
        return len(self._pids())

    def processes(self) -> list[ProcessUse]:
        found = []
        for pid in self._pids():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                fields = self._read(pid, "stat").rpartition(")")[2].split()
                memory = _kilobytes(self._read(pid, "status"), ("RssAnon", "RssShmem"))
                times = sum(map(int, fields[11:15]))
                found.append(
                    ProcessUse(pid, int(fields[17]), times / _TICKS_PER_S, memory, int(fields[3]))
                )
        return found

    def written(self) -> Written:
        """Return what those that are there have written to disks, with those that they waited for.

        Raises:
            OSError: The sandbox has ended.
        """
        found = [written_in(self._read(pid, "io")) for pid in self._pids()]
        return Written(sum(each.written for each in found), sum(each.removed for each in found))

    def written_by_first(self) -> Written:
        """Return what its first process wrote, all that it waited for included: all, at its end.

        Raises:
            OSError: It is reaped, or cannot be seen.
        """
        if self._first_io is None:
            raise ProcessLookupError
        return written_in(os.pread(self._first_io, 4096, 0).decode())

    def shared_out_bytes(self) -> tuple[int, int]:
        """Return the private and the shared memory of all processes, counting each page once."""
        texts = [self._read(pid, "smaps_rollup") for pid in self._pids()]
        return (
            sum(_kilobytes(text, ("Pss_Anon",)) for text in texts),
            sum(_kilobytes(text, ("Pss_Shmem",)) for text in texts),
        )

    def memory_files_bytes(self) -> int:
        """Return what lies in the folders that are in memory."""
        total = 0
        for state in map(os.fstatvfs, self._in_memory):
            total += (state.f_blocks - state.f_bfree) * state.f_frsize
            total += (state.f_files - state.f_ffree) * _EMPTY_FILE_BYTES
        return total

    def has_full_folder(self) -> bool:
        """Say whether a folder that is in memory has no room left."""
        return any(os.fstatvfs(fd).f_bavail == 0 for fd in self._in_memory)

    def unnamed_files(self) -> dict[int, int]:
        """Return the bytes of files that are open and have no name any more, by device."""
        seen: set[tuple[int, int]] = set()
        total: dict[int, int] = {}
        for _, status in self._open_files():
            file = (status.st_dev, status.st_ino)
            if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and file not in seen:
                seen.add(file)
                total[status.st_dev] = total.get(status.st_dev, 0) + status.st_blocks * 512
        return total

    def may_hide_files(self, folders: Sequence[str]) -> bool:
        """Say whether there may be files in its folders that have no name and nobody has open.

        Such a file is kept by memory that it is mapped into, or waits in a socket to be received.
        How large it is, nobody can see. `folders`: where it may write to a disk, as it sees them.
        What it has mapped of the machine's own files may be replaced by the machine at any time.
        """
        beneath = tuple(f"{folder.rstrip('/')}/" for folder in folders)
        for pid in self._pids():
            for line in self._read(pid, "maps").split("\n"):
                if line.endswith(_DELETED) and line.split(None, 5)[5].startswith(beneath):
                    return True
        return any(map(self._has_files_waiting, self._sockets()))

    def put_last(self, pid: int) -> bool:
        """Let the session of a process have the processor after others; False: ask again later.

        Without control groups the kernel shares the processor between sessions, and what `nice`
        says counts inside one alone. Of all users that are not root it does so ten times a second.
        Source: sched(7), "The autogroup feature"; proc_sched_autogroup_set_nice in the kernel's
        kernel/sched/autogroup.c.
        """
        try:
            fd = os.open(f"{pid}/autogroup", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
            with _closed_after(fd):
                os.write(fd, _LAST)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it has ended, or this kernel knows no sessions
        return True

    def _pids(self) -> list[int]:
        with os.scandir(self._proc) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdigit()]

    def _sockets(self) -> Iterator[tuple[int, str]]:
        return (place for place, status in self._open_files() if stat.S_ISSOCK(status.st_mode))

    def _has_files_waiting(self, socket: tuple[int, str]) -> bool:
        """Source: unix_show_fdinfo in the kernel's net/unix/af_unix.c, from Linux 5.3 on."""
        pid, fd = socket
        told = dict(line.split(":", 1) for line in self._read(pid, f"fdinfo/{fd}").splitlines())
        return int(told.get("scm_fds", "0")) > 0

    def _open_files(self) -> Iterator[tuple[tuple[int, str], os.stat_result]]:
        """Yield what is open: the process and its number for it, and what it is."""
        seen_count = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                folder = os.open(f"{pid}/fd", _FOLDER, dir_fd=self._proc)
                with _closed_after(folder), os.scandir(folder) as entries:
                    for entry in entries:
                        seen_count += 1
                        if seen_count > OPEN_FILES_SEEN_MAX:
                            return
                        with contextlib.suppress(OSError):
                            yield (pid, entry.name), os.stat(entry.name, dir_fd=folder)

    def _read(self, pid: int, name: str) -> str:
        """Return a file of a process; empty when the process has ended."""
        try:
            fd = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return ""
        with os.fdopen(fd, errors="replace") as file, contextlib.suppress(ProcessLookupError):
            return file.read()
        return ""


@contextlib.contextmanager
def _closed_after(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _kilobytes(text: str, names: tuple[str, ...]) -> int:
    """Add up `Name:   123 kB` lines, in bytes."""
    return sum(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.partition(":")[0] in names
    )
