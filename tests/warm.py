"""Python programs that start at once: as forks of a process that has loaded what they import.

Loading takes longer than most of what tests do with a server then. A fork is a process with
descriptors, environment, folder and command line of its own, whose return code is its own and
which is killed as any other. What it cannot prove is what only the start and the end of an
interpreter do: options of Python's, its variables (but PYTHONUNBUFFERED and PYTHONWARNINGS), what
of its modules a program imports when, as far as they were loaded before, and that all is taken
apart. Tests of those start anew.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

STARTER = Path(__file__).with_name("warm_starter.py")
ROOM = "-" * 8192  # bytes of a command line
LOOK_MS = 50


class Starter:
    """`tests.warm_starter` with some modules loaded. It ends with the tests."""

    def __init__(self, preload: str) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, STARTER, str(theirs.fileno()), preload, ROOM],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._orders.close()
        self._process.wait(10)

    def start(self, order: dict[str, object], fds: Sequence[int]) -> socket.socket:
        """Start a program; returns the socket that tells of it."""
        mine, theirs = socket.socketpair()
        with theirs:
            data = json.dumps(order).encode()
            socket.send_fds(self._orders, [data], [theirs.fileno(), *fds])
        return mine


_starter = cache(Starter)


class WarmPopen(subprocess.Popen[Any]):
    """Popen of a Python program, with `preload` (Python code) done before: see `warm`."""

    preload: str

    _close_pipe_fds: Callable[..., None]
    _waitpid_lock: threading.Lock

    def _execute_child(
        self,
        args: Sequence[str | Path],
        executable: None,
        preexec_fn: None,
        _close_fds: object,
        pass_fds: Sequence[int],
        cwd: str | Path | None,
        env: Mapping[str, str] | None,
        *rest: Any,
    ) -> None:
        assert executable is preexec_fn is None
        _, _, shell, *_, gid, gids, uid, umask, in_new_session, process_group = rest
        options = (shell, gid, gids, uid, umask, in_new_session, process_group)
        assert options == (False, None, None, None, -1, False, -1), "a fork is given none of these"
        pipes = rest[3:9]  # ours and theirs of standard input, output and error
        theirs = (pipes[0], pipes[3], pipes[5])
        command = [os.fspath(word) for word in args]
        order: dict[str, object] = {
            "command": command if command[0] == sys.executable else [sys.executable, *command],
            "environ": dict(os.environ if env is None else env),
            "cwd": os.fspath(Path.cwd() if cwd is None else cwd),
            "inherited": list(pass_fds),
        }
        standard = [own if given == -1 else given for own, given in enumerate(theirs)]
        self._told = _starter(self.preload).start(order, [*standard, *pass_fds])
        self.pid = self._hear()
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _hear(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            more = self._told.recv(1)
            assert more, "the starter of programs is gone"
            line += more
        return int(line)

    def _look(self, timeout_ms: float) -> int | None:
        """Return how it ended, if it does within that time."""
        poll = select.poll()
        with self._waitpid_lock:
            if self.returncode is None:
                poll.register(self._told, select.POLLIN)
                if poll.poll(timeout_ms):
                    self.returncode = self._hear()
                    self._told.close()
            return self.returncode

    def _internal_poll(self, _deadstate: object = None, **_: object) -> int | None:
        return self._look(0)

    def _wait(self, timeout: float | None) -> int | None:
        began = time.monotonic()
        while self._look(LOOK_MS) is None:
            if timeout is not None and time.monotonic() > began + timeout:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


@cache
def warm(preload: str) -> type[WarmPopen]:
    """Popen for Python programs that do `preload` first anyway.

    What it starts begins with `sys.executable`, or is a script of Python's.
    """
    return type("Warm", (WarmPopen,), {"preload": preload})


def loading(*programs: Path) -> str:
    """Python code that loads what these programs import, and runs none of them."""
    return f"import runpy\nfor path in {[str(path) for path in programs]}: runpy.run_path(path)"


def run_warm(
    preload: str,
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run such a program to its end, as `subprocess.run` with `capture_output` and `text`."""
    pipe = subprocess.PIPE
    with warm(preload)(command, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
