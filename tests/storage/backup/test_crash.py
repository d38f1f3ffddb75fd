"""Crashes: a real process, killed or failed at system calls of a backup or a restore.

After each: the backups of before are whole, no half one is listed, and doing it again works.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
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
from storage.digest import Digest
from storage.git.check import check_repository
from storage.records.db import Records
from storage.repos import Repositories
from tests.crashing import HOWS, Child, Point, needs_strace, scratch_folder, share, some
from tests.storage.backup.conftest import git

CHILD = Path(__file__).with_name("backup_child.py")
STOPPED = re.compile(r"^(\d+) +--- stopped by SIGSTOP", re.MULTILINE)

pytestmark = needs_strace


@pytest.fixture(scope="module")
def before(make_small) -> Iterator[Path]:
    """A server with a backup of a former state of it, to be copied for each crash."""
    with scratch_folder() as folder:
        make_before(make_small, folder / "small")
        yield folder / "small"


def make_before(make_small, folder: Path) -> None:
    small = make_small(folder)
    small.back_up(with_keys=True)
    small.push("after")
    small.ingest({"new": b"new", "index.html": b"<h1>one</h1>"}, "build_2")
    small.close()


def child(small: Path, what: str) -> Child:
    return Child(CHILD, (str(small), what))


def copy(before: Path, small: Path, what: str) -> None:
    """Copy what is read: a restore reads the backups alone, a hundredth of the folders."""
    read = {"take": "", "restore": "backups"}[what]
    shutil.copytree(before / read, small / read, symlinks=True)


def points(before: Path, folder: Path, what: str) -> list[Point]:
    copy(before, folder / "count", what)
    try:
        return child(folder / "count", what).points(folder / "trace")
    finally:
        shutil.rmtree(folder / "count")


def crash(before: Path, folder: Path, what: str, where: Point, how: str) -> bool:
    """Crash once, and prove what must hold then; return whether the point was reached."""
    small = folder / "small"
    copy(before, small, what)
    attempt = child(small, what).attempt(folder / "trace", where, how)
    EXPECT[what](small, is_done=attempt.is_done)
    shutil.rmtree(small)
    return attempt.is_reached


def expect_backups(small: Path, *, is_done: bool) -> None:
    destination = Destination(small / "backups")
    found = verify(destination)
    assert [item.faults for item in found] == [()] * len(found)
    assert len(found) >= 1 + is_done
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


def expect_restorable(small: Path, *, is_done: bool) -> None:
    data = small / "new" / "data"
    if not is_done and not (data / "gitd.db").exists() and data.exists():
        # No server starts in half of one.
        assert is_unfinished(data) or not [p for p in data.iterdir() if p.name != "restoring"]
    if not is_done and (is_unfinished(data) or not (data / "gitd.db").exists()):
        restore(Destination(small / "backups"), Places(data), KeyPlan({}))
    assert not is_unfinished(data)
    expect_whole(small / "new")


EXPECT = {"take": expect_backups, "restore": expect_restorable}


def expect_whole(root: Path) -> None:
    places = Places(root / "data")
    with Records.open(places.database) as records:
        report = check_store(places.store, records)
        assert (report.problems, report.leftovers) == ((), ())
    assert check_repository(places.repositories / "site_1.git", is_whole=True).is_sound


@pytest.mark.timeout(300)
def test_repository_that_is_repacked_while_it_is_copied_is_looked_at_again(
    make_small, scratch: Path
) -> None:
    small = make_small(scratch / "small")
    bare = small.repositories.path("site_1")
    for number in range(2):  # its pack goes between any two openings of it
        small.push(f"before {number}")
        git("repack", "-adq", cwd=bare)
        (pack,) = (bare / "objects" / "pack").glob("*.pack")
        with stopped(small, scratch / "trace", pack, number + 1):
            tip = small.push(f"after {number}")
            git("repack", "-adfq", cwd=bare)
            assert not pack.exists()
        found = verify(small.destination, is_deep=True)
        assert [item.faults for item in found] == [()] * (number + 1)
        small.restore(scratch / f"new{number}/data")
        again = Repositories(scratch / f"new{number}/data/repos")
        assert again.branches("site_1")["main"] in (tip, git("rev-parse", "HEAD^", cwd=small.work))
    small.close()


@contextlib.contextmanager
def stopped(small, trace: Path, path: Path, number: int) -> Iterator[None]:
    """Have a backup made by a process that stands still once it opened a file so many times."""
    root = small.places.root.parent
    faults = ("-e", "trace=openat", "-e", f"inject=openat:signal=SIGSTOP:when={number}")
    command = ["strace", "-f", "-qq", "-o", trace, "-P", path, *faults]
    command += [sys.executable, str(CHILD), str(root), "take"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    trace.unlink(missing_ok=True)
    with subprocess.Popen(command, env=environ) as backup:
        while not (found := STOPPED.search(trace.read_text() if trace.exists() else "")):
            assert backup.poll() is None, "it ended without a stop"
            time.sleep(0.01)
        try:
            yield
        finally:
            os.kill(int(found[1]), signal.SIGCONT)
        assert backup.wait() == 0


def test_contents_that_a_killed_backup_named_are_durable_before_the_next_one_counts(
    before: Path, scratch: Path
) -> None:
    small, trace = scratch / "small", scratch / "trace"
    shutil.copytree(before, small, symlinks=True)
    # Its second name: the first one was given, and no folder synced.
    assert child(small, "take").attempt(trace, ("rename", 2), "signal=SIGKILL").is_reached
    again = child(small, "take").run(trace, "-e", "trace=rename,fsync,syncfs")
    assert again.returncode == 0, again.stdout
    calls = trace.read_text().splitlines()
    (counts,) = [n for n, call in enumerate(calls) if "/backups/backups/" in call]
    # Everything after the last name in the pool, which the syncs of the killed one had no part in.
    last = max(n for n, call in enumerate(calls) if "/backups/pool/" in call)
    assert any("syncfs(" in call for call in calls[last:counts])


def test_backup_that_is_listed_keeps_its_contents_though_its_name_finds_no_room(
    before: Path, scratch: Path
) -> None:
    small = scratch / "small"
    copy(before, small, "take")
    fault = "inject=fsync:error=ENOSPC:when=1"  # the first sync of that folder: of the new name
    words = ("-P", str(small / "backups" / "backups"), "-e", "trace=fsync", "-e", fault)
    done = child(small, "take").run(scratch / "trace", *words)
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "StorageFullError")
    assert len(Destination(small / "backups").names()) == 2
    expect_backups(small, is_done=False)


def test_names_of_a_new_folder_of_backups_are_durable_before_a_backup_counts(
    before: Path, scratch: Path
) -> None:
    small, trace = scratch / "small", scratch / "trace"
    copy(before, small, "take")
    shutil.rmtree(small / "backups")
    done = child(small, "take").run(trace, "-y", "-e", "trace=?mkdir,?mkdirat,fsync,?rename")
    assert done.returncode == 0, done.stdout
    calls = trace.read_text().splitlines()
    (counts,) = [n for n, call in enumerate(calls) if "rename" in call and "/backups/2" in call]
    for path in (small / "backups", small / "backups/backups", small / "backups/pool"):
        made = next(n for n, call in enumerate(calls) if "mkdir" in call and f'"{path}"' in call)
        synced = [
            n for n, call in enumerate(calls) if "fsync(" in call and f"<{path.parent}>" in call
        ]
        assert [n for n in synced if made < n < counts], path


def test_nothing_that_a_disk_refused_has_its_name_when_the_pool_is_mended_after_that(
    make_small, scratch: Path
) -> None:
    """The kernel tells of it once: whoever syncs again hears that all is well."""
    small, trace = scratch / "small", scratch / "trace"
    made = make_small(small)
    made.ingest({"two": b"two"}, "build_2")
    made.back_up(with_keys=True)
    for path in (made.store.layout.root / "trees").glob("*/*"):  # each has what came before synced
        content = Path(made.destination.content(Digest.of(path.read_bytes())))
        content.chmod(0o600)
        content.write_bytes(b"rotten")
    made.ingest({"new": b"new"}, "build_3")
    made.close()
    shutil.copytree(small, scratch / "count", symlinks=True)
    counted = child(scratch / "count", "take").run(trace, "-y", "-e", "trace=fsync")
    assert counted.returncode == 0, counted.stdout
    calls = [line for line in trace.read_text().splitlines() if "fsync(" in line]
    first = next(n for n, call in enumerate(calls) if re.search(r"/tmp/[^/]+/\d+>", call))
    named = set(made.destination.pool.glob("*/*"))
    done = child(small, "take").run(
        trace, "-e", "trace=fsync", "-e", f"inject=fsync:error=EIO:when={first + 1}"
    )
    assert set(made.destination.pool.glob("*/*")) == named
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "StorageIoError"), done.stdout
    assert child(small, "take").run(trace, "-e", "trace=fsync").returncode == 0
    assert [item.faults for item in verify(made.destination, is_deep=True)] == [(), ()]


@pytest.mark.parametrize("call", ["openat", "read"])
def test_file_that_its_disk_does_not_give_stops_no_backup_of_the_rest(
    before: Path, scratch: Path, call: str
) -> None:
    small = scratch / "small"
    copy(before, small, "take")
    new = Digest.of(b"new").hex()
    blob = small / "data/store/blobs" / new[:2] / new[2:]
    fault = f"inject={call}:error=EIO"
    done = child(small, "take").run(
        scratch / "trace", "-P", blob, "-e", f"trace={call}", "-e", fault
    )
    assert done.returncode == 0, done.stdout
    first, last = verify(Destination(small / "backups"), is_deep=True)
    assert (first.faults, last.faults) == ((), ())
    assert (first.facts.damaged, last.facts.damaged) == (0, 1)


def test_statement_is_read_once_so_that_what_is_checked_is_what_is_kept(
    before: Path, scratch: Path
) -> None:
    small, trace = scratch / "small", scratch / "trace"
    copy(before, small, "take")
    statements = [str(path) for path in (small / "data/store/attest").glob("*/*")]
    assert len(statements) == 2
    assert child(small, "take").run(trace, "-e", "trace=openat").returncode == 0
    text = trace.read_text()
    assert [text.count(f'"{path}"') for path in statements] == [1, 1]


@pytest.mark.parametrize("call", ["openat", "read", "getdents64"])
def test_job_log_that_its_disk_does_not_give_stops_no_backup_of_the_rest(
    before: Path, scratch: Path, call: str
) -> None:
    """Nor does a folder of them. What the backup before has of it is handed on."""
    small = scratch / "small"
    copy(before, small, "take")
    (log,) = (small / "data/joblogs").glob("*/*")
    old = log.read_bytes()
    with log.open("ab") as file:
        file.write(b"{}\n")
    path = log.parent if call == "getdents64" else log
    words = ("-P", path, "-e", f"trace={call}", "-e", f"inject={call}:error=EIO")
    done = child(small, "take").run(scratch / "trace", *words)
    assert done.returncode == 0, done.stdout
    assert "INJECTED" in (scratch / "trace").read_text()
    first, last = verify(Destination(small / "backups"), is_deep=True)
    assert (first.faults, last.faults) == ((), ())
    assert (first.facts.damaged, last.facts.damaged) == (0, 1)
    restore(Destination(small / "backups"), Places(small / "new/data"), KeyPlan({}))
    expect_whole(small / "new")
    assert (small / "new/data" / log.relative_to(small / "data")).read_bytes() == old


@pytest.mark.parametrize("what", ["take", "restore"])
def test_folder_of_backups_that_has_no_locks_is_said(
    before: Path, scratch: Path, what: str
) -> None:
    small = scratch / "small"
    copy(before, small, what)
    lock = small / "backups" / "lock"
    fault = "inject=flock:error=ENOLCK:when=1"
    done = child(small, what).run(scratch / "trace", "-P", lock, "-e", "trace=flock", "-e", fault)
    assert done.returncode == 3, done.stdout
    assert done.stdout == f"StorageIoError: lock {lock}: [Errno 37] No locks available\n"
    EXPECT[what](small, is_done=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["take", "restore"])
def test_all_or_nothing_at_some_system_calls(before: Path, scratch: Path, what: str) -> None:
    every = points(before, scratch, what)
    assert len(every) > 50
    for how, where in zip(HOWS, some(every, len(HOWS)), strict=True):
        crash(before, scratch, what, where, how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", ["take", "restore"])
@pytest.mark.parametrize("how", HOWS)
def test_all_or_nothing_at_every_system_call(
    before: Path, scratch: Path, what: str, how: str
) -> None:
    every = share(points(before, scratch, what))
    reached = sum(crash(before, scratch, what, where, how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
