"""Crashes: a real process, killed or failed at system calls of a backup or a restore.

After each: the backups of before are whole, no half one is listed, and doing it again works.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.backup.destination import Destination
from storage.backup.keys import KeyPlan
from storage.backup.manifest import Manifest
from storage.backup.places import Places, is_unfinished
from storage.backup.restore import restore
from storage.backup.take import take
from storage.backup.verify import verify
from storage.check import check_store
from storage.git.check import check_repository
from storage.records.db import Records

CHILD = Path(__file__).with_name("backup_child.py")
CALLS = (
    *("write", "pwrite64", "ftruncate", "fchmod", "utimensat", "mkdir", "rename", "link"),
    *("unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "syncfs", "flock", "statfs"),
)
HOWS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]

pytestmark = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode
    != 0,
    reason="strace cannot trace here",
)


@pytest.fixture(scope="module")
def before(make_small) -> Iterator[Path]:
    """A server with a backup of a former state of it, to be copied for each crash."""
    with tempfile.TemporaryDirectory() as folder:
        small = make_small(Path(folder) / "small")
        small.back_up(with_keys=True)
        small.push("after")
        small.ingest({"new": b"new", "index.html": b"<h1>one</h1>"}, "build_2")
        small.close()
        yield Path(folder) / "small"


def run(folder: Path, what: str, *strace: str) -> subprocess.CompletedProcess[str]:
    trace = folder.parent / "trace"
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", trace, *strace, sys.executable, CHILD, folder, what],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def points(before: Path, tmp_path: Path, what: str) -> list[tuple[str, int]]:
    """Every system call that changes something, each time that it is made."""
    shutil.copytree(before, tmp_path / "count", symlinks=True)
    names = ",".join(f"?{name}" for name in CALLS)
    counted = run(tmp_path / "count", what, "-e", f"trace={names}")
    assert counted.returncode == 0, counted.stdout + counted.stderr
    shutil.rmtree(tmp_path / "count")
    made: collections.Counter[str] = collections.Counter()
    for line in (tmp_path / "trace").read_text().splitlines():
        words = line.split(maxsplit=1)
        if len(words) == 2 and "(" in words[1] and not words[1].startswith(("<", "+", "-")):
            made[words[1].partition("(")[0]] += 1
    return [(name, n) for name in CALLS for n in range(1, made[name] + 1)]


def crash(before: Path, folder: Path, what: str, where: tuple[str, int], how: str) -> bool:
    """Crash once, and prove what must hold then; return whether the point was reached."""
    small = folder / "small"
    shutil.copytree(before, small, symlinks=True)
    call, number = where
    inject = ["-e", f"trace=?{call}", "-e", f"inject=?{call}:{how}:when={number}"]
    done = run(small, what, *inject)
    trace = (folder / "trace").read_text()
    if how.startswith("signal"):
        reached = "killed by SIGKILL" in trace
        assert reached == (done.returncode != 0), done.stderr
    else:
        # Either it was said what failed, or it could be done without that call.
        assert done.returncode in (0, 3), done.stdout + done.stderr
        reached = "INJECTED" in trace
    {"take": expect_backups, "restore": expect_restorable}[what](small, done.returncode)
    shutil.rmtree(small)
    return reached


def expect_backups(small: Path, status: int) -> None:
    destination = Destination(small / "backups")
    found = verify(destination)
    assert [item.faults for item in found] == [()] * len(found)
    assert len(found) >= 1 + (status == 0)
    take(Places(small / "data"), destination, with_keys=True)
    # Nothing is left of what was broken off.
    take(Places(small / "data"), destination, with_keys=True, keep_count=1)
    (last,) = verify(destination, is_deep=True)
    assert last.faults == ()
    assert list(destination.tmp.iterdir()) == []
    assert not destination.unfinished.exists()
    contents = {path.parent.name + path.name for path in destination.pool.glob("*/*")}
    assert contents == needed(destination)


def needed(destination: Destination) -> set[str]:
    (name,) = destination.names()
    return {entry.digest.hex() for entry in Manifest.open(destination.manifest(name)).entries()}


def expect_restorable(small: Path, status: int) -> None:
    data = small / "new" / "data"
    if status != 0 and not (data / "gitd.db").exists() and data.exists():
        # No server starts in half of one.
        assert is_unfinished(data) or not [p for p in data.iterdir() if p.name != "restoring"]
    if status != 0 and (is_unfinished(data) or not (data / "gitd.db").exists()):
        restore(Destination(small / "backups"), Places(data), KeyPlan({}))
    assert not is_unfinished(data)
    expect_whole(small / "new")


def expect_whole(root: Path) -> None:
    places = Places(root / "data")
    with Records.open(places.database) as records:
        report = check_store(places.store, records)
        assert (report.problems, report.leftovers) == ((), ())
    assert check_repository(places.repositories / "site_1.git", is_whole=True).is_sound


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["take", "restore"])
def test_all_or_nothing_at_some_system_calls(before: Path, tmp_path: Path, what: str) -> None:
    every = points(before, tmp_path, what)
    assert len(every) > 50
    pick = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    for how, where in zip(HOWS, pick.sample(every, len(HOWS)), strict=True):
        crash(before, tmp_path, what, where, how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", ["take", "restore"])
@pytest.mark.parametrize("how", HOWS)
def test_all_or_nothing_at_every_system_call(
    before: Path, tmp_path: Path, what: str, how: str
) -> None:
    every = points(before, tmp_path, what)
    reached = sum(crash(before, tmp_path, what, where, how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
