"""kill -9 at each system call of a push that changes something: old or new, whole, and usable.

The server of a push is traced, and it or its pack worker is killed as it makes the call. A second
server on the same repositories takes the next push, as the next process would.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.git.locks import forget_locks

Git = Callable[..., Any]
CALLS = (
    "rename", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fsync", "fdatasync",
    "write", "pwrite64", "ftruncate", "chmod", "fchmod", "fchmodat",
)  # fmt: skip
SMALL, LARGE = 2_000, 600_000  # indexed in the server's own process, and in a worker
pytestmark = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode,
    reason="strace cannot trace here",
)


@dataclass
class Sweep:
    """A repository as it was before a push, and the push."""

    launch: Callable[..., Any]
    steady: Any
    template: Path
    work: Path
    body: bytes
    old: dict[str, str]
    new: dict[str, str]
    is_atomic: bool
    git: Git
    count: int = 0

    def bare(self) -> Path:
        self.count += 1
        path = self.steady.root / f"{self.work.parent.name}-{self.count}.git"
        shutil.copytree(self.template, path, symlinks=True)
        return path

    def push(self, bare: Path, *strace: str) -> bool:
        """Push to a server that is traced; return whether it lived and answered."""
        server = self.launch(self.steady.root)
        # A request of another kind first: what is loaded or started once is no part of the push.
        server.client.get(f"{server.url_of(bare)}/info/refs?service=git-receive-pack")
        pids = [server.process.pid, *children(server.process.pid)]
        trace = bare.with_suffix(".trace")
        tracing = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", trace, *strace, *(f"--attach={pid}" for pid in pids)]
        )
        wait_until(lambda: all(map(is_traced, pids)))
        try:
            server.post(bare, "git-receive-pack", self.body)
            lived = True
        except httpx.TransportError:
            lived = False
            assert server.process.wait(30) == -9
        server.process.kill()
        server.process.wait(30)
        assert tracing.wait(30) is not None
        return lived

    def expect_old_or_new(self, bare: Path) -> None:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=bare).out
        refs = dict(line.split() for line in lines.splitlines())
        for name in {*self.old, *self.new, *refs}:
            assert refs.get(name) in (self.old.get(name), self.new.get(name)), name
        if self.is_atomic:
            assert refs in (self.old, self.new)
        self.git("fsck", "--full", "--strict", cwd=bare)

    def expect_usable(self, bare: Path) -> None:
        forget_locks(bare)  # as the next process does before its first push
        specs = [f"{oid}:{name}" for name, oid in self.new.items()]
        specs += [f":{name}" for name in self.old if name not in self.new]
        self.git("push", "-q", "-f", self.steady.url_of(bare), *specs, cwd=self.work)
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=bare).out
        assert dict(line.split() for line in lines.splitlines()) == self.new
        self.git("fsck", "--full", "--strict", cwd=bare)
        left = [*(bare / "objects").glob("tmp_*"), *bare.rglob("*.lock"), *bare.rglob("*.keep")]
        assert left == []
        shutil.rmtree(bare)

    def points(self) -> list[tuple[str, int]]:
        """Each call that changes something, as often as one thread makes it."""
        bare = self.bare()
        assert self.push(bare, "-e", "trace=" + ",".join(f"?{call}" for call in CALLS))
        made: collections.Counter[tuple[str, str]] = collections.Counter()
        for line in bare.with_suffix(".trace").read_text().splitlines():
            thread, _, rest = line.partition(" ")
            call, bracket, _ = rest.strip().partition("(")
            if bracket and call in CALLS:
                made[thread, call] += 1
        most = dict.fromkeys(CALLS, 0)
        for (_, call), count in made.items():
            most[call] = max(most[call], count)
        return [(call, number) for call in CALLS for number in range(1, most[call] + 1)]

    def kill_at(self, call: str, number: int) -> bool:
        """Kill at one point, and look at what is left; return whether it was reached."""
        bare = self.bare()
        inject = f"inject=?{call}:signal=SIGKILL:when={number}"
        self.push(bare, "-e", f"trace=?{call}", "-e", inject)
        reached = "killed by SIGKILL" in bare.with_suffix(".trace").read_text()
        self.expect_old_or_new(bare)
        self.expect_usable(bare)
        return reached


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def is_traced(pid: int) -> bool:
    """Say whether all its threads are: the one of its own number is the first."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # it is gone
            found.append("TracerPid:\t0\n" not in thread.read_text())
    return all(found)


def wait_until(is_true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.fixture
def sweep_of(
    launch: Any, shared_server: Any, tmp_path: Path, raw: Any, git: Git, commit: Git, head: Git
) -> Callable[..., Sweep]:
    def make(size_bytes: int, *, is_atomic: bool) -> Sweep:
        template, work = tmp_path / "template.git", tmp_path / "work"
        git("init", "-q", "--bare", "-b", "main", template, cwd=tmp_path)
        for key in ("http.receivepack", "core.logAllRefUpdates"):
            git("config", key, "true", cwd=template)
        git("init", "-q", "-b", "main", work, cwd=tmp_path)
        one = commit(work, "one")
        git("push", "-q", template, "main", "main:packed", "main:gone", cwd=work)
        git("pack-refs", "--all", cwd=template)
        git("push", "-q", template, "main:loose", cwd=work)
        (work / "data").write_bytes(os.urandom(size_bytes))
        two = commit(work, "two", other="x")
        null = "0" * 40
        commands = [
            (one, two, "refs/heads/main"), (one, two, "refs/heads/loose"),
            (one, null, "refs/heads/gone"), (null, two, "refs/heads/new/deep"),
        ]  # fmt: skip
        caps = "report-status side-band-64k" + (" atomic" if is_atomic else "")
        body = b"".join(
            raw.pkt(f"{old} {new} {name}" + ("" if number else f"\0{caps}"))
            for number, (old, new, name) in enumerate(commands)
        )
        body += b"0000" + raw.wire(shared_server, template, work).pack(two, f"^{one}")
        old_refs = {f"refs/heads/{name}": one for name in ("main", "packed", "loose", "gone")}
        new_refs = {f"refs/heads/{name}": two for name in ("main", "loose", "new/deep")}
        new_refs["refs/heads/packed"] = one
        return Sweep(
            launch, shared_server, template, work, body, old_refs, new_refs, is_atomic, git
        )

    return make


@pytest.mark.parametrize("point", [("rename", 1), ("write", 4)])
def test_a_push_is_old_or_new_after_a_kill(sweep_of: Any, point: tuple[str, int]) -> None:
    assert sweep_of(SMALL, is_atomic=False).kill_at(*point)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
@pytest.mark.parametrize("is_atomic", [False, True])
def test_a_push_is_old_or_new_after_a_kill_at_every_system_call(
    sweep_of: Any, size_bytes: int, *, is_atomic: bool
) -> None:
    sweep = sweep_of(size_bytes, is_atomic=is_atomic)
    every = sweep.points()
    reached = sum(sweep.kill_at(*point) for point in every)
    print(f"{reached} of {len(every)} points reached")
    assert reached > len(every) // 2
