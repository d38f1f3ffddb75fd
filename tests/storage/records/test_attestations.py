"""Statements in the order that they were taken in, and what becomes of them with their keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage.model import Artifact, Attestation
from storage.records import artifacts, attestations
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS
from tests.storage.conftest import PREVIEW


def statement(number: int, *, key: str = "old", artifact: str = "art_1") -> Attestation:
    return Attestation(
        envelope_sha256=f"envelope {number}",
        artifact_id=artifact,
        site_id="site_1",
        build_id=f"build_{number:03}",
        key_id=key,
        signature="",
        profile="static",
        ref=None,
        commit="0" * 40,
        created_at=number,
    )


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records.open(tmp_path / "gitd.db") as opened:
        for name in ("art_1", "art_2"):
            found = Artifact(name, f"blake3:{name}", "", 1, 1, 0)
            opened.write(lambda db, found=found: artifacts.add(db, found))
        yield opened


def take_in(records: Records, *made: Attestation) -> None:
    for one in made:
        records.write(lambda db, one=one: artifacts.attest(db, one))


def numbers(found: list[Attestation]) -> list[int]:
    return [one.sequence for one in found]


def test_order_is_the_stores_own(records: Records) -> None:
    """Case 25: clocks that go wrong change nothing."""
    take_in(records, statement(3), statement(1), statement(2, key="new"))
    db = records.reader()
    assert numbers(attestations.signed_by(db, "old")) == [1, 2]
    assert numbers(attestations.signed_by(db, "old", before=2)) == [1]
    assert attestations.uses(db)["new"] == attestations.KeyUse("new", 1, 3, 3)


def test_revoked_is_what_these_keys_signed_and_nothing_else(records: Records) -> None:
    take_in(records, statement(1), statement(2, key="new"))
    assert records.write(lambda db: attestations.revoke(db, {"old"})) == 1
    assert records.write(lambda db: attestations.revoke(db, {"old"})) == 0
    db = records.reader()
    assert [one.is_revoked for one in attestations.signed_by(db, "old")] == [True]
    assert [one.is_revoked for one in attestations.signed_by(db, "new")] == [False]
    assert records.write(lambda db: attestations.revoke(db, set())) == 1


def test_artifact_goes_by_a_statement_that_holds(records: Records) -> None:
    take_in(records, statement(1, key="new"), statement(2))
    db = records.reader()
    assert artifacts.of_environment(db, PREVIEW, "art_1").attestation.build_id == "build_002"
    records.write(lambda db: attestations.revoke(db, {"old"}))
    assert artifacts.of_environment(db, PREVIEW, "art_1").attestation.build_id == "build_001"
    records.write(lambda db: attestations.revoke(db, {"old", "new"}))
    assert artifacts.of_environment(db, PREVIEW, "art_1").attestation.is_revoked


def test_pages_go_on_past_revoked_statements(records: Records) -> None:
    take_in(
        records,
        statement(1, key="new"),
        statement(2, artifact="art_2"),
        statement(3),
    )
    records.write(lambda db: attestations.revoke(db, {"old"}))
    seen = []
    newest = last = None
    while True:
        page = artifacts.page(records.reader(), PREVIEW, newest=newest, last=last, limit_count=1)
        seen += [(one.artifact.id, one.attestation.is_revoked) for one in page.items]
        newest, last = page.newest, page.last
        if not page.has_more:
            break
    assert seen == [("art_1", False), ("art_2", True)]


def test_statement_that_is_signed_again_keeps_its_place(records: Records) -> None:
    take_in(records, statement(1), statement(2))

    def change(db: sqlite3.Connection) -> None:
        attestations.revoke(db, {"old"})
        attestations.replace(
            db, "envelope 1", new_sha256="again", key_id="new", signature="signature"
        )

    records.write(change)
    found = attestations.by_envelope(records.reader(), "again")
    assert (found.sequence, found.key_id, found.is_revoked) == (1, "new", False)
    assert attestations.by_envelope(records.reader(), "envelope 1") is None


def test_statements_of_earlier_versions_are_counted_by_their_builds(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    connection = sqlite3.connect(path, isolation_level=None)
    MIGRATIONS.apply(Database(connection), stop_before="attestation_order")
    connection.execute(
        "INSERT INTO artifact(id, digest, manifest_sha256, files, size_bytes, created_at)"
        " VALUES('art_1', 'd', '', 1, 1, 0)"
    )
    for number in (2, 3, 1):
        connection.execute(
            "INSERT INTO attestation VALUES(?, 'art_1', 's', ?, 'k', '', 'static', NULL, 'c', ?)",
            (f"envelope {number}", f"build_{number}", number),
        )
    connection.close()
    with Records.open(path) as records:
        found = attestations.signed_by(records.reader(), "k")
    assert [(one.sequence, one.build_id) for one in found] == [
        (1, "build_1"),
        (2, "build_2"),
        (3, "build_3"),
    ]
