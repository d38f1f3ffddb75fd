"""The check of a store finds what is wrong, names it, and keeps quiet otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.check import check_store
from storage.digest import Digest
from storage.layout import blob_mtime
from tests.spoiling import rewrite

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n"}


def check(shop):
    return check_store(shop.folder / "store", shop.records)


def test_sound_store_has_no_problems(shop) -> None:
    shop.ingest(SITE)
    report = check(shop)
    assert report.is_sound
    assert (report.blobs, report.trees, report.envelopes, report.size_bytes) == (2, 1, 1, 15)
    assert report.leftovers == ()


def test_empty_store_is_sound(shop) -> None:
    assert check(shop).is_sound


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("is missing", lambda path: path.unlink()),
    "short": ("4 bytes instead of 5", lambda path: rewrite(path, b"hell")),
    "mode": ("mode 0644", lambda path: path.chmod(0o644)),
    "written to": ("written to", lambda path: rewrite(path, b"hellO", is_hidden=False)),
    "time": ("written to", lambda path: os.utime(path, (0, 0))),
    "link": ("", lambda path: (path.unlink(), path.symlink_to("/etc/passwd"))),
}


@pytest.mark.parametrize(("says", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_blob_is_named(shop, says: str, damage: Callable[[Path], object]) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    damage(path)
    (problem,) = check(shop).problems
    assert path.parent.name + path.name in problem
    assert says in problem


def test_forged_time_does_not_hide_other_bytes(shop) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    rewrite(path, b"hellO")
    os.utime(path, (blob_mtime(Digest.of(b"hello")),) * 2)
    (problem,) = check(shop).problems
    assert "other bytes" in problem


def test_damaged_manifest_and_envelope_are_named(shop) -> None:
    ingested = shop.ingest(SITE)
    rewrite(Path(shop.store.layout.tree(ingested.digest)), b"cas-tree")
    problems = check(shop).problems
    assert [problem.split()[0] for problem in problems] == ["manifest"]
    Path(shop.store.layout.envelope(ingested.envelope_sha256)).unlink()
    assert len(check(shop).problems) == 2


def test_records_that_disagree_with_a_manifest_are_named(shop) -> None:
    shop.ingest(SITE)
    shop.records.write(
        lambda db: db.execute("DELETE FROM ref WHERE blob_id = (SELECT MIN(id) FROM blob)")
    )
    (problem,) = check(shop).problems
    assert "otherwise than its manifest" in problem


def test_files_without_rows_are_leftovers_and_no_problem(shop) -> None:
    shop.ingest(SITE)
    (shop.store.layout.root / "blobs" / "00" / ("0" * 62)).write_text("orphan")
    report = check(shop)
    assert report.is_sound
    assert report.leftovers == ("blobs/00/" + "0" * 62,)


def test_check_of_a_store_in_use_finds_nothing(shop) -> None:
    stop = threading.Event()

    def work() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            shop.ingest({f"f{n}": b"%d %d" % (turn, n) for n in range(20)})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            report = check(shop)
            assert (report.problems, report.leftovers) == ((), ())
    finally:
        stop.set()
        thread.join()
