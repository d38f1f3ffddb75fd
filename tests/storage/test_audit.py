"""Records that were lost, damaged or replaced: the collector asks before it goes by them."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import Order
from storage.copies import anything_at
from storage.digest import Digest
from storage.errors import CollectionRefusedError
from storage.records import retention
from storage.reindex import rebuild_index
from tests.storage.test_collect import AT_ONCE, files_of
from tests.storage.test_repair import condemn_all, export, flip

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n"}
TWINS = {**SITE, "copy.html": b"hello"}  # as many blobs as before, and more files
FORCED = replace(AT_ONCE, is_forced=True)


def pinned(shop, tree: dict[str, bytes]):
    ingested = shop.ingest(tree)
    shop.pin(ingested)
    return ingested


def damage_index(database: Path, index: str, key: bytes) -> None:
    """Flip a bit of a key where an index has it: by that it is not found any more."""
    db = sqlite3.connect(database)
    pages = db.execute("SELECT pgoffset, pgsize FROM dbstat WHERE name = ?", (index,)).fetchall()
    db.close()
    data = bytearray(database.read_bytes())
    (at,) = (found for start, size in pages if (found := data.find(key, start, start + size)) >= 0)
    data[at] ^= 0x80
    database.write_bytes(data)


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


LOST = {
    "references": ["DELETE FROM ref"],
    "a blob": ["DELETE FROM ref", "DELETE FROM blob WHERE size_bytes = 5"],
    "all blobs": ["DELETE FROM ref", "DELETE FROM blob"],
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
def test_rows_that_were_lost_take_no_file_with_them(world, lost: list[str]) -> None:
    shop = world.shop
    pinned(shop, SITE)
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
    with pytest.raises(CollectionRefusedError, match=r"1 signed artifacts .* older ones\?"):
        world.collect()
    world.shop.records.close()
    shutil.copy(shop.folder / "newer.db", database)
    world.restart()
    assert world.collect().is_idle
    assert newer.artifact_id in world.listed()
    world.expect_whole()


def test_signed_artifacts_that_no_row_ever_knew_go_by_force(world) -> None:
    shop = world.shop
    pinned(shop, SITE)
    shop.ingest({"other": b"other"})
    for table in ("ref", "blob", "tree"):
        world.write(lambda db, table=table: db.execute(f"DELETE FROM {table}"))
    for table in ("artifact_pin", "attestation", "artifact"):
        world.write(lambda db, table=table: db.execute(f"DELETE FROM {table}"))
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
