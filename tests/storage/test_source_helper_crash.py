"""Crashes of an ingest that has a second process to read: as `test_crash.py` without one."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashing import CALLS, HOWS, Child, Point, needs_strace, scratch_folder, share, some
from tests.storage.test_crash import expect_repeatable, expect_whole, helpers

CHILD = Path(__file__).with_name("helped_child.py")
KNOWN = {f"d/{number:02}": b"known %d" % number for number in range(24)}
NEW = {"d/06n": b"new", "d/12n": b"other", "d/zz": b"last"}
BRIEF_COUNT = 4

pytestmark = [
    needs_strace,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core"),
]


def helped(shop: Path) -> Child:
    return Child(CHILD, (str(shop),))


@pytest.fixture(scope="module")
def before() -> Iterator[Path]:
    """A shop with one artifact in it, and a folder that has all of that and some more."""
    with scratch_folder() as folder:
        shop = helpers().make_shop(folder / "shop")
        shop.pin(shop.ingest(KNOWN))
        shop.records.close()
        for name, data in {**KNOWN, **NEW}.items():
            path = folder / "shop/tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield folder / "shop"


def points(before: Path, scratch: Path) -> list[Point]:
    """The calls of the thread that takes the tree in: its helper is killed in the end anyway."""
    shutil.copytree(before, scratch / "count", symlinks=True)
    names = ",".join(f"?{name}" for name in CALLS)
    done = helped(scratch / "count").run(
        scratch / "trace", "-y", "-e", f"trace={names}", follows=False
    )
    assert done.returncode == 0, done.stdout
    shutil.rmtree(scratch / "count")
    text = (scratch / "trace").read_text()
    assert re.search(r"write\(\d+<pipe:", text), "the helper was asked"
    made = Counter(re.findall(r"^(\w+)\(", text, re.MULTILINE))
    return sorted((name, number + 1) for name, count in made.items() for number in range(count))


def crash(shop_at, before: Path, scratch: Path, where: Point, *, how: str) -> bool:
    shop, (call, number) = scratch / "shop", where
    shutil.copytree(before, shop, symlinks=True)
    fault = f"inject=?{call}:{how}:when={number}"
    done = helped(shop).run(scratch / "trace", "-e", f"trace=?{call}", "-e", fault, follows=False)
    text = (scratch / "trace").read_text()
    assert done.returncode in ((-9,) if "killed by SIGKILL" in text else (0, 3)), done.stdout
    expect_whole(shop_at, shop, recovers=True)
    expect_repeatable(shop_at, shop)
    shutil.rmtree(shop)
    return "killed by SIGKILL" in text or "INJECTED" in text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", HOWS)
def test_helped_ingest_is_whole_or_nothing_at_some_system_calls(
    shop_at, before: Path, scratch: Path, how: str
) -> None:
    every = points(before, scratch)
    assert len(every) > 40
    for where in some(every, BRIEF_COUNT):
        crash(shop_at, before, scratch, where, how=how)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", HOWS)
def test_helped_ingest_is_whole_or_nothing_at_every_system_call(
    shop_at, before: Path, scratch: Path, how: str
) -> None:
    every = share(points(before, scratch))
    reached = sum(crash(shop_at, before, scratch, where, how=how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
