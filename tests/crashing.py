"""Crashes: a child process that strace kills, or fails, at one of its system calls."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# Those that change something. A call is counted for each thread, as strace does.
CALLS = (
    *("write", "pwrite64", "ftruncate", "fallocate", "chmod", "fchmod", "chown", "utimensat"),
    *("mkdir", "rename", "link", "linkat", "symlink", "unlink", "unlinkat", "rmdir"),
    *("fsync", "fdatasync", "syncfs", "flock", "statvfs"),
)
CREATES = "openat"  # only where it makes a file
HOWS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")

needs_strace = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode
    != 0,
    reason="strace cannot trace here",
)

Point = tuple[str, int]


@dataclass(frozen=True)
class Child:
    """A program of the tests with its arguments.

    It exits 0 when its work is done, 3 when the product said why not.
    """

    program: Path
    arguments: tuple[str, ...]

    def run(self, trace: Path, *strace: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("strace", "-f", "-qq", "-o", trace, *strace),
                *(sys.executable, self.program, *self.arguments),
            ],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )

    def points(self, trace: Path) -> list[Point]:
        """Do the work; return every system call that changes something, each time it is made."""
        names = ",".join(f"?{name}" for name in (*CALLS, CREATES))
        counted = self.run(trace, "-e", f"trace={names}")
        assert counted.returncode == 0, counted.stdout + counted.stderr
        made: Counter[tuple[str, str]] = Counter()
        found = set()
        for line in trace.read_text().splitlines():
            if match := _LINE.match(line):
                thread, name, arguments = match.groups()
                made[thread, name] += 1
                if name != CREATES or "O_CREAT" in arguments:
                    found.add((name, made[thread, name]))
        return sorted(found)

    def fail(self, trace: Path, where: Point, how: str) -> bool:
        """Do the work and fail at one point; return whether the point was reached."""
        call, number = where
        done = self.run(trace, "-e", f"trace=?{call}", "-e", f"inject=?{call}:{how}:when={number}")
        text = trace.read_text()
        if how.startswith("signal"):
            reached = "killed by SIGKILL" in text
            assert reached == (done.returncode != 0), done.stdout + done.stderr
            return reached
        # Either it was said what failed, or it could be done without that call.
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return "INJECTED" in text


def some(points: Sequence[Point], count: int) -> list[Point]:
    """A few of the points, by CRASH_SEED; the sweeps of `make soak` have them all."""
    seed = int(os.environ.get("CRASH_SEED", "0"))
    return random.Random(seed).sample(points, min(count, len(points)))
