"""Recovery beside commits in doubt: they failed, and the database may find them in its log yet."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import Collector, Order
from storage.digest import Digest
from storage.errors import RecordsError, StorageIoError
from storage.files import Lease, Remover
from storage.gate import Gate
from storage.leftovers import remove_leftovers
from storage.manifest import FileEntry, Manifest
from storage.recovery import Recovered, Recovery
from storage.source import Limits
from tests.crashing import Child, needs_strace
from tests.storage.conftest import KEEP_NOTHING, Shop, files, make_shop, record
from tests.storage.ingest_child import TREE
from tests.waiting import WAIT_S, wait_for, waiters_of

SHARED = {"x": b"shared"}
OWN = {"x": b"shared", "y": b"its own"}


def digest_of(folder: Path, tree: dict[str, bytes]) -> Digest:
    other = make_shop(folder)
    try:
        return other.ingest(tree).digest
    finally:
        other.records.close()


def test_ingest_that_cleans_up_takes_nothing_that_a_commit_in_doubt_brings_back(
    shop, tmp_path: Path
) -> None:
    """One waits at the gate to remove what it placed; the commit of another, of the same content,
    fails meanwhile.
    """
    store, gate = shop.store, shop.store.layout.gate
    is_committing, failed = threading.Event(), []
    # Where the manifest of the second one belongs is no folder: it places its blobs, and ends.
    shard = Path(store.layout.tree(digest_of(tmp_path / "other", OWN))).parent
    shard.rmdir()
    shard.write_bytes(b"")

    def commit_in_doubt(db: sqlite3.Connection, ingested) -> None:
        record(db, ingested, "build_1")
        db.execute("PRAGMA defer_foreign_keys=ON")  # so that it is the commit that fails
        db.execute("UPDATE attestation SET artifact_id = 'art_of_nobody'")
        is_committing.set()
        wait_for(lambda: waiters_of(gate))

    def take_in(tree: dict[str, bytes], change) -> None:
        attest = lambda manifest: shop.attest(manifest, "build_1")  # noqa: E731
        try:
            store.ingest(files(tree), limits=Limits(), attest=attest, record=change)
        except (RecordsError, StorageIoError) as error:
            failed.append(error)

    first = threading.Thread(target=take_in, args=(SHARED, commit_in_doubt))
    first.start()
    assert is_committing.wait(WAIT_S)
    take_in(OWN, lambda db, ingested: None)
    first.join()
    codes = [getattr(error, "code", None) for error in failed]
    assert sorted(map(str, codes)) == sorted([str(None), str(errno.ENOTDIR)])
    assert shop.blob(b"shared").exists()
    assert len(os.listdir(store.layout.tmp)) == 2  # noqa: PTH208 - names alone
    shard.unlink()
    shard.mkdir()
    shop.records.close()
    again = make_shop(shop.folder)
    assert again.store.recover().leases == 2
    assert check_store(again.store.layout.root, again.records).leftovers == ()
    again.records.close()


def ingest_in_doubt(folder: Path, scratch: Path, number: int) -> None:
    """Another process takes `TREE` in, and fails at a sync of the database: the one of that number
    of each thread's. Its commit is the first or second of its thread.
    """
    child = Child(Path(__file__).with_name("ingest_child.py"), (str(folder),))
    child.fail(scratch / "trace", ("fdatasync", number), "error=EIO")


def problems_after_a_cut(shop_at, folder: Path, scratch: Path) -> tuple[object, ...]:
    """What a power cut leaves: all that processes shared is gone."""
    cut = scratch / "cut"
    shutil.copytree(folder, cut, ignore=shutil.ignore_patterns("*-shm"))
    after = shop_at(cut)
    problems = check_store(cut / "store", after.records).problems
    after.records.close()
    shutil.rmtree(cut)
    return problems


class Cut(Remover):
    """Removes files, and notes the problems that a power cut would leave after each."""

    def __init__(self, look: Callable[[], Iterable[object]], problems: list[object]) -> None:
        super().__init__()
        self._look = look
        self._problems = problems

    def remove(self, path: str) -> bool:
        is_gone = super().remove(path)
        self._problems += self._look()
        return is_gone


def fill_with_the_tree(folder: Path) -> Shop:
    """A shop that has the artifact of `TREE`, which the other process takes in again."""
    made = make_shop(folder)
    made.ingest({"b/run*" if name == "b/run" else name: data for name, data in TREE.items()})
    return made


@needs_strace
@pytest.mark.timeout(300)
def test_start_beside_an_open_database_takes_nothing_that_comes_back(
    shop_at, scratch: Path
) -> None:
    """Where another process has the database open, its log is not read anew: a commit that failed
    is not seen, and stays in the log, whole, until a power cut.
    """
    made = make_shop(scratch / "before")
    made.pin(made.ingest({"a": b"a"}))
    made.records.close()
    in_doubt = 0
    for number in range(1, 5):
        folder = scratch / "shop"
        shutil.copytree(scratch / "before", folder)
        opened = shop_at(folder)
        opened.records.reader().execute("SELECT 1 FROM tree").fetchall()
        ingest_in_doubt(folder, scratch, number)
        in_doubt += opened.store.recover().files > 0
        assert problems_after_a_cut(shop_at, folder, scratch) == ()
        opened.records.close()
        shutil.rmtree(folder)
    assert in_doubt


@needs_strace
@pytest.mark.timeout(300)
def test_leftovers_of_a_commit_that_fails_while_they_are_looked_for_bring_no_row_back(
    shop_at, scratch: Path
) -> None:
    make_shop(scratch / "before").records.close()
    removed = 0
    for number in range(1, 5):
        folder = scratch / "shop"
        shutil.copytree(scratch / "before", folder)
        opened = shop_at(folder)
        layout, records = opened.store.layout, opened.records
        records.settle()
        opened.store.recover()
        ingest_in_doubt(folder, scratch, number)
        removed += remove_leftovers(
            layout, records, Gate(layout), Remover(), is_stopped=lambda: False
        ).files
        assert problems_after_a_cut(shop_at, folder, scratch) == ()
        records.close()
        shutil.rmtree(folder)
    assert removed


@needs_strace
@pytest.mark.timeout(300)
def test_tree_that_a_commit_in_doubt_took_in_again_is_forgotten_for_good(
    shop_at, scratch: Path
) -> None:
    """While a collector is about to remove its manifest, and then loses its power."""
    fill_with_the_tree(scratch / "before").records.close()
    problems: list[object] = []

    class Doubted(Collector):
        number = 0

        def _unlink_trees(self, cycle, digests) -> None:
            ingest_in_doubt(folder, scratch, self.number)
            self._remover = Cut(look, problems)
            super()._unlink_trees(cycle, digests)
            removed.append(self._remover.count)

    removed: list[int] = []
    folder = scratch / "shop"
    look = partial(problems_after_a_cut, shop_at, folder, scratch)
    for number in range(1, 5):
        shutil.copytree(scratch / "before", folder)
        opened = shop_at(folder)
        Doubted.number = number
        Doubted(opened.store, opened.records, KEEP_NOTHING).run(Order(is_hurried=True))
        assert problems == []
        opened.records.close()
        shutil.rmtree(folder)
    assert any(removed)


@needs_strace
@pytest.mark.timeout(300)
def test_blob_that_a_commit_in_doubt_took_in_again_is_forgotten_for_good(
    shop_at, scratch: Path
) -> None:
    """While a start is about to finish its deletion, and then loses its power."""
    made = fill_with_the_tree(scratch / "before")
    for change in (
        "UPDATE artifact SET expired_at = 1, dropped_at = 1",
        "DELETE FROM ref",
        "DELETE FROM tree",
        "UPDATE blob SET state = 2",
    ):
        made.records.write(lambda db, change=change: db.execute(change))
    made.records.close()
    problems: list[object] = []

    class Doubted(Recovery):
        number = 0

        def _finish_deletions(self, remover: Remover) -> int:
            ingest_in_doubt(folder, scratch, self.number)
            return super()._finish_deletions(Cut(look, problems))

    finished = 0
    folder = scratch / "shop"
    look = partial(problems_after_a_cut, shop_at, folder, scratch)
    for number in range(1, 5):
        shutil.copytree(scratch / "before", folder)
        opened = shop_at(folder)
        layout = opened.store.layout
        Doubted.number = number
        finished += Doubted(layout, opened.records, Gate(layout)).recover().deletions
        assert problems == []
        opened.records.close()
        shutil.rmtree(folder)
    assert finished


def test_dead_ingest_that_cannot_be_read_is_left_to_the_next_start(world, shop) -> None:
    """What it was about to publish may be in its place, and is known by nothing else."""
    manifest = Manifest.of([FileEntry(b"a", False, 1, Digest.of(b"a"))])
    lease = Lease.take(shop.store.layout.tmp)
    os.close(lease.fd)
    Path(lease.path, "manifest").mkdir()  # as a disk that cannot read it, the system refuses
    shop.blob(b"a").write_bytes(b"a")
    recovered = shop.store.recover()
    assert (recovered.files, [line.split(": ")[0] for line in recovered.stuck]) == (0, [lease.path])
    Path(lease.path, "manifest").rmdir()
    Path(lease.path, "manifest").write_bytes(manifest.data)
    assert shop.store.recover() == Recovered(leases=1, files=1, deletions=0)
    world.expect_whole()
