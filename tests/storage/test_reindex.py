"""The index can be made again from the files, whatever of it is lost or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.check import check_store
from storage.digest import Digest
from storage.model import JobStatus
from storage.records import builds
from storage.reindex import rebuild_index
from tests.rows import build_row
from tests.spoiling import flip

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n", "twin": b"#!/bin/sh\n"}


def dump(shop) -> dict[str, list[tuple[object, ...]]]:
    """What the index says, without the ids of rows."""
    db = shop.records.reader()
    queries = {
        "blobs": "SELECT key, size_bytes, state FROM blob ORDER BY key",
        "trees": "SELECT digest, sha256, files, size_bytes, manifest_bytes, state FROM tree"
        " ORDER BY digest",
        "references": "SELECT key, digest FROM ref JOIN blob ON blob.id = blob_id"
        " JOIN tree ON tree.id = tree_id ORDER BY key, digest",
        "artifacts": "SELECT id, digest, manifest_sha256, files, size_bytes FROM artifact"
        " ORDER BY id",
        "statements": "SELECT envelope_sha256, artifact_id, site_id, build_id, key_id, signature,"
        " sequence FROM attestation ORDER BY sequence",
    }
    return {name: [tuple(row) for row in db.execute(query)] for name, query in queries.items()}


def know_build(world, ingested, number: int) -> None:
    build = build_row(
        f"build_{number}",
        commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
        status=JobStatus.SUCCEEDED,
        profile="static",
        artifact_id=ingested.artifact_id,
        started_at=0,
        finished_at=1,
    )
    world.write(lambda db: builds.add(db, build))
    world.write(
        lambda db: db.execute(
            "UPDATE build SET artifact_id = ?, finished_at = 1, status = 'succeeded' WHERE id = ?",
            (ingested.artifact_id, build.id),
        )
    )


LOSSES = {
    "nothing": [],
    "references": ["DELETE FROM ref"],
    "references of others": ["INSERT OR IGNORE INTO ref SELECT blob.id, tree.id FROM blob, tree"],
    "blobs": ["DELETE FROM ref", "DELETE FROM blob"],
    "states": ["UPDATE blob SET state = 3", "UPDATE tree SET state = 3"],
    "sizes": ["UPDATE blob SET size_bytes = 1", "UPDATE tree SET files = 7, sha256 = x'00'"],
    "facts": ["UPDATE artifact SET files = 7, size_bytes = 7, manifest_sha256 = ''"],
    "trees": [
        "DELETE FROM ref",
        "DELETE FROM blob",
        "DELETE FROM tree WHERE digest NOT IN (SELECT tree_digest FROM build_cache)",
    ],
    "statements": ["DELETE FROM attestation"],
    "artifacts": ["DELETE FROM attestation", "DELETE FROM artifact"],
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_was_lost_of_the_index_is_there_again(world, loss: list[str]) -> None:
    shop = world.shop
    for number, tree in enumerate((SITE, {"other": b"other", "index.html": b"hello"})):
        know_build(world, shop.ingest(tree), number)
    shop.keep_tree({"cache": b"cache"})
    before = dump(shop)
    for statement in loss:
        world.write(lambda db, statement=statement: db.execute(statement))
    assert (dump(shop) != before) == bool(loss)
    done = rebuild_index(shop.store, shop.records)
    after = dump(shop)
    assert [name for name in before if after[name] != before[name]] == []
    assert done.damaged == 0
    assert check_store(shop.store.layout.root, shop.records).problems == ()
    assert rebuild_index(shop.store, shop.records).changed == 0


def test_damage_that_a_rebuild_finds_goes_into_quarantine(world) -> None:
    shop = world.shop
    first, second = shop.ingest(SITE), shop.ingest({"other": b"other"})
    flip(shop.blob(b"hello"))
    flip(Path(shop.store.layout.tree(second.digest)))
    world.write(lambda db: db.execute("DELETE FROM ref"))
    world.write(lambda db: db.execute("DELETE FROM blob"))
    world.write(lambda db: db.execute("DELETE FROM tree"))
    assert rebuild_index(shop.store, shop.records).damaged == 2
    report = check_store(shop.store.layout.root, shop.records)
    assert len(report.quarantined) == 2
    assert {str(found.part) for found in report.findings} == {
        f"blob {Digest.of(b'hello')}",
        f"manifest {second.digest}",
    }
    shop.ingest(SITE)
    shop.ingest({"other": b"other"})
    assert check_store(shop.store.layout.root, shop.records).problems == ()
    assert shop.verify(first)


def test_rebuild_calls_damaged_what_was_being_deleted_and_is_wanted(world) -> None:
    shop = world.shop
    shop.pin(shop.ingest(SITE))
    world.write(lambda db: db.execute("UPDATE blob SET state = 2"))
    assert shop.store.recover().deletions == 0  # nor does it fail for the references
    world.write(lambda db: db.execute("DELETE FROM ref"))
    shop.blob(b"hello").unlink()
    rebuild_index(shop.store, shop.records)
    assert shop.store.recover().deletions == 0  # and no reference leads to nothing
    (found,) = check_store(shop.store.layout.root, shop.records).findings
    assert str(found.part) == f"blob {Digest.of(b'hello')}"
    shop.ingest(SITE)
    assert check_store(shop.store.layout.root, shop.records).problems == ()


def test_envelope_of_a_build_that_never_counted_stays_a_leftover(world) -> None:
    shop = world.shop
    shop.ingest(SITE)
    world.write(lambda db: db.execute("DELETE FROM attestation"))
    assert rebuild_index(shop.store, shop.records).statements == 0
    assert len(check_store(shop.store.layout.root, shop.records).leftovers) == 1


OTHERWISE = {
    "another commit": "commit_id = 'a commit'",
    "what an earlier build gave": "cached = 1",
    "another artifact": "artifact_id = 'art_other'",
}


@pytest.mark.parametrize("said", OTHERWISE.values(), ids=OTHERWISE)
def test_envelope_that_says_otherwise_than_its_build_stays_a_leftover(world, said: str) -> None:
    shop = world.shop
    know_build(world, shop.ingest(SITE), 0)
    world.write(lambda db: db.execute("DELETE FROM attestation"))
    world.write(lambda db: db.execute(f"UPDATE build SET {said}"))
    assert rebuild_index(shop.store, shop.records).statements == 0
    assert len(check_store(shop.store.layout.root, shop.records).leftovers) == 1
