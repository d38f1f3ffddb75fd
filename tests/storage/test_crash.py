"""Crashes: a real process, killed or failed at system calls of an ingest, an unpacking, a
collection or a change of keys.

After each: whatever was acknowledged is whole, nothing half is visible, a start removes the
rubbish, and doing it again works.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from storage.check import check_store
from storage.collect import Collector, Order
from storage.custody import Custody
from storage.digest import Digest
from storage.envelope import IN_TOTO_TYPE, unseal
from storage.layout import blob_mtime
from storage.long_write import AHEAD_BYTES, WINDOW_BYTES
from storage.materialise import PARTIAL_MARK
from storage.trust import load_keyring
from storage.unpacked import verify_tree
from tests.crashing import HOWS, Attempt, Child, Point, needs_strace, scratch_folder, share, some
from tests.storage.trees import FEW, INGEST_CHILD, LARGE, LONG, MANY, Tree

FOLDER = Path(__file__).parent
BEFORE = {"f": b"before", "a/shared": b"one" * 50}
BRIEF_COUNT = 3

pytestmark = needs_strace


def ingesting(shop: Path, tree: Tree) -> Child:
    return Child(INGEST_CHILD, tree.words(shop))


def collecting(shop: Path, *said: str) -> Child:
    return Child(FOLDER / "collect_child.py", (str(shop), *said))


def helpers() -> ModuleType:
    """What the fixtures are made by; for those that live longer than a test."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("conftest")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def before() -> Iterator[Path]:
    """A shop with one artifact in it, to be copied for each crash."""
    with scratch_folder() as folder:
        shop = helpers().make_shop(folder / "shop")
        shop.pin(shop.ingest(BEFORE))
        shop.records.close()
        yield folder / "shop"


def points(before: Path, scratch: Path, tree: Tree) -> list[Point]:
    shutil.copytree(before, scratch / "count", symlinks=True)
    try:
        found = ingesting(scratch / "count", tree).points(scratch / "trace")
    finally:
        shutil.rmtree(scratch / "count")
    # Early, of the bytes, of the names.
    syncs = {FEW: 0, MANY: 2, LARGE: 3, LONG: 0}
    assert (scratch / "trace").read_text().count("syncfs(") == syncs[tree]
    return found


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
    opened.records.close()


def expect_repeatable(shop_at, shop: Path) -> None:
    opened = shop_at(shop)
    opened.builds = iter([2000])
    opened.ingest({"a/page.html": b"two" * 50, "f": b"before", "more/1": b"1", "c": b"c"})
    report = check_store(shop / "store", opened.records)
    assert (report.problems, report.leftovers) == ((), ())
    opened.records.close()


def crash(shop_at, before: Path, folder: Path, where: Point, *, how: str, tree: Tree) -> bool:
    """Crash an ingest once, beside an early sync if it has one; return whether the point was
    reached.
    """
    shop = folder / "shop"
    shutil.copytree(before, shop, symlinks=True)
    slow = "syncfs" if tree == LARGE else None
    reached = ingesting(shop, tree).fail(folder / "trace", where, how, slow=slow)
    expect_whole(shop_at, shop, recovers=True)
    expect_repeatable(shop_at, shop)
    shutil.rmtree(shop)
    return reached


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_ingest_is_whole_or_nothing_at_some_system_calls(
    shop_at, before: Path, scratch: Path, how: str
) -> None:
    every = points(before, scratch, FEW)
    assert len(every) > 50
    for where in some(every, BRIEF_COUNT):
        crash(shop_at, before, scratch, where, how=how, tree=FEW)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_ingest_that_syncs_early_is_whole_or_nothing_at_some_system_calls(
    shop_at, before: Path, scratch: Path, how: str
) -> None:
    every = points(before, scratch, LARGE)
    last_file = max(where for where in every if where[0] == "utimensat")
    for where in [("syncfs", 1), last_file, *some(every, 1)]:
        crash(shop_at, before, scratch, where, how=how, tree=LARGE)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_ingest_of_a_long_file_is_whole_or_nothing_at_some_system_calls(
    shop_at, before: Path, scratch: Path, how: str
) -> None:
    every = points(before, scratch, LONG)
    last_part = max(where for where in every if where[0] == "sync_file_range")
    for where in [last_part, *some(every, 2)]:
        crash(shop_at, before, scratch, where, how=how, tree=LONG)


@pytest.mark.timeout(300)
def test_commit_that_failed_is_left_to_the_next_start(shop_at, before: Path, scratch: Path) -> None:
    # The database says "disk I/O error", and finds the commit in its log when it is opened again.
    syncs = [where for where in points(before, scratch, FEW) if where[0] == "fdatasync"]
    assert syncs
    for where in syncs:
        crash(shop_at, before, scratch, where, how="error=EIO", tree=FEW)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [1, 2], ids=["of the bytes", "of the names"])
def test_sync_that_failed_is_not_tried_again(
    shop_at, before: Path, scratch: Path, number: int
) -> None:
    # The kernel may have dropped what it could not write: a second sync would say that all is well.
    shop, trace = scratch / "shop", scratch / "trace"
    shutil.copytree(before, shop, symlinks=True)
    fault = f"inject=syncfs:error=EIO:when={number}"
    done = ingesting(shop, MANY).run(trace, "-e", "trace=syncfs", "-e", fault)
    assert done.returncode == 3
    assert done.stdout.startswith("StorageIoError")
    assert trace.read_text().count("syncfs(") == number
    expect_whole(shop_at, shop, recovers=False)
    assert not (shop / "release1").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_early", [True, False], ids=["early", "last"])
def test_sync_that_failed_of_a_tree_that_syncs_early_fails_the_ingest(
    shop_at, before: Path, scratch: Path, *, is_early: bool
) -> None:
    # The kernel says so once: the last sync would say that all is well, or the early one did.
    shop, trace = scratch / "shop", scratch / "trace"
    shutil.copytree(before, shop, symlinks=True)
    fault = ("-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO:when=1")
    # The early one is made by a thread of its own.
    done = ingesting(shop, LARGE).run(trace, *fault, follows=is_early)
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "StorageIoError")
    assert trace.read_text().count("syncfs(") == 1, "it is not tried again"
    expect_whole(shop_at, shop, recovers=False)
    assert not (shop / "release1").exists()


@pytest.mark.timeout(300)
def test_sync_of_one_file_that_failed_is_not_tried_again(
    shop_at, before: Path, scratch: Path
) -> None:
    shop, trace = scratch / "shop", scratch / "trace"
    shutil.copytree(before, shop, symlinks=True)
    fault = "inject=fsync:error=EIO:when=1"  # of each thread
    done = ingesting(shop, FEW).run(trace, "-y", "-e", "trace=fsync", "-e", fault)
    assert done.returncode == 3
    assert done.stdout.startswith("StorageIoError")
    synced = re.findall(r"fsync\(\d+<(.*)>\) += (-?\d)", trace.read_text())
    failed = {path for path, result in synced if result == "-1"}
    assert failed
    assert [path for path, result in synced if path in failed and result != "-1"] == []
    assert len({path for path, _ in synced}) == len(synced)
    expect_whole(shop_at, shop, recovers=False)
    assert not (shop / "release1").exists()


@pytest.mark.timeout(300)
def test_part_of_a_long_file_that_could_not_be_written_fails_the_ingest(
    shop_at, before: Path, scratch: Path
) -> None:
    # The kernel says so once: what syncs the file in the end would not be told.
    shop, trace = scratch / "shop", scratch / "trace"
    shutil.copytree(before, shop, symlinks=True)
    waits = AHEAD_BYTES // WINDOW_BYTES + 2  # the first of the calls that waits for the disk
    fault = f"inject=sync_file_range:error=EIO:when={waits}"
    done = ingesting(shop, LONG).run(trace, "-e", "trace=sync_file_range,fsync", "-e", fault)
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "StorageIoError")
    assert "fsync" not in trace.read_text(), "nothing is synced after it"
    expect_whole(shop_at, shop, recovers=False)
    assert not (shop / "release1").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("refusal", ["ENOSYS", "EPERM"])
def test_long_file_is_taken_in_where_no_part_of_it_can_be_waited_for(
    shop_at, before: Path, scratch: Path, refusal: str
) -> None:
    shop = scratch / "shop"
    shutil.copytree(before, shop, symlinks=True)
    fault = f"inject=sync_file_range:error={refusal}"
    done = ingesting(shop, LONG).run(scratch / "trace", "-e", "trace=sync_file_range", "-e", fault)
    assert done.returncode == 0, done.stdout
    assert refusal in (scratch / "trace").read_text()
    expect_whole(shop_at, shop, recovers=False)


@pytest.mark.timeout(300)
def test_quota_of_the_filesystem_is_a_full_disk(shop_at, before: Path, scratch: Path) -> None:
    shop = scratch / "shop"
    shutil.copytree(before, shop, symlinks=True)
    faults = ("-e", "trace=fchmod", "-e", "inject=fchmod:error=EDQUOT:when=2")
    done = ingesting(shop, FEW).run(scratch / "trace", *faults)
    assert done.stdout.startswith("StorageFullError")
    expect_whole(shop_at, shop, recovers=False)


# -- unpacking ---------------------------------------------------------------------------------


class Unpacking:
    """A release that is unpacked as the first one, or beside the one before."""

    def __init__(self, shop, folder: Path, count: int, *, is_beside: bool) -> None:
        same = {f"d/f{n}": b"%d" % n for n in range(count)}
        one = shop.verify(shop.ingest({**same, "page": b"one", "run*": b"#!"}))
        two = shop.verify(shop.ingest({**same, "page": b"two", "run*": b"#!", "empty": b""}))
        self.releases = folder / "releases"
        self.releases.mkdir()
        self.verified = two
        self._reader = shop.reader
        shop.reader.materialise(one, self.releases / "r1")
        self.before = one
        words = [shop.folder / "store", two.digest, two.envelope_sha256, self.releases / "r2"]
        beside = [self.releases / "r1"] if is_beside else []
        self.child = Child(FOLDER / "unpack_child.py", tuple(map(str, words + beside)))
        self._trace = folder / "trace"

    def points(self) -> list[Point]:
        found = self.child.points(self._trace)
        shutil.rmtree(self.releases / "r2")
        return found

    def attempt(self, where: Point, how: str) -> Attempt:
        return self.child.attempt(self._trace, where, how)

    def crash(self, where: Point, how: str) -> bool:
        reached = self.attempt(where, how).is_reached
        if (self.releases / "r2").exists():
            verify_tree(self.releases / "r2", self.verified.manifest)
        if how.startswith("error"):
            assert {path.name for path in self.releases.iterdir()} <= {"r1", "r2"}
        self.expect_repeatable()
        return reached

    def expect_repeatable(self) -> None:
        shutil.rmtree(self.releases / "r2", ignore_errors=True)
        for path in self.releases.glob(f"*{PARTIAL_MARK}*"):
            shutil.rmtree(path)
        assert [path.name for path in self.releases.iterdir()] == ["r1"]
        verify_tree(self.releases / "r1", self.before.manifest)
        self._reader.materialise(self.verified, self.releases / "r2")
        verify_tree(self.releases / "r2", self.verified.manifest)
        shutil.rmtree(self.releases / "r2")


BESIDE = pytest.mark.parametrize("is_beside", [False, True], ids=["first", "beside"])


@BESIDE
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_unpacking_is_whole_or_nothing_at_some_system_calls(
    shop, scratch: Path, *, how: str, is_beside: bool
) -> None:
    unpacking = Unpacking(shop, scratch, 3, is_beside=is_beside)
    every = unpacking.points()
    assert len(every) > 12
    assert sum(unpacking.crash(where, how) for where in some(every, 2))


@BESIDE
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("how", HOWS)
def test_unpacking_is_whole_or_nothing_at_every_system_call(
    shop, scratch: Path, *, how: str, count: int, is_beside: bool
) -> None:
    unpacking = Unpacking(shop, scratch, count, is_beside=is_beside)
    every = share(unpacking.points())
    reached = sum(unpacking.crash(where, how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("code", [errno.EMLINK, errno.EXDEV, errno.EPERM])
def test_file_that_cannot_be_linked_is_copied(shop, scratch: Path, code: int) -> None:
    # Too many links to it, another filesystem, or not ours.
    unpacking = Unpacking(shop, scratch, 3, is_beside=True)
    fault = f"inject=linkat:error={errno.errorcode[code]}"
    done = unpacking.child.run(scratch / "trace", "-e", "trace=linkat", "-e", fault)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (scratch / "trace").read_text().count("INJECTED") == 5
    verify_tree(unpacking.releases / "r2", unpacking.verified.manifest)
    assert (unpacking.releases / "r2/d/f1").stat().st_nlink == 1


@pytest.mark.timeout(300)
def test_part_of_a_long_file_that_could_not_be_written_fails_the_unpacking(
    shop, scratch: Path
) -> None:
    ingested = shop.ingest({"long": bytes(AHEAD_BYTES + 2 * WINDOW_BYTES)})
    release = scratch / "release"
    words = (shop.folder / "store", ingested.digest, ingested.envelope_sha256, release)
    waits = AHEAD_BYTES // WINDOW_BYTES + 2
    fault = f"inject=sync_file_range:error=EIO:when={waits}"
    child = Child(FOLDER / "unpack_child.py", tuple(map(str, words)))
    done = child.run(scratch / "trace", "-e", "trace=sync_file_range", "-e", fault)
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "StorageIoError")
    assert not release.exists()


# Not links to files: where none can be made, the file is.
NAMES = ("mkdir", "mkdirat", "openat", "symlink", "symlinkat")


@BESIDE
@pytest.mark.timeout(300)
def test_name_that_is_one_with_another_on_the_disk_stops_the_unpacking(
    shop, scratch: Path, *, is_beside: bool
) -> None:
    # As a disk that folds names says it, which not every kernel has.
    unpacking = Unpacking(shop, scratch, 1, is_beside=is_beside)
    given = [where for where in unpacking.points() if where[0] in NAMES]
    assert len(given) >= 4
    for where in given:
        assert not unpacking.attempt(where, "error=EEXIST").is_done, where
        assert [path.name for path in unpacking.releases.iterdir()] == ["r1"]
        verify_tree(unpacking.releases / "r1", unpacking.before.manifest)


# -- collecting --------------------------------------------------------------------------------

KEPT = {"a/shared": b"one" * 50, "kept": b"kept"}


@pytest.fixture(scope="module")
def garbage() -> Iterator[Path]:
    """A shop with one artifact that is kept, and much to collect, of each kind."""
    with scratch_folder() as folder:
        shop = helpers().make_shop(folder / "shop")
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
        yield folder / "shop"


def points_of_collecting(garbage: Path, scratch: Path) -> list[Point]:
    shutil.copytree(garbage, scratch / "count", symlinks=True)
    try:
        return collecting(scratch / "count").points(scratch / "trace")
    finally:
        shutil.rmtree(scratch / "count")


def crash_collecting(shop_at, garbage: Path, folder: Path, where: Point, *, how: str) -> bool:
    """Crash a collection once; return whether the point was reached."""
    shop = folder / "shop"
    shutil.copytree(garbage, shop, symlinks=True)
    reached = collecting(shop).fail(folder / "trace", where, how)
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
    shop_at, garbage: Path, scratch: Path, how: str
) -> None:
    every = points_of_collecting(garbage, scratch)
    unlinks = [where for where in every if where[0] == "unlink"]
    assert len(unlinks) >= 8
    for where in [*some(unlinks, 2), *some(every, 2)]:
        crash_collecting(shop_at, garbage, scratch, where, how=how)


@pytest.mark.timeout(300)
def test_collecting_behind_a_commit_in_doubt_harms_nothing(
    shop_at, before: Path, scratch: Path
) -> None:
    # The commit of an ingest fails, and the database may find it in its log later. The same process
    # then collects: what was placed must not go as a leftover and be found missing afterwards.
    for number in range(1, 5):  # of each thread's: the commit is the first or second of its thread
        shop = scratch / "shop"
        shutil.copytree(before, shop, symlinks=True)
        where = ("fdatasync", number)
        collecting(shop, "ingest").fail(scratch / "trace", where, "error=EIO")
        opened = shop_at(shop)
        opened.store.recover()
        assert check_store(shop / "store", opened.records).problems == ()
        opened.records.close()
        shutil.rmtree(shop)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_collecting_takes_nothing_that_is_kept_at_every_system_call(
    shop_at, garbage: Path, scratch: Path, how: str
) -> None:
    every = share(points_of_collecting(garbage, scratch))
    reached = sum(crash_collecting(shop_at, garbage, scratch, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2


# -- changing keys -----------------------------------------------------------------------------


class Rotation:
    """A server's keys, which a child replaces; each time from the same state."""

    def __init__(self, folder: Path) -> None:
        self._first, self._folder = folder / "first", folder / "now"
        self._trace = folder / "trace"
        for name in ("keys", "trust"):
            (self._first / name).mkdir(parents=True)
        server = Custody(self._first / "keys")
        server.open(self._first / "trust")
        self._old = server.signing_key().key_id

    def begin(self) -> Child:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._first, self._folder)
        words = (str(self._folder / "keys"), str(self._folder / "trust"))
        return Child(FOLDER / "rotate_child.py", words)

    def points(self) -> list[Point]:
        return self.begin().points(self._trace)

    def crash(self, where: Point, how: str) -> bool:
        reached = self.begin().fail(self._trace, where, how)
        keys, trust = self._folder / "keys", self._folder / "trust"
        # The server that runs: what it signs now holds. The next start, too.
        running = Custody(keys)
        self.expect_held(running, trust)
        server = Custody(keys)
        server.open(trust)
        self.expect_held(server, trust)
        new = server.rotate(trust).key_id
        self.expect_held(server, trust)
        ring = load_keyring(trust, root_key_ids=server.root_key_ids())
        assert [name for name, key in ring.keys.items() if key.is_active] == [new]
        # No private key but those two is left, wherever it was broken off.
        names = {path.name for path in keys.iterdir()}
        assert names == {"signing.key", "root.key", "root.pub", "lock"}
        numbers = range(1, ring.version + 1)
        assert {path.name for path in trust.iterdir()} == {f"root.{n}.json" for n in numbers}
        return reached

    def expect_held(self, custody: Custody, trust: Path) -> None:
        ring = load_keyring(trust, root_key_ids=custody.root_key_ids())
        sealed = custody.seal(b"{}")
        assert unseal(sealed.data, payload_type=IN_TOTO_TYPE, public_key=ring.provenance_key)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_keys_are_the_old_or_the_new_ones_at_some_system_calls(scratch: Path, how: str) -> None:
    rotation = Rotation(scratch)
    every = rotation.points()
    unlinks = [where for where in every if where[0] == "unlink"]
    assert len(every) > 20
    assert sum(rotation.crash(where, how) for where in [unlinks[0], *some(every, 2)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_keys_are_the_old_or_the_new_ones_at_every_system_call(scratch: Path, how: str) -> None:
    rotation = Rotation(scratch)
    every = share(rotation.points())
    reached = sum(rotation.crash(where, how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2


# -- every one -----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tree", [FEW, MANY, LARGE, LONG], ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_ingest_is_whole_or_nothing_at_every_system_call(
    shop_at, before: Path, scratch: Path, how: str, tree: Tree
) -> None:
    every = share(points(before, scratch, tree))
    reached = sum(crash(shop_at, before, scratch, where, how=how, tree=tree) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
