"""Crashes: a child process that strace kills, or fails, at one of its system calls."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests import memory

# Those that change something. A call is counted for each thread, as strace does.
CALLS = (
    *("write", "pwrite64", "ftruncate", "fallocate", "utimensat"),
    *("chmod", "fchmod", "fchmodat", "chown", "fchown"),
    *("mkdir", "mkdirat", "rename", "renameat", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir"),
    *("fsync", "fdatasync", "syncfs", "sync_file_range", "flock", "statfs"),
)
FORKER = Path(__file__).with_name("forker.py")
CREATES = "openat"  # only where it makes a file
MEMORY_BYTES_MIN = 1 << 30
SLOW_US = 100_000
HOWS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")

needs_strace = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode
    != 0,
    reason="strace cannot trace here",
)

Point = tuple[str, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """What became of a child: whether the point was reached, and whether it did its work."""

    is_reached: bool
    is_done: bool


class Forker:
    """`tests.forker` with a program loaded: starting Python anew takes longer than what it does."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process = subprocess.Popen(
            [sys.executable, FORKER, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        assert self._answer() == "ready"

    @classmethod
    def of(cls, program: Path) -> Forker:
        """The one of this program; it ends with the tests."""
        if program not in _forkers:
            _forkers[program] = cls(program)
        return _forkers[program]

    def run(
        self, arguments: Sequence[str], trace: Path, *strace: str, follows: bool = True
    ) -> tuple[int, str]:
        """Run the program traced from its first line on; return its status and what it printed.

        `follows`: trace the threads that it starts, too.
        """
        output = trace.with_name(f"{trace.name}.output")
        with self._in_step():
            pid = self._ask(json.dumps({"arguments": list(arguments), "output": str(output)}))
        options = ["-f", *strace] if follows else strace
        command: list[str | Path] = ["strace", "-o", trace, "-p", pid, *options]
        with (
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer,
            self._in_step(),
        ):
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert "attached" in said, said
            status = int(self._ask("go"))
        return status, output.read_text()

    def close(self) -> None:
        self._process.communicate()

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[None]:
        """After an error, of whatever kind, nobody asks this one again; its fork ends with it."""
        try:
            yield
        except BaseException:
            _forkers.pop(self._program, None)
            self._process.kill()
            self._process.communicate()
            raise

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


_forkers: dict[Path, Forker] = {}


@atexit.register
def _close_forkers() -> None:
    for forker in _forkers.values():
        forker.close()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder, in memory where there is room: what is copied for each crash is small and many."""
    has_room = memory.has_room(MEMORY_BYTES_MIN)
    with tempfile.TemporaryDirectory(dir=memory.MEMORY if has_room else None) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Child:
    """A program of the tests with its arguments.

    It exits 0 when its work is done, 3 when the product said why not.
    """

    program: Path
    arguments: tuple[str, ...]

    def run(
        self, trace: Path, *strace: str, follows: bool = True
    ) -> subprocess.CompletedProcess[str]:
        forker = Forker.of(self.program)
        status, output = forker.run(self.arguments, trace, *strace, follows=follows)
        return subprocess.CompletedProcess((), status, output, "")

    def points(self, trace: Path) -> list[Point]:
        """Do the work; return every system call that changes something, each time it is made."""
        names = ",".join(f"?{name}" for name in (*CALLS, CREATES))
        counted = self.run(trace, "-e", f"trace={names}")
        assert counted.returncode == 0, counted.stdout
        made: Counter[tuple[str, str]] = Counter()
        found = set()
        for line in trace.read_text().splitlines():
            if match := _LINE.match(line):
                thread, name, arguments = match.groups()
                made[thread, name] += 1
                if name != CREATES or "O_CREAT" in arguments:
                    found.add((name, made[thread, name]))
        return sorted(found)

    def fail(self, trace: Path, where: Point, how: str, *, slow: str | None = None) -> bool:
        """Do the work and fail at one point; return whether the point was reached."""
        return self.attempt(trace, where, how, slow=slow).is_reached

    def attempt(self, trace: Path, where: Point, how: str, *, slow: str | None = None) -> Attempt:
        """Do the work and fail at one point.

        `slow`: a call that begins late each time, unless the fault is to strike it: so that it
        goes on while others are made.
        """
        call, number = where
        words = ["-e", f"trace=?{call}", "-e", f"inject=?{call}:{how}:when={number}"]
        if slow not in (None, call):
            words += ["-e", f"trace=?{call},{slow}", "-e", f"inject={slow}:delay_enter={SLOW_US}"]
        done = self.run(trace, *words)
        text = trace.read_text()
        if how.startswith("signal"):
            is_reached = "killed by SIGKILL" in text
            assert is_reached == (done.returncode != 0), done.stdout
        else:
            # Either it was said what failed, or it could be done without that call.
            assert done.returncode in (0, 3), done.stdout
            is_reached = "INJECTED" in text
        return Attempt(is_reached, is_done=done.returncode == 0)


def share(points: Sequence[T]) -> list[T]:
    """The points of a sweep that this run goes through: all of them.

    With CRASH_SHARE=2/5 only the second of five equal parts, for a machine that has no hour in one
    piece.
    """
    part, _, parts = os.environ.get("CRASH_SHARE", "1/1").partition("/")
    return list(points)[int(part) - 1 :: int(parts)]


def some(points: Sequence[T], count: int) -> list[T]:
    """A few of the points, by CRASH_SEED; the sweeps of `make soak` have them all."""
    seed = int(os.environ.get("CRASH_SEED", "0"))
    return random.Random(seed).sample(points, min(count, len(points)))
