"""Crashes of a rebuild of the index: a real process, killed or failed at its system calls.

After each: no file is lost, neither then nor to a collector that comes upon the half of it, and
doing it again makes the index whole.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import Collector
from storage.digest import Digest
from storage.errors import CollectionRefusedError
from storage.parts import Part
from storage.quarantine import Quarantine
from storage.reindex import rebuild_index
from storage.retention import Retention
from tests.crashing import HOWS, Child, Point, needs_strace, scratch_folder, share, some
from tests.spoiling import flip
from tests.storage.conftest import AT_ONCE, World, make_shop
from tests.storage.test_collect import files_of
from tests.storage.test_reindex import SITE, dump, know_build

CHILD = Path(__file__).with_name("repair_child.py")
BAD = Part.of_blob(Digest.of(b"bad") + b"f")

pytestmark = needs_strace


@pytest.fixture(scope="module")
def lost() -> Iterator[tuple[Path, dict[str, list[tuple[object, ...]]]]]:
    """A shop that lost its index, and a bit of a blob; and its index as a rebuild makes it."""
    with scratch_folder() as folder:
        world = World(make_shop(folder / "shop"))
        for number, tree in enumerate((SITE, {"bad": b"bad", "index.html": b"hello"})):
            ingested = world.shop.ingest(tree)
            know_build(world, ingested, number)
            world.release(ingested)
        flip(world.shop.blob(b"bad"))
        world.shop.records.close()
        with contextlib.closing(sqlite3.connect(folder / "shop/gitd.db")) as db, db:
            for table in ("ref", "blob", "tree", "attestation", "artifact"):
                db.execute(f"DELETE FROM {table}")
        shutil.copytree(folder / "shop", folder / "rebuilt", symlinks=True)
        shop = make_shop(folder / "rebuilt")
        assert rebuild_index(shop.store, shop.records).damaged == 1
        index = dump(shop)
        shop.records.close()
        yield folder / "shop", index


def rebuilding(shop: Path) -> Child:
    return Child(CHILD, (str(shop), "index"))


def points(lost: Path, scratch: Path) -> list[Point]:
    shutil.copytree(lost, scratch / "count", symlinks=True)
    try:
        return rebuilding(scratch / "count").points(scratch / "trace")
    finally:
        shutil.rmtree(scratch / "count")


def crash(shop_at, lost, folder: Path, where: Point, *, how: str) -> bool:
    """Crash a rebuild once; return whether the point was reached."""
    before, index = lost
    shop = folder / "shop"
    shutil.copytree(before, shop, symlinks=True)
    reached = rebuilding(shop).fail(folder / "trace", where, how)
    opened = shop_at(shop)
    there = files_of(opened)
    opened.store.recover()
    with contextlib.suppress(CollectionRefusedError):
        Collector(opened.store, opened.records, Retention()).run(AT_ONCE)
    bad = opened.blob(b"bad")
    assert there - files_of(opened) == set()
    assert len(there | {bad}) == len(files_below(before))
    rebuild_index(opened.store, opened.records)
    assert dump(opened) == index
    assert {one.part for one in check_store(shop / "store", opened.records).findings} == {BAD}
    assert [one.part for one in Quarantine(opened.store.layout).kept()] == [BAD]
    assert list(opened.store.layout.tmp.iterdir()) == []
    opened.records.close()
    shutil.rmtree(shop)
    return reached


def files_below(shop: Path) -> list[Path]:
    kinds = ("blobs", "trees", "attest")
    return [path for kind in kinds for path in (shop / "store" / kind).glob("*/*")]


def test_rebuild_believes_what_the_disk_has_and_not_what_memory_has(lost, scratch: Path) -> None:
    """Whoever wrote it may have been refused by the disk, and told that to nobody."""
    shop, trace = scratch / "shop", scratch / "trace"
    shutil.copytree(lost[0], shop, symlinks=True)
    done = rebuilding(shop).run(trace, "-y", "-e", "trace=syncfs,fadvise64,openat")
    assert done.returncode == 0, done.stdout
    calls = trace.read_text().splitlines()
    first = next(number for number, call in enumerate(calls) if "syncfs(" in call)
    paths = [path for path in files_below(shop) if path.parent.parent.name != "quarantine"]
    assert len(paths) > 6
    for path in paths:
        opened = [n for n, call in enumerate(calls) if "openat(" in call and path.name in call]
        asked = [n for n, call in enumerate(calls) if "fadvise64(" in call and path.name in call]
        assert first < opened[0] < asked[0], path
        assert not [n for n in opened if opened[0] < n < asked[0]]  # what is read next is new


@pytest.mark.timeout(300)
def test_rebuild_of_the_index_loses_nothing_at_some_system_calls(
    shop_at, lost, scratch: Path
) -> None:
    every = points(lost[0], scratch)
    assert len(every) > 20
    for how, where in zip(HOWS, some(every, len(HOWS)), strict=True):
        crash(shop_at, lost, scratch, where, how=how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_rebuild_of_the_index_loses_nothing_at_every_system_call(
    shop_at, lost, scratch: Path, how: str
) -> None:
    every = share(points(lost[0], scratch))
    reached = sum(crash(shop_at, lost, scratch, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
