"""Starts Python programs in forks of a process that has loaded what they import.

Usage: warm_starter.py FD PRELOAD ROOM. PRELOAD is run first. Then each message on the socket FD is
an order as JSON, with descriptors: a socket to tell of the program, its standard input, output and
error, and what else it inherits. Its process id is told at once and its return code at the end; it
stays a zombie until the socket is closed. ROOM is there for a fork's command line to be written
over.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import select
import socket
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

ABOVE = 900  # descriptors wait there for their places
MESSAGE_BYTES_MAX = 1 << 18
DESCRIPTORS_MAX = 32


def serve(orders: socket.socket) -> dict[str, Any]:
    """Fork for each order. Returns in a fork alone, its order."""
    running: dict[int, tuple[int, int]] = {}  # pidfd: process id, whom to tell
    ended: dict[int, int] = {}  # who was told: process id
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in running:
                pid, teller = running.pop(fd)
                tell(teller, return_code(fd))
                poll.register(teller, 0)  # for its end, of which poll always says
                ended[teller] = pid
            elif fd in ended:
                os.waitpid(ended.pop(fd), 0)
            else:
                message, fds, _, _ = socket.recv_fds(orders, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
                if not message:
                    sys.exit()
                order: dict[str, Any] = json.loads(message)
                pid = os.fork()
                if not pid:
                    orders.close()
                    take_places(fds[1:], order["inherited"])
                    return order
                teller, *others = fds
                for other in others:
                    os.close(other)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, teller
                poll.register(pidfd, select.POLLIN)
                tell(teller, pid)
                continue
            poll.unregister(fd)
            os.close(fd)


def return_code(pidfd: int) -> int:
    """Look at how a process ended, which is left to be waited for."""
    seen = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert seen is not None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


def tell(fd: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for this one any more
        os.write(fd, b"%d\n" % number)


def take_places(fds: list[int], inherited: list[int]) -> None:
    """Put descriptors where the program expects them, and close all others."""
    waiting = [fcntl.fcntl(fd, fcntl.F_DUPFD, ABOVE) for fd in fds]
    os.closerange(0, ABOVE)
    for fd, place in zip(waiting, (0, 1, 2, *inherited), strict=True):
        os.dup2(fd, place)
        os.close(fd)


def become(order: dict[str, Any]) -> None:
    """Take on what a new process is given: environment, folder, standard streams, command line."""
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stdout.reconfigure(write_through=at_once)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
    sys.stderr.reconfigure(line_buffering=True, write_through=at_once)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        sys.warnoptions.append(option)
        warnings._setoption(option)  # type: ignore[attr-defined]
    show(order["command"])


def show(command: list[str]) -> None:
    """Let this command line be seen. Source: proc(5), `stat`, arg_start and arg_end."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = "".join(f"{word}\0" for word in command).encode()[: end - begin - 1]
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        memory.write(line.ljust(end - begin, b"\0"))


def run(command: list[str]) -> None:
    """Do what Python does with this command line."""
    _, first, *rest = command
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    elif first == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path.insert(0, str(Path.cwd()))
        sys.modules.pop(f"{rest[0]}.__main__", None)  # loaded, but not yet run: runpy would warn
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def leave(status: int) -> None:
    """End without taking every module apart, which copies all memory that is shared till then."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # which are said below
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)
    sys.exit(status)


if __name__ == "__main__":
    this = sys.modules["__main__"]  # whatever becomes of the name
    fd, preload = sys.argv[1:3]
    del sys.path[0]  # this folder
    exec(preload, {})
    gc.collect()
    gc.freeze()
    order = serve(socket.socket(fileno=int(fd)))
    become(order)
    status = 0
    try:
        run(order["command"])
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        status = int(end.code or 0)
    leave(status)
