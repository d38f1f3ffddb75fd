"""Idempotency keys: one owner's key names one request, and the resource that it made."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.records.statements import insert

KEPT_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that carries an idempotency key. `request_sha256` is over method, path, body."""

    owner_id: str
    idempotency_key: str
    request_sha256: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request with this key made: the HTTP status, and the resource to show again."""

    request_sha256: bytes
    status: int
    resource_type: str
    resource_id: str


def find(db: sqlite3.Connection, claim: Claim, now: int) -> Outcome | None:
    row = db.execute(
        "SELECT * FROM idempotency WHERE owner_id = ? AND idempotency_key = ? AND created_at > ?",
        (claim.owner_id, claim.idempotency_key, now - KEPT_MS),
    ).fetchone()
    if row is None:
        return None
    return Outcome(row["request_sha256"], row["status"], row["resource_type"], row["resource_id"])


def keep(db: sqlite3.Connection, claim: Claim, outcome: Outcome, now: int) -> None:
    """Remember the outcome, in the transaction that made it. Old ones leave on the way."""
    db.execute("DELETE FROM idempotency WHERE created_at <= ?", (now - KEPT_MS,))
    insert(
        db,
        "idempotency",
        {
            "owner_id": claim.owner_id,
            "idempotency_key": claim.idempotency_key,
            "request_sha256": outcome.request_sha256,
            "status": outcome.status,
            "resource_type": outcome.resource_type,
            "resource_id": outcome.resource_id,
            "created_at": now,
        },
    )
