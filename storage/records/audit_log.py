"""The audit log: who changed what, when, and from where. Rows are added and grow old, no more."""

from __future__ import annotations

import sqlite3

from storage.model import Action, AuditEntry
from storage.records.statements import (
    Page,
    Value,
    actor_columns,
    actor_of,
    insert,
    newest_first,
)


def add(db: sqlite3.Connection, entry: AuditEntry) -> None:
    insert(
        db,
        "audit_log",
        {
            "id": entry.id,
            "created_at": entry.created_at,
            **actor_columns(entry.actor),
            "action": entry.action.value,
            "target": entry.target,
            "site_id": entry.site_id,
            "env_id": entry.env_id,
            "address": entry.address,
            "request_id": entry.request_id,
        },
    )


def page(
    db: sqlite3.Connection,
    *,
    site_id: str | None,
    env_id: str | None,
    before: str | None,
    limit_count: int,
) -> Page[AuditEntry]:
    """Newest first: of everything, or of one site, or of one environment."""
    where: dict[str, Value] = {}
    if site_id is not None:
        where["site_id"] = site_id
    if env_id is not None:
        where["env_id"] = env_id
    rows, has_more = newest_first(db, "audit_log", where, before=before, limit_count=limit_count)
    return Page(tuple(map(_entry, rows)), has_more)


def forget(db: sqlite3.Connection, before: int) -> int:
    """Remove what is older than `before`, and return how much that was."""
    return db.execute("DELETE FROM audit_log WHERE created_at < ?", (before,)).rowcount


def _entry(row: sqlite3.Row) -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        created_at=row["created_at"],
        actor=actor_of(row),
        action=Action(row["action"]),
        target=row["target"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        address=row["address"],
        request_id=row["request_id"],
    )
