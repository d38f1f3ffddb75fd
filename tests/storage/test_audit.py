"""Records that were lost, damaged or replaced: the collector asks before it goes by them."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from storage.blobs import MANIFEST_NAME
from storage.check import check_store
from storage.collect import Collector, Order
from storage.copies import anything_at
from storage.digest import Digest
from storage.errors import CollectionRefusedError, StorageError
from storage.gate import Gate
from storage.leftovers import check_leftovers
from storage.records import retention
from storage.records.garbage import references
from storage.recovery import Recovered
from storage.reindex import rebuild_index
from storage.retention import Pressure
from tests.crashing import Child, needs_strace
from tests.spoiling import damage_index
from tests.storage.conftest import KEEP_NOTHING, make_shop
from tests.storage.records.test_flipped_bits import flip as flip_bit
from tests.storage.test_collect import AT_ONCE, files_of
from tests.storage.test_reindex import know_build
from tests.storage.test_repair import condemn_all, export, flip

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n"}
TWINS = {**SITE, "copy.html": b"hello"}  # as many blobs as before, and more files
FORCED = replace(AT_ONCE, is_forced=True)
QUICK = Order(is_hurried=True)


def pinned(shop, tree: dict[str, bytes]):
    ingested = shop.ingest(tree)
    shop.pin(ingested)
    return ingested


@pytest.mark.parametrize("index", ["sqlite_autoindex_blob_1", "sqlite_autoindex_tree_1"])
def test_damaged_index_of_the_database_loses_no_file(world, index: str) -> None:
    shop = world.shop
    kept = pinned(shop, SITE)
    shop.records.close()
    key = Digest.of(b"hello") + b"f" if "blob" in index else kept.digest
    damage_index(shop.folder / "gitd.db", index, key)
    world.restart()
    before = files_of(world.shop)
    collector = world.collector()
    for order in (AT_ONCE, FORCED, Order(is_hurried=True)):  # the last knows from the first
        with pytest.raises(CollectionRefusedError, match="gitd check --rebuild-index"):
            collector.run(order)
    assert files_of(world.shop) == before
    rebuild_index(world.shop.store, world.shop.records)
    assert collector.run(AT_ONCE).is_idle
    assert files_of(world.shop) == before
    world.expect_whole()


@pytest.mark.parametrize("bit", [0x01, 0x80], ids=["another", "no text"])
@pytest.mark.parametrize("index", ["sqlite_autoindex_artifact_2", "artifact_pin_of"])
def test_damaged_index_stops_a_quick_collection_that_would_go_by_it(
    world, index: str, bit: int
) -> None:
    kept = pinned(world.shop, SITE)
    world.shop.records.close()
    key = str(kept.digest) if index.startswith("sqlite") else kept.artifact_id
    damage_index(world.shop.folder / "gitd.db", index, key.encode(), bit)
    world.restart()
    before = files_of(world.shop)
    collector = world.collector()
    for pressure in Pressure:
        with pytest.raises(CollectionRefusedError, match="gitd check --rebuild-index"):
            collector.run(Order(pressure, is_hurried=True))
    assert files_of(world.shop) == before
    rebuild_index(world.shop.store, world.shop.records)
    assert collector.run(QUICK).is_idle
    assert world.listed() == {kept.artifact_id}
    world.expect_whole()


def test_text_that_damage_made_of_a_key_is_no_reference(world) -> None:
    kept = pinned(world.shop, SITE)
    key, text = Digest.of(b"hello") + b"f", "k" * 33
    world.shop.records.write(
        lambda db: db.execute("UPDATE blob SET key = ? WHERE key = ?", (text, key))
    )
    found = references(world.shop.records.reader(), kept.digest)
    assert len(found) == len(SITE)
    assert not {key, text.encode()} & found


def leave_lease(shop, ingested) -> None:
    """What a build of the same tree leaves that died before its commit."""
    lease = shop.store.layout.tmp / "dead"
    lease.mkdir(mode=0o700)
    shutil.copy(shop.store.layout.tree(ingested.digest), lease / MANIFEST_NAME)


@pytest.mark.parametrize("index", ["sqlite_autoindex_blob_1", "sqlite_autoindex_tree_1"])
def test_damaged_index_stops_a_start_that_would_go_by_it(world, index: str) -> None:
    kept = pinned(world.shop, SITE)
    leave_lease(world.shop, kept)
    world.shop.records.close()
    key = Digest.of(b"hello") + b"f" if "blob" in index else kept.digest
    damage_index(world.shop.folder / "gitd.db", index, key)
    world.restart()
    before = files_of(world.shop)
    recovered = world.shop.store.recover()
    (said,) = recovered.stuck
    assert "gitd check --rebuild-index" in said
    assert recovered.files == 0
    assert files_of(world.shop) == before
    rebuild_index(world.shop.store, world.shop.records)
    assert world.shop.store.recover() == Recovered(leases=1, files=0, deletions=0)
    world.expect_whole()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [6, pytest.param(3000, marks=pytest.mark.soak)])
def test_flipped_bit_in_any_index_takes_nothing_that_is_kept(
    world, scratch: Path, count: int
) -> None:
    seed = int(os.environ.get("CRASH_SEED", "0"))
    pick = random.Random(seed)
    shop = world.shop
    kept = [pinned(shop, {**SITE, "pinned": b"pinned"}), shop.ingest({**SITE, "runs": b"runs"})]
    world.release(kept[1])
    names = [path.relative_to(shop.folder) for path in files_of(shop)]
    leave_lease(shop, kept[0])
    shop.ingest({**SITE, "gone": b"gone"})
    shop.keep_tree({"cache": b"cache"})
    shop.records.close()
    good = (shop.folder / "gitd.db").read_bytes()
    pages = pages_of_indexes(shop.folder / "gitd.db")
    refused = 0
    for _ in range(count):
        shutil.copytree(shop.folder, scratch / "shop")
        where = flip_bit(scratch / "shop/gitd.db", good, pages, pick)
        refused += not start_and_collect(scratch / "shop")
        lost = [path for path in names if not (scratch / "shop" / path).exists()]
        assert not lost, f"{where}, seed {seed}"
        shutil.rmtree(scratch / "shop")
    print(f"{refused} of {count} were refused")
    assert refused


def start_and_collect(folder: Path) -> bool:
    """Start, and collect what nothing keeps; say whether that was done."""
    try:
        shop = make_shop(folder)
    except StorageError:
        return False
    try:
        shop.store.recover()
        return Collector(shop.store, shop.records, KEEP_NOTHING).run(QUICK).doubt is None
    except StorageError:
        return False
    finally:
        shop.records.close()


def pages_of_indexes(database: Path) -> list[tuple[str, int, int]]:
    """All pages of indexes, and of the one table that is its own index: name, offset, size."""
    db = sqlite3.connect(database)
    pages = db.execute(
        "SELECT name, pgoffset, pgsize FROM dbstat WHERE name = 'ref' OR name IN"
        " (SELECT name FROM sqlite_master WHERE type = 'index')"
    ).fetchall()
    db.close()
    return pages


LOST = {
    "references": ["DELETE FROM ref"],
    "a blob": ["DELETE FROM ref", "DELETE FROM blob WHERE size_bytes = 5"],
    "all blobs": ["DELETE FROM ref", "DELETE FROM blob"],
    "its statements": ["DELETE FROM attestation"],
    "one of its statements": ["DELETE FROM attestation WHERE sequence = 1"],
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
def test_rows_that_were_lost_take_no_file_with_them(world, lost: list[str]) -> None:
    shop = world.shop
    kept = [pinned(shop, SITE), shop.ingest(SITE)]
    for number, ingested in enumerate(kept):
        know_build(world, ingested, number)
    collector = world.collector()
    collector.run(AT_ONCE)  # a week's rest for what was found in order is no reason not to look
    for statement in lost:
        world.write(lambda db, statement=statement: db.execute(statement))
    before = files_of(shop)
    for order in (AT_ONCE, FORCED):
        with pytest.raises(CollectionRefusedError, match="gitd check --rebuild-index"):
            collector.run(order)
    assert files_of(shop) == before
    rebuild_index(shop.store, shop.records)
    assert collector.run(AT_ONCE).is_idle
    assert files_of(shop) == before
    assert world.listed() == {kept[0].artifact_id}
    world.expect_whole()


ARTIFACT = ("DELETE FROM artifact_pin", "DELETE FROM attestation", "DELETE FROM artifact")


def test_artifact_whose_row_was_lost_goes_by_force_only(world) -> None:
    """Its build says that it gave one: what was dropped has its row still."""
    shop = world.shop
    kept = pinned(shop, SITE)
    know_build(world, kept, 0)
    for statement in ARTIFACT:
        world.write(lambda db, statement=statement: db.execute(statement))
    before = files_of(shop)
    for order in (AT_ONCE, QUICK):
        with pytest.raises(CollectionRefusedError, match="gitd check --rebuild-index"):
            world.collect(order)
    assert files_of(shop) == before
    planned = world.collector().plan()
    assert (planned.trees, kept.artifact_id in (planned.doubt or "")) == (0, True)
    assert world.collector().plan(is_forced=True).trees == 1
    rebuild_index(shop.store, shop.records)
    shop.pin(kept)
    assert world.collect().is_idle
    assert files_of(shop) == before
    for statement in ARTIFACT:
        world.write(lambda db, statement=statement: db.execute(statement))
    assert world.collect(FORCED).trees == 1
    world.expect_whole()


def test_statement_of_what_was_dropped_is_a_leftover(world) -> None:
    """Its build is known, and gave it once: that it is not known any more is as it must be."""
    shop = world.shop
    gone = shop.ingest({"gone": b"gone"})
    know_build(world, gone, 0)
    pinned(shop, SITE)
    path = Path(shop.store.layout.envelope(gone.envelope_sha256))
    data = path.read_bytes()
    world.collect()
    assert not path.exists()
    path.write_bytes(data)
    assert world.collect().leftovers == 1
    world.expect_whole()


def test_older_records_make_no_leftovers_of_what_came_after_them(world) -> None:
    shop = world.shop
    pinned(shop, SITE)
    database = shop.folder / "gitd.db"
    shop.records.close()
    shutil.copy(database, shop.folder / "older.db")
    world.restart()
    world.shop.builds = iter([100])
    newer = pinned(world.shop, {"newer": b"newer"})
    world.shop.records.close()
    shutil.copy(database, shop.folder / "newer.db")
    shutil.copy(shop.folder / "older.db", database)
    world.restart()
    with pytest.raises(CollectionRefusedError, match=r"1 signed artifact .* older ones\?"):
        world.collect()
    world.shop.records.close()
    shutil.copy(shop.folder / "newer.db", database)
    world.restart()
    assert world.collect().is_idle
    assert newer.artifact_id in world.listed()
    world.expect_whole()


def test_database_that_is_gone_takes_no_file_and_each_build_brings_its_artifact_back(
    world,
) -> None:
    """Case 33. Who built what stands in statements; that it counted, in the records alone."""
    shop = world.shop
    trees = [SITE, {"other": b"other", "index.html": b"hello"}]
    kept = [pinned(shop, tree) for tree in trees]
    before = files_of(shop)
    inodes = {path: path.stat().st_ino for path in before}
    shop.records.close()
    for path in shop.folder.glob("gitd.db*"):
        path.unlink()
    world.restart()
    shop = world.shop
    for order in (AT_ONCE, QUICK):
        with contextlib.suppress(CollectionRefusedError):
            world.collect(order)
        done = rebuild_index(shop.store, shop.records)
        assert (done.trees, done.statements) == (0, 0)
        assert files_of(shop) == before
    for ingested in kept:  # as a site host does, which has no database
        shop.verify(ingested)
    with pytest.raises(CollectionRefusedError, match=r"2 signed artifacts that the records never"):
        world.collect()
    shop.builds = iter([0, 1])
    assert [pinned(shop, tree).artifact_id for tree in trees] == [one.artifact_id for one in kept]
    assert world.collect().leftovers == 0
    assert files_of(shop) == before
    assert not set(inodes.items()) <= {(path, path.stat().st_ino) for path in before}
    world.expect_whole()


def test_signed_artifacts_that_no_row_ever_knew_go_by_force(world) -> None:
    shop = world.shop
    pinned(shop, SITE)
    shop.ingest({"other": b"other"})
    for table in ("ref", "blob", "tree"):
        world.write(lambda db, table=table: db.execute(f"DELETE FROM {table}"))
    for table in ("artifact_pin", "attestation", "artifact"):
        world.write(lambda db, table=table: db.execute(f"DELETE FROM {table}"))
    planned = world.collector().plan()
    assert "2 signed artifacts" in (planned.doubt or "")
    assert world.collector().plan(is_forced=True).doubt is None
    with pytest.raises(CollectionRefusedError, match=r"2 signed artifacts .* --force"):
        world.collect()
    assert len(files_of(shop)) == 3 + 2 + 2
    assert world.collect(FORCED).leftovers == 3 + 2 + 2
    world.expect_whole()


def test_leftovers_beyond_half_of_the_files_need_force(world) -> None:
    shop = world.shop
    pinned(shop, {f"f{n}": b"%d" % n for n in range(900)})
    for n in range(1001):
        shop.blob(b"left %d" % n).write_bytes(b"left")
    with pytest.raises(CollectionRefusedError, match=r"1001 of 1903 files .* --force"):
        world.collect()
    assert shop.blob(b"left 0").exists()
    assert world.collect(FORCED).leftovers == 1001
    world.expect_whole()


@needs_strace
def test_statements_without_rows_are_verified_once(scratch: Path) -> None:
    """And not again while everybody waits at the gate."""
    shop = make_shop(scratch / "shop")
    trees = [shop.store.layout.tree(shop.ingest({"n": b"%d" % n}).digest) for n in range(3)]
    shop.records.close()
    for path in shop.folder.glob("gitd.db*"):
        path.unlink()
    child = Child(Path(__file__).with_name("collect_child.py"), (str(shop.folder),))
    done = child.run(scratch / "trace", "-e", "trace=openat")
    assert (done.returncode, "3 signed artifacts" in done.stdout) == (3, True)
    trace = (scratch / "trace").read_text()
    assert [trace.count(f'"{tree}"') for tree in trees] == [1, 1, 1]


def peak_bytes(shop) -> int:
    """The most memory that a look for leftovers has at once."""
    layout = shop.store.layout
    tracemalloc.start()
    try:
        check_leftovers(layout, shop.records, Gate(layout), is_forced=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_of_many_statements_without_rows_one_manifest_is_held_at_a_time(shop) -> None:
    ingested = shop.ingest({f"f{n}": b"" for n in range(2000)})
    manifest = shop.reader.manifest(ingested.digest)
    sealed = (shop.attest(manifest, f"build_{n}") for n in itertools.count(1))
    of_one_shard = (one for one in sealed if one.sha256.startswith("00"))
    peaks = []
    for count in (1, 29):
        for envelope in itertools.islice(of_one_shard, count):
            Path(shop.store.layout.envelope(envelope.sha256)).write_bytes(envelope.data)
        peaks.append(peak_bytes(shop))
    assert peaks[1] - peaks[0] < 2 << 20  # 28 of them have 16 MB


# -- manifests that cannot be asked --------------------------------------------------------------

UNASKED = {
    "references": ["DELETE FROM ref"],
    "a reference": ["DELETE FROM ref WHERE blob_id = (SELECT MIN(blob_id) FROM ref)"],
    "references and blobs": ["DELETE FROM ref", "DELETE FROM blob"],
    "its row": ["DELETE FROM ref", "DELETE FROM tree"],
    "all rows": ["DELETE FROM ref", "DELETE FROM blob", "DELETE FROM tree"],
}


@pytest.mark.parametrize("lost", UNASKED.values(), ids=UNASKED)
def test_damaged_manifest_whose_references_are_lost_stops_all_that_goes_by_them(
    world, lost: list[str]
) -> None:
    shop = world.shop
    kept = pinned(shop, TWINS)
    archive = export(shop, kept)
    for statement in lost:
        world.write(lambda db, statement=statement: db.execute(statement))
    flip(Path(shop.store.layout.tree(kept.digest)))
    condemn_all(shop)
    shop.ingest({"gone": b"gone", "shared": b"hello"})
    for order in (AT_ONCE, FORCED, Order(is_hurried=True)):
        before = files_of(shop)
        collected = world.collect(order)
        assert f"do not know all files of {kept.artifact_id}" in collected.doubt
        assert (collected.trees, collected.blobs, collected.leftovers) == (0, 0, 0)
        assert all("attest" in path.parts for path in before - files_of(shop))
    rebuild_index(shop.store, shop.records)
    assert world.collector().plan().doubt is not None
    world.collect()
    condemn_all(shop).mend([anything_at(archive)])
    assert world.collect().doubt is None
    assert not shop.blob(b"gone").exists()
    assert world.listed() == {kept.artifact_id}
    world.expect_whole()


def test_artifact_that_is_kept_no_more_causes_no_doubt(world) -> None:
    shop = world.shop
    kept = pinned(shop, SITE)
    world.write(lambda db: db.execute("DELETE FROM ref"))
    flip(Path(shop.store.layout.tree(kept.digest)))
    condemn_all(shop)
    assert world.collect().doubt is not None
    world.write(lambda db: retention.unpin(db, "site_1", kept.artifact_id))
    assert world.collector().plan().doubt is None
    assert world.collect().doubt is None
    assert check_store(shop.store.layout.root, shop.records).blobs == 0
