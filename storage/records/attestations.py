"""Signed statements of provenance, in the order that they were taken in, and by whose key.

The order is the store's own count, not a clock's: whoever steals a key cannot date back
what is signed with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from storage.model import Attestation


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How many statements a key signed: the first and the last by their place in the order."""

    key_id: str
    count: int
    first: int
    last: int


def read(row: sqlite3.Row) -> Attestation:
    return Attestation(
        envelope_sha256=row["envelope_sha256"],
        artifact_id=row["artifact_id"],
        site_id=row["site_id"],
        build_id=row["build_id"],
        key_id=row["key_id"],
        signature=row["signature"],
        profile=row["profile"],
        ref=row["ref"],
        commit=row["commit_id"],
        created_at=row["created_at"],
        sequence=row["sequence"],
        is_revoked=bool(row["revoked"]),
    )


def by_envelope(db: sqlite3.Connection, envelope_sha256: str) -> Attestation | None:
    row = db.execute(
        "SELECT * FROM attestation WHERE envelope_sha256 = ?", (envelope_sha256,)
    ).fetchone()
    return None if row is None else read(row)


def signed_by(
    db: sqlite3.Connection, key_id: str, *, before: int | None = None
) -> list[Attestation]:
    """The statements that a key signed, oldest first; only those before a place in the order."""
    rows = db.execute(
        "SELECT * FROM attestation WHERE key_id = ? AND sequence < ? ORDER BY sequence",
        (key_id, before if before is not None else 1 << 62),
    )
    return [read(row) for row in rows]


def uses(db: sqlite3.Connection) -> dict[str, KeyUse]:
    """How much each key signed, by its id."""
    rows = db.execute(
        "SELECT key_id, COUNT(*) AS count, MIN(sequence) AS first, MAX(sequence) AS last"
        " FROM attestation GROUP BY key_id"
    )
    return {
        row["key_id"]: KeyUse(row["key_id"], row["count"], row["first"], row["last"])
        for row in rows
    }


def revoke(db: sqlite3.Connection, key_ids: Collection[str]) -> int:
    """Mark as revoked exactly what these keys signed; return how many marks changed."""
    names = tuple(key_ids) or ("",)
    marks = ", ".join("?" * len(names))
    return db.execute(
        "UPDATE attestation SET revoked = 1 - revoked"  # noqa: S608 - marks alone
        f" WHERE revoked <> CASE WHEN key_id IN ({marks}) THEN 1 ELSE 0 END",
        names,
    ).rowcount


def replace(
    db: sqlite3.Connection, old_sha256: str, *, new_sha256: str, key_id: str, signature: str
) -> None:
    """Let another envelope with the same statement take the place of one, everywhere."""
    db.execute(
        "UPDATE build SET envelope_sha256 = ? WHERE envelope_sha256 = ?", (new_sha256, old_sha256)
    )
    db.execute(
        "UPDATE attestation SET envelope_sha256 = ?, key_id = ?, signature = ?, revoked = 0"
        " WHERE envelope_sha256 = ?",
        (new_sha256, key_id, signature, old_sha256),
    )
    db.execute(
        "UPDATE deployment SET envelope_sha256 = ? WHERE envelope_sha256 = ?",
        (new_sha256, old_sha256),
    )
