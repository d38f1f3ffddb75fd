"""Crashes: a real process, killed or failed at system calls of an ingest or a collection.

After each: whatever was acknowledged is whole, nothing half is visible, a start removes the
rubbish, and doing it again works.
"""

from __future__ import annotations

import collections
import importlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from storage.check import check_store
from storage.collect import Collector, Order
from storage.digest import Digest
from storage.layout import blob_mtime
from storage.materialise import remove_partials, verify_tree

CHILD = Path(__file__).with_name("ingest_child.py")
COLLECT_CHILD = CHILD.with_name("collect_child.py")
CALLS = (
    *("write", "pwrite64", "ftruncate", "fchmod", "utimensat", "mkdir", "rename", "link"),
    *("unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "syncfs", "flock", "statvfs"),
)
BEFORE = {"f": b"before", "a/shared": b"one" * 50}
BRIEF_COUNT = 8

pytestmark = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode
    != 0,
    reason="strace cannot trace here",
)


def helpers() -> ModuleType:
    """What the fixtures are made by; for those that live longer than a test."""
    sys.path.insert(0, str(CHILD.parent))
    try:
        return importlib.import_module("conftest")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def before() -> Iterator[Path]:
    """A shop with one artifact in it, to be copied for each crash."""
    with tempfile.TemporaryDirectory() as folder:
        shop = helpers().make_shop(Path(folder) / "shop")
        shop.pin(shop.ingest(BEFORE))
        shop.records.close()
        yield Path(folder) / "shop"


def run(
    shop: Path, *strace: str, child: Path = CHILD, said: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    trace = shop.parent / "trace"
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", trace, *strace, sys.executable, child, shop, *said],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def points(
    before: Path, tmp_path: Path, *, child: Path = CHILD, said: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Every system call that changes something, each time that it is made."""
    shutil.copytree(before, tmp_path / "count", symlinks=True)
    names = ",".join(f"?{name}" for name in CALLS)
    counted = run(tmp_path / "count", "-e", f"trace={names}", child=child, said=said)
    assert counted.returncode == 0, counted.stdout + counted.stderr
    shutil.rmtree(tmp_path / "count")
    made: collections.Counter[str] = collections.Counter()
    for line in (tmp_path / "trace").read_text().splitlines():
        words = line.split(maxsplit=1)
        if len(words) == 2 and "(" in words[1] and not words[1].startswith(("<", "+", "-")):
            made[words[1].partition("(")[0]] += 1
    return [(name, n) for name in CALLS for n in range(1, made[name] + 1)]


def expect_whole(shop_at, shop: Path, *, recovers: bool) -> None:
    opened = shop_at(shop)
    if recovers:
        opened.store.recover()
    report = check_store(shop / "store", opened.records)
    assert (report.problems, report.leftovers) == ((), ())
    assert list(opened.store.layout.tmp.iterdir()) == []
    assert opened.records.reader().execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    rows = opened.records.reader().execute(
        "SELECT envelope_sha256, digest FROM attestation JOIN artifact"
        " ON artifact.id = attestation.artifact_id"
    )
    found = rows.fetchall()
    assert len(found) in (1, 2)
    for number, row in enumerate(found):
        verified = opened.reader.verify(Digest.parse(row["digest"]), row["envelope_sha256"])
        opened.reader.materialise(verified, shop / f"release{number}")
        verify_tree(shop / f"release{number}", verified.manifest)


def expect_repeatable(shop_at, shop: Path) -> None:
    opened = shop_at(shop)
    opened.builds = iter([2000])
    opened.ingest({"a/page.html": b"two" * 50, "f": b"before", "more/1": b"1", "c": b"c"})
    report = check_store(shop / "store", opened.records)
    assert (report.problems, report.leftovers) == ((), ())


def crash(
    shop_at: Callable[[Path], object],
    before: Path,
    folder: Path,
    where: tuple[str, int],
    *,
    how: str,
    count: int,
) -> bool:
    """Crash an ingest once; return whether the point was reached."""
    shop = folder / "shop"
    shutil.copytree(before, shop, symlinks=True)
    reached = inject(shop, where, how, said=[str(count)])
    expect_whole(shop_at, shop, recovers=True)
    expect_repeatable(shop_at, shop)
    shutil.rmtree(shop)
    return reached


def inject(
    shop: Path, where: tuple[str, int], how: str, *, child: Path = CHILD, said: Sequence[str] = ()
) -> bool:
    """Run a child that fails at one point; return whether it came there."""
    call, number = where
    strace = ["-e", f"trace=?{call}", "-e", f"inject=?{call}:{how}:when={number}"]
    done = run(shop, *strace, child=child, said=said)
    trace = (shop.parent / "trace").read_text()
    if how.startswith("signal"):
        reached = "killed by SIGKILL" in trace
        assert reached == (done.returncode != 0), done.stderr
        return reached
    # Either the store said what failed, or it could do without that call.
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return "INJECTED" in trace


HOWS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_ingest_is_whole_or_nothing_at_some_system_calls(
    shop_at, before: Path, tmp_path: Path, how: str
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    pick = random.Random(seed)
    every = points(before, tmp_path, said=["0"])
    assert len(every) > 50
    for where in pick.sample(every, BRIEF_COUNT):
        crash(shop_at, before, tmp_path, where, how=how, count=0)


@pytest.mark.timeout(300)
def test_commit_that_failed_is_left_to_the_next_start(
    shop_at, before: Path, tmp_path: Path
) -> None:
    # The database says "disk I/O error", and finds the commit in its log when it is opened again.
    syncs = [where for where in points(before, tmp_path, said=["0"]) if where[0] == "fdatasync"]
    assert syncs
    for where in syncs:
        crash(shop_at, before, tmp_path, where, how="error=EIO", count=0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("how", HOWS)
def test_unpacking_is_whole_or_nothing_at_some_system_calls(
    shop, tmp_path: Path, how: str, count: int
) -> None:
    ingested = shop.ingest({f"d/f{n}": b"%d" % n for n in range(count)})
    verified = shop.verify(ingested)
    folder = tmp_path / "releases"
    trace = tmp_path / "trace"
    child = [sys.executable, CHILD.with_name("unpack_child.py"), shop.folder / "store"]
    child += [str(ingested.digest), ingested.envelope_sha256, folder / "r1"]
    seed = random.randrange(10**6)
    print("seed", seed)
    pick = random.Random(seed)
    wheres = [("rename", 1), ("syncfs", 1), ("fsync", 1)]
    wheres += [(pick.choice(["write", "mkdir", "fchmod", "utimensat"]), 1 + pick.randrange(3))]
    for call, number in wheres:
        folder.mkdir()
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:{how}:when={number}"]
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", trace, *inject, *child], capture_output=True
        )
        assert done.returncode in (0, 3, -9, 137), done.stderr
        if done.returncode == 0 or (folder / "r1").exists():
            verify_tree(folder / "r1", verified.manifest)
        if done.returncode == 3:
            assert list(folder.iterdir()) == []
        remove_partials(folder)
        assert [p.name for p in folder.iterdir() if p.name != "r1"] == []
        shutil.rmtree(folder)


# -- collecting --------------------------------------------------------------------------------

KEPT = {"a/shared": b"one" * 50, "kept": b"kept"}


@pytest.fixture(scope="module")
def garbage() -> Iterator[Path]:
    """A shop with one artifact that is kept, and much to collect, of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        shop = helpers().make_shop(Path(folder) / "shop")
        shop.ingest({"a/shared": b"one" * 50, "x*": b"x", "y": b"y"})
        shop.ingest({"x*": b"x", "z": b"z"})
        shop.pin(shop.ingest(KEPT))
        shop.keep_tree({"cache": b"cache", "kept": b"kept"})
        shop.blob(b"left").write_bytes(b"left")
        digest = Digest.of(b"loose")
        shop.blob(b"loose").write_bytes(b"loose")
        shop.blob(b"loose").chmod(0o444)
        os.utime(shop.blob(b"loose"), (blob_mtime(digest), blob_mtime(digest)))
        shop.records.write(
            lambda db: db.execute(
                "INSERT INTO blob(key, size_bytes) VALUES(?, 5)", (digest + b"f",)
            )
        )
        shop.records.close()
        yield Path(folder) / "shop"


def crash_collecting(
    shop_at, garbage: Path, folder: Path, where: tuple[str, int], *, how: str
) -> bool:
    """Crash a collection once; return whether the point was reached."""
    shop = folder / "shop"
    shutil.copytree(garbage, shop, symlinks=True)
    reached = inject(shop, where, how, child=COLLECT_CHILD)
    opened = shop_at(shop)
    opened.store.recover()
    # Whatever is listed is whole, from the first moment on.
    assert check_store(shop / "store", opened.records).problems == ()
    expect_kept(opened, shop)
    opened.builds = iter(range(2000, 2010))
    opened.pin(opened.ingest({"x*": b"x", "z": b"z"}))
    assert check_store(shop / "store", opened.records).problems == ()
    nothing = helpers().KEEP_NOTHING
    Collector(opened.store, opened.records, nothing).run(Order(is_hurried=True, is_thorough=True))
    report = check_store(shop / "store", opened.records)
    assert (report.problems, report.leftovers) == ((), ())
    assert (report.blobs, report.trees) == (4, 2)
    assert list(opened.store.layout.tmp.iterdir()) == []
    expect_kept(opened, shop)
    opened.records.close()
    shutil.rmtree(shop)
    return reached


def expect_kept(opened, shop: Path) -> None:
    row = (
        opened.records.reader()
        .execute(
            "SELECT envelope_sha256, digest FROM attestation JOIN artifact"
            " ON artifact.id = artifact_id JOIN artifact_pin USING(artifact_id)"
            " ORDER BY attestation.build_id"
        )
        .fetchone()
    )
    verified = opened.reader.verify(Digest.parse(row["digest"]), row["envelope_sha256"])
    opened.reader.materialise(verified, shop / "release")
    verify_tree(shop / "release", verified.manifest)
    shutil.rmtree(shop / "release")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_collecting_takes_nothing_that_is_kept_at_some_system_calls(
    shop_at, garbage: Path, tmp_path: Path, how: str
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    pick = random.Random(seed)
    every = points(garbage, tmp_path, child=COLLECT_CHILD)
    unlinks = [where for where in every if where[0] == "unlink"]
    assert len(unlinks) >= 8
    for where in [*pick.sample(unlinks, 2), *pick.sample(every, 2)]:
        crash_collecting(shop_at, garbage, tmp_path, where, how=how)


@pytest.mark.timeout(300)
def test_collecting_behind_a_commit_in_doubt_harms_nothing(
    shop_at, before: Path, tmp_path: Path
) -> None:
    # The commit of an ingest fails, and the database may find it in its log later. The same process
    # then collects: what was placed must not go as a leftover and be found missing afterwards.
    for number in range(1, 5):  # of each thread's: the commit is the first or second of its thread
        shop = tmp_path / "shop"
        shutil.copytree(before, shop, symlinks=True)
        where = ("fdatasync", number)
        inject(shop, where, "error=EIO", child=COLLECT_CHILD, said=["ingest"])
        opened = shop_at(shop)
        opened.store.recover()
        assert check_store(shop / "store", opened.records).problems == ()
        opened.records.close()
        shutil.rmtree(shop)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_collecting_takes_nothing_that_is_kept_at_every_system_call(
    shop_at, garbage: Path, tmp_path: Path, how: str
) -> None:
    every = points(garbage, tmp_path, child=COLLECT_CHILD)
    reached = sum(crash_collecting(shop_at, garbage, tmp_path, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2


# -- every one -----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [0, 20])
@pytest.mark.parametrize("how", HOWS)
def test_ingest_is_whole_or_nothing_at_every_system_call(
    shop_at, before: Path, tmp_path: Path, how: str, count: int
) -> None:
    every = points(before, tmp_path, said=[str(count)])
    reached = sum(crash(shop_at, before, tmp_path, where, how=how, count=count) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
