"""Programs of ours that read beside a caller: how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def start_worker(
    name: str, *arguments: str | Path, fds: Sequence[int] = (), pipe_bytes: int = -1
) -> subprocess.Popen[bytes]:
    """Start a module of this package, with pipes for what it is told and what it answers; `fds`
    are open there. By its path: to find it by its name would load as much again.

    Raises:
        OSError: It cannot be started.
    """
    program = Path(__file__).with_name(f"{name}.py")
    root = program.parents[1]
    return subprocess.Popen(
        [sys.executable, "-P", program, *arguments],
        env={"PATH": os.defpath, "PYTHONPATH": os.fspath(root), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=fds,
        pipesize=pipe_bytes,
    )


def stop_worker(process: subprocess.Popen[bytes]) -> None:
    """Break one off, unless it has ended."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def has_core() -> bool:
    """Whether there is a processor beside the caller's."""
    return len(os.sched_getaffinity(0)) > 1
