"""Child processes: started from the event loop, read as they speak, ended with all they started."""

from __future__ import annotations

import asyncio
import codecs
import concurrent.futures.thread  # noqa: F401 - for what the interpreter loads late, see below
import contextlib
import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")  # linux/sched/types.h, its first version
_SHORT_TURN_NS = 100_000  # the shortest that the kernel grants; its own are milliseconds

# What the interpreter loads when it is first used, and can not any more without privileges.
_LATE_CODECS = ("ascii", "idna", "latin-1", "punycode", "unicode_escape", "utf-8", "utf-16")

READ_BYTES_MAX = 65_536  # one read of a pipe: its whole capacity
STRAGGLERS_S = 1.0  # how long output may stay open after the process and its group were ended


def drop_privileges(uid: int, gid: int) -> None:
    """Become `uid` and `gid` for good, with no other group and no way back.

    Import everything first: the interpreter may live where `uid` cannot read; only the codecs of
    the standard library are seen to here. The signal that `die_with_parent` asked for is forgotten
    by the kernel, so call that one afterwards.

    Raises:
        PermissionError: This process may not change its ids.
    """
    for name in _LATE_CODECS:
        codecs.lookup(name)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    set_no_new_privileges()


def set_no_new_privileges() -> None:
    """From here on no program that is run gains rights by its setuid bit or file capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process when the thread that started it ends.

    `parent_pid`: who the parent was when this process began; should it be gone already, this
    process ends at once.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """From here on descendants whose parent ends become children of this process, to be reaped.

    Otherwise they go to the system's first process, which in a container may never reap.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take_short_turns() -> None:
    """Ask for short turns on the processor, for this thread and all that it starts.

    It gets no more of the processor, but it gets it sooner: who wakes up for a short turn need not
    wait for the end of somebody else's longer one. Nothing changes before Linux 6.12, nor where
    the kernel refuses or whoever started this has chosen another class.

    Source: sched_setattr(2); Linux 6.12, kernel/sched/syscalls.c, `sched_runtime`.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _SCHED_ATTR.pack(
        _SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, _SHORT_TURN_NS, 0, 0
    )
    _libc.syscall(number, 0, attributes, 0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


class Process:
    """A running child that leads a session of its own. Made by `start`, in the loop's thread.

    The thread matters: the kernel counts as parent the thread that started a child, and a child
    that dies with its parent would die with a worker thread.
    """

    def __init__(self, child: subprocess.Popen[bytes], on_output: Callable[[bytes], None]) -> None:
        assert child.stdout is not None
        self.pid = child.pid
        self._child = child
        self._stdout = child.stdout
        self._on_output = on_output
        self._cpu_s = 0.0
        self._ended = asyncio.Event()
        self._drained = asyncio.Event()
        self._pidfd = os.pidfd_open(child.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._reap)
        os.set_blocking(self._stdout.fileno(), False)
        self._loop.add_reader(self._stdout.fileno(), self._read)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str],
        on_output: Callable[[bytes], None],
        pass_fds: Collection[int] = (),
        program: str | None = None,
    ) -> Process:
        """Start `argv` with exactly `environ`, nothing to read, and no open file but `pass_fds`.

        `program`: the file to execute, where `argv[0]` is another name for it.

        `on_output` gets what the process writes to its output and error, as it comes, in the loop;
        it must not block.

        Raises:
            OSError: The program cannot be executed.
        """
        child = subprocess.Popen(
            argv,
            executable=program,
            env=dict(environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
        return cls(child, on_output)

    async def wait(self) -> int:
        """Return the exit status (128 + n after signal n) when process and output have ended.

        What it left behind in its process group is ended first. May be called again, and canceled.
        """
        await self.ended()
        self._kill_group()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), STRAGGLERS_S)
        self._stop_reading()
        return self.exit_status

    async def ended(self) -> None:
        """Return when the process itself has ended, whatever it left behind."""
        await self._ended.wait()

    @property
    def exit_status(self) -> int:
        """The status that `wait` returns; only once it has ended."""
        status = self._child.returncode
        assert status is not None
        return status if status >= 0 else 128 - status

    @property
    def cpu_s(self) -> float:
        """The processor time of it and of all that was waited for below it, once it has ended."""
        return self._cpu_s

    def signal(self, number: int) -> None:
        """Signal the process alone. Does nothing once it has ended."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End the process and its process group at once. Does nothing once it has ended."""
        if not self._ended.is_set():
            self._kill_group()
            self.signal(signal.SIGKILL)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        _, status, usage = os.wait4(self.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_s = usage.ru_utime + usage.ru_stime
        os.close(self._pidfd)
        self._ended.set()

    def _read(self) -> None:
        try:
            chunk = os.read(self._stdout.fileno(), READ_BYTES_MAX)
        except BlockingIOError:
            return
        if chunk:
            self._on_output(chunk)
        else:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if not self._stdout.closed:
            self._loop.remove_reader(self._stdout.fileno())
            self._stdout.close()
        self._drained.set()
