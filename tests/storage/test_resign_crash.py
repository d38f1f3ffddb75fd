"""Crashes of signing again: a real process, killed or failed at its system calls.

After each: every artifact has a statement that holds, and doing it again signs the rest.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from storage.check import check_store
from storage.custody import Custody
from storage.digest import Digest
from tests.crashing import HOWS, Child, Point, needs_strace, scratch_folder, share, some
from tests.storage.conftest import Shop, make_shop

CHILD = Path(__file__).with_name("resign_child.py")
TREES = ({"a": b"one"}, {"a": b"two"}, {"b": b"three"})

pytestmark = needs_strace


def helpers() -> ModuleType:
    sys.path.insert(0, str(CHILD.parent))
    try:
        return importlib.import_module(CHILD.stem)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def rotated() -> Iterator[tuple[Path, str]]:
    """A shop whose key was replaced after it signed a few statements; and which that was."""
    with scratch_folder() as folder:
        shop = make_shop(folder / "shop")
        for tree in TREES:
            shop.ingest(tree)
        Custody(shop.folder).rotate(shop.store.layout.trust)
        shop.records.close()
        yield shop.folder, shop.signing_key.key_id


def points(rotated: tuple[Path, str], scratch: Path) -> list[Point]:
    before, key_id = rotated
    shutil.copytree(before, scratch / "count", symlinks=True)
    try:
        return Child(CHILD, (str(scratch / "count"), key_id)).points(scratch / "trace")
    finally:
        shutil.rmtree(scratch / "count")


def crash(shop_at, rotated: tuple[Path, str], folder: Path, where: Point, *, how: str) -> bool:
    """Crash once; return whether the point was reached."""
    before, old = rotated
    shop = folder / "shop"
    shutil.copytree(before, shop, symlinks=True)
    reached = Child(CHILD, (str(shop), old)).fail(folder / "trace", where, how)
    opened = shop_at(shop)
    opened.store.recover()
    assert keys_of(opened) in ({old}, {opened.signing_key.key_id})  # all of them at once
    assert helpers().sign_again(opened, old).failures == ()
    assert keys_of(opened) == {opened.signing_key.key_id}
    assert opened.signing_key.key_id != old
    opened.records.close()
    shutil.rmtree(shop)
    return reached


def keys_of(shop: Shop) -> set[str]:
    """The keys that signed what the records name; all of it must hold."""
    assert check_store(shop.folder / "store", shop.records).problems == ()
    rows = shop.records.reader().execute(
        "SELECT envelope_sha256, digest FROM attestation JOIN artifact ON artifact.id = artifact_id"
    )
    verified = [shop.reader.verify(Digest.parse(row[1]), row[0]) for row in rows.fetchall()]
    assert len(verified) == len(TREES)
    return {one.key_id for one in verified}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_statements_are_the_old_or_the_new_ones_at_some_system_calls(
    shop_at, rotated: tuple[Path, str], scratch: Path, how: str
) -> None:
    every = points(rotated, scratch)
    names = [where for where in every if where[0] in ("rename", "fsync")]
    assert len(names) > 5
    for where in [*some(names, 2), *some(every, 1)]:
        crash(shop_at, rotated, scratch, where, how=how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_statements_are_the_old_or_the_new_ones_at_every_system_call(
    shop_at, rotated: tuple[Path, str], scratch: Path, how: str
) -> None:
    every = share(points(rotated, scratch))
    reached = sum(crash(shop_at, rotated, scratch, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
