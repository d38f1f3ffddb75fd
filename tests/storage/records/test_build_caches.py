"""Build caches: a row per key, which keeps its tree."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.digest import Digest
from storage.errors import RecordConflictError
from storage.ids import new_id
from storage.model import BuildCache, Site
from storage.records import build_caches, sites
from storage.records.db import Records


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records.open(tmp_path / "gitd.db") as opened:
        for name in ("one", "two"):
            opened.write(lambda db, name=name: sites.add(db, Site(f"site_{name}", name, "main", 0)))
        for tree in (b"a", b"b"):
            opened.write(lambda db, tree=tree: add_tree(db, tree))
        yield opened


def add_tree(db: sqlite3.Connection, contents: bytes) -> None:
    db.execute(
        "INSERT INTO tree(digest, sha256, files, size_bytes, manifest_bytes) VALUES(?,?,1,1,1)",
        (Digest.of(contents), b""),
    )


def cache(key: str, *, site: str = "site_one", tree: bytes = b"a", at: int = 1) -> BuildCache:
    return BuildCache(
        id=new_id("cache"),
        site_id=site,
        profile="node",
        cache_key=key,
        tree_digest=str(Digest.of(tree)),
        files=1,
        size_bytes=1,
        created_at=at,
        used_at=at,
    )


def test_cache_is_found_by_site_profile_and_key(records: Records) -> None:
    kept = records.write(lambda db: build_caches.put(db, cache("k")))
    reader = records.reader()
    assert build_caches.find(reader, "site_one", "node", "k") == kept
    assert build_caches.find(reader, "site_two", "node", "k") is None
    assert build_caches.find(reader, "site_one", "python", "k") is None
    assert build_caches.find(reader, "site_one", "node", "other") is None


def test_cache_takes_the_place_of_the_one_with_its_key(records: Records) -> None:
    first = records.write(lambda db: build_caches.put(db, cache("k")))
    second = records.write(lambda db: build_caches.put(db, cache("k", tree=b"b", at=5)))
    assert second == replace(first, tree_digest=str(Digest.of(b"b")), created_at=5, used_at=5)
    assert build_caches.every(records.reader()) == [second]


def test_cache_needs_its_tree_and_its_site(records: Records) -> None:
    for wrong in (cache("k", tree=b"absent"), cache("k", site="site_absent")):
        with pytest.raises(RecordConflictError):
            records.write(lambda db, wrong=wrong: build_caches.put(db, wrong))


def test_tree_of_a_cache_cannot_be_forgotten(records: Records) -> None:
    records.write(lambda db: build_caches.put(db, cache("k")))
    with pytest.raises(RecordConflictError):
        records.write(lambda db: db.execute("DELETE FROM tree"))


def test_caches_are_ordered_by_their_last_use(records: Records) -> None:
    old, new, other = (
        records.write(lambda db, made=made: build_caches.put(db, made))
        for made in (cache("old", at=1), cache("new", at=2), cache("x", site="site_two", at=3))
    )
    assert build_caches.newest(records.reader(), "site_one", "node") == new
    assert records.write(lambda db: build_caches.touch(db, old.id, 9))
    records.write(lambda db: build_caches.touch(db, new.id, 0))
    used = [(c.id, c.used_at) for c in build_caches.every(records.reader())]
    assert used == [(old.id, 9), (other.id, 3), (new.id, 2)]
    assert [c.id for c in build_caches.of_site(records.reader(), "site_one")] == [old.id, new.id]
    assert not records.write(lambda db: build_caches.touch(db, "cache_absent", 9))


def test_caches_go_one_by_one_and_with_their_site(records: Records) -> None:
    made = [
        records.write(lambda db, c=c: build_caches.put(db, c))
        for c in (cache("a"), cache("b"), cache("c"), cache("d", site="site_two"))
    ]
    assert records.write(lambda db: build_caches.delete(db, made[0].id))
    assert not records.write(lambda db: build_caches.delete(db, made[0].id))
    records.write(lambda db: sites.delete(db, "site_one"))
    assert build_caches.every(records.reader()) == made[3:]
    records.write(lambda db: sites.delete(db, "site_two"))
    assert build_caches.every(records.reader()) == []
