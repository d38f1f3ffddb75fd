"""Crashes of a repair: a real process, killed or failed at its system calls.

After each: nothing is hurt that was not before, what was found damaged is there to be looked at,
and doing it again makes everything whole.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from storage.check import check_store
from storage.digest import Digest
from storage.parts import Part
from storage.quarantine import Quarantine
from tests.crashing import HOWS, Child, Point, needs_strace, scratch_folder, share, some
from tests.spoiling import flip

CHILD = Path(__file__).with_name("repair_child.py")
TREE = {"twin": b"one", "twin.sh*": b"one", "other": b"two" * 100, "gone": b"gone", "mode": b"mode"}
BRIEF_COUNT = 3

pytestmark = needs_strace


def repairing(shop: Path) -> Child:
    return Child(CHILD, (str(shop),))


def points(damaged: Path, scratch: Path) -> list[Point]:
    shutil.copytree(damaged, scratch / "count", symlinks=True)
    try:
        return repairing(scratch / "count").points(scratch / "trace")
    finally:
        shutil.rmtree(scratch / "count")


def helpers(name: str) -> ModuleType:
    sys.path.insert(0, str(CHILD.parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def damaged() -> Iterator[Path]:
    """A shop with damage of each kind, and copies of what is damaged."""
    with scratch_folder() as folder:
        shop = helpers("conftest").make_shop(folder / "shop")
        ingested = shop.ingest(TREE)
        shop.pin(ingested)
        copy = shop.folder / "copy"
        copy.mkdir()
        (copy / "other").write_bytes(TREE["other"])
        (copy / "gone").write_bytes(TREE["gone"])
        tree = Path(shop.store.layout.tree(ingested.digest))
        shutil.copy(tree, copy)
        flip(tree)
        flip(shop.blob(TREE["twin"]))
        flip(shop.blob(TREE["other"]))
        shop.blob(TREE["gone"]).unlink()
        shop.blob(TREE["mode"]).chmod(0o600)
        shop.records.close()
        yield shop.folder


def wrong_bytes(shop: Path) -> dict[Part, bytes]:
    """The damaged files, by what they are of."""
    found: dict[Part, bytes] = {}
    for path in (*(shop / "store/blobs").rglob("*"), *(shop / "store/trees").rglob("*")):
        if path.is_file() and Digest.of(path.read_bytes()).hex() != _name(path):
            kind = Part.of_tree if "trees" in path.parts else _blob_part
            found[kind(Digest.fromhex(_name(path)))] = path.read_bytes()
    return found


def _blob_part(digest: bytes) -> Part:
    return Part.of_blob(digest + b"f")


def _name(path: Path) -> str:
    return path.parent.name + path.name.removesuffix(".x")


def crash(shop_at, damaged: Path, folder: Path, where: Point, *, how: str) -> bool:
    """Crash a repair once; return whether the point was reached."""
    shop = folder / "shop"
    shutil.copytree(damaged, shop, symlinks=True)
    before = wrong_bytes(shop)
    assert len(before) == 3
    reached = repairing(shop).fail(folder / "trace", where, how)
    opened = shop_at(shop)
    opened.store.recover()
    hurt = {*before, _blob_part(Digest.of(TREE["gone"])), _blob_part(Digest.of(TREE["mode"]))}
    report = check_store(shop / "store", opened.records)
    assert {finding.part for finding in report.findings} <= hurt
    assert report.leftovers == ()
    kept = Quarantine(opened.store.layout)
    there = {**{one.part: _read(shop, one.name) for one in kept.kept()}, **wrong_bytes(shop)}
    assert there == before, "what was found is not lost"
    helpers("repair_child").repair(opened)
    assert check_store(shop / "store", opened.records).problems == ()
    assert {one.part: _read(shop, one.name) for one in kept.kept()} == before
    assert list(opened.store.layout.tmp.iterdir()) == []
    opened.records.close()
    shutil.rmtree(shop)
    return reached


def _read(shop: Path, name: str) -> bytes:
    return (shop / "store/quarantine" / name).read_bytes()


@pytest.mark.parametrize("is_linked", [True, False], ids=["linked", "moved"])
def test_what_is_damaged_is_in_quarantine_for_good_before_another_takes_its_place(
    damaged: Path, scratch: Path, *, is_linked: bool
) -> None:
    """And is known to be damaged by then. Where it takes no second name, it is moved."""
    shop = scratch / "shop"
    shutil.copytree(damaged, shop, symlinks=True)
    trace = scratch / "trace"
    calls = "?link,?linkat,?unlink,?rename,?renameat,?renameat2,fsync,fdatasync"
    fault = () if is_linked else ("-e", "inject=?link,?linkat:error=EPERM:when=1..4")
    done = repairing(shop).run(trace, "-y", "-e", f"trace={calls}", *fault)
    assert done.returncode == 0, done.stdout
    happened = trace.read_text()
    store = shop / "store"
    digest = Digest.of(TREE["other"]).hex()
    blob = f"{store}/blobs/{digest[:2]}/{digest[2:]}"
    synced = rf"fsync\(\d+<{store}/quarantine>"
    known = rf"fdatasync\(\d+<{shop}/gitd.db-wal>"
    kept = rf'"{blob}", .*"{store}/quarantine/blob-{digest}'
    linked = (rf"link(at)?\(.*{kept}", synced, known, rf'unlink\("{blob}"')
    moved = (known, rf"rename.*{kept}", synced)
    steps = (*(linked if is_linked else moved), rf"fsync\(\d+<{store}/blobs/{digest[:2]}>")
    replaced = re.search(rf"rename.*<{store}/blobs/{digest[:2]}>", happened)
    assert replaced is not None
    happened = happened[: replaced.start()]
    at = 0
    for step in steps:
        found = re.compile(step).search(happened, at)
        assert found is not None, step
        at = found.end()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_repair_harms_nothing_and_loses_nothing_at_some_system_calls(
    shop_at, damaged: Path, scratch: Path, how: str
) -> None:
    every = points(damaged, scratch)
    names = [where for where in every if where[0] in ("link", "rename", "renameat", "unlink")]
    assert len(names) > 8
    for where in [*some(names, BRIEF_COUNT), *some(every, 1)]:
        crash(shop_at, damaged, scratch, where, how=how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_repair_harms_nothing_and_loses_nothing_at_every_system_call(
    shop_at, damaged: Path, scratch: Path, how: str
) -> None:
    every = share(points(damaged, scratch))
    reached = sum(crash(shop_at, damaged, scratch, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
