"""A process that has a program loaded and runs it in forks: a sweep starts it some hundred times.

Usage: forker.py PROGRAM. For each line of JSON that it reads, `arguments` and `output` (a file for
what is printed), it forks and says the fork's process id. The fork waits for the next line, so that
somebody can attach to it first; then its exit status is said, less than 0 for a signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from types import CodeType

PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
ANY = ctypes.c_ulong(-1)


def main(program: str) -> None:
    runpy.run_path(program, run_name="loaded")  # for what it imports
    # Compiled once: a fork opens nothing before the program does, so no fault strikes its loading.
    code = compile(Path(program).read_bytes(), program, "exec")
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        waiting, go = os.pipe()
        ready, tell = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go)
            sys.argv = [program, *order["arguments"]]
            _run(code, order["output"], tell=tell, waiting=waiting)
        os.close(waiting)
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        print(pid, flush=True)
        sys.stdin.readline()
        os.close(go)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _run(code: CodeType, output: str, *, tell: int, waiting: int) -> None:
    # Whoever attaches is no parent of this one, which not every system lets them.
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(tell)
    os.read(waiting, 1)
    exec(code, {"__name__": "__main__", "__file__": sys.argv[0]})
    raise AssertionError("it did not exit")


if __name__ == "__main__":
    main(*sys.argv[1:])
