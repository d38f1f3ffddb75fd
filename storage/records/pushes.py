"""Pushes: written before refs move, ended with the builds that they made."""

from __future__ import annotations

import sqlite3

import msgspec

from storage.model import PushRecord, RefMove
from storage.records.statements import actor_columns, actor_of, insert, texts_of, to_text


def _push(row: sqlite3.Row) -> PushRecord:
    return PushRecord(
        id=row["id"],
        site_id=row["site_id"],
        actor=actor_of(row),
        moves=msgspec.json.decode(row["updates"], type=tuple[RefMove, ...]),
        options=texts_of(row["options"]),
        created_at=row["created_at"],
        landed_at=row["landed_at"],
    )


def add(db: sqlite3.Connection, push: PushRecord) -> None:
    insert(
        db,
        "push",
        {
            "id": push.id,
            "site_id": push.site_id,
            **actor_columns(push.actor),
            "updates": to_text(push.moves),
            "options": to_text(push.options),
            "created_at": push.created_at,
            "landed_at": push.landed_at,
        },
    )


def land(db: sqlite3.Connection, push_id: str, at: int) -> bool:
    """Mark the push as dealt with. False when it was already."""
    cursor = db.execute(
        "UPDATE push SET landed_at = ? WHERE id = ? AND landed_at IS NULL", (at, push_id)
    )
    return cursor.rowcount > 0


def open_ones(db: sqlite3.Connection) -> list[PushRecord]:
    """Pushes that began and were not dealt with: what a crash left, oldest first."""
    return [_push(r) for r in db.execute("SELECT * FROM push WHERE landed_at IS NULL ORDER BY id")]


def begun_since(db: sqlite3.Connection, at: int) -> list[PushRecord]:
    """Pushes that began at `at` or later, whatever became of them, oldest first."""
    return [
        _push(r) for r in db.execute("SELECT * FROM push WHERE created_at >= ? ORDER BY id", (at,))
    ]


def has_open(db: sqlite3.Connection, site_id: str) -> bool:
    """Say whether a push of the site has begun, and is not dealt with."""
    row = db.execute(
        "SELECT 1 FROM push WHERE landed_at IS NULL AND site_id = ?", (site_id,)
    ).fetchone()
    return row is not None


def newest_id(db: sqlite3.Connection) -> str | None:
    """The id of the push that began last, of any site."""
    row = db.execute("SELECT MAX(id) AS newest FROM push").fetchone()
    return None if row["newest"] is None else str(row["newest"])


def has_newer(db: sqlite3.Connection, site_id: str, push_id: str) -> bool:
    """Say whether a push of the site began after that one."""
    row = db.execute(
        "SELECT 1 FROM push WHERE id > ? AND site_id = ?", (push_id, site_id)
    ).fetchone()
    return row is not None


def is_known(db: sqlite3.Connection, push_id: str) -> bool:
    return db.execute("SELECT 1 FROM push WHERE id = ?", (push_id,)).fetchone() is not None
