"""API keys: who may do what, known by the SHA-256 of their secret."""

from __future__ import annotations

import sqlite3

from storage.model import ApiKey
from storage.records.statements import Page, insert, newest_first, texts_of, to_text, update


def _api_key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        family=row["family"],
        label=row["label"],
        secret_sha256=row["secret_sha256"],
        hint=row["hint"],
        scopes=texts_of(row["scopes"]),
        site_id=row["site_id"],
        env_id=row["env_id"],
        cidrs=texts_of(row["cidrs"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
        previous_sha256=row["previous_sha256"],
        previous_until=row["previous_until"],
        created_by=row["created_by"],
    )


def add(db: sqlite3.Connection, key: ApiKey) -> None:
    insert(
        db,
        "api_key",
        {
            "id": key.id,
            "family": key.family,
            "label": key.label,
            "secret_sha256": key.secret_sha256,
            "hint": key.hint,
            "scopes": to_text(key.scopes),
            "site_id": key.site_id,
            "env_id": key.env_id,
            "cidrs": to_text(key.cidrs),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "revoked_at": key.revoked_at,
            "last_used_at": key.last_used_at,
            "created_by": key.created_by,
        },
    )


def get(db: sqlite3.Connection, key_id: str) -> ApiKey | None:
    row = db.execute("SELECT * FROM api_key WHERE id = ?", (key_id,)).fetchone()
    return None if row is None else _api_key(row)


def by_secret(db: sqlite3.Connection, secret_sha256: bytes) -> ApiKey | None:
    """The key that has this secret, or had it before it was rolled."""
    row = db.execute(
        "SELECT * FROM api_key WHERE secret_sha256 = ? OR previous_sha256 = ?",
        (secret_sha256, secret_sha256),
    ).fetchone()
    return None if row is None else _api_key(row)


def first_maker(db: sqlite3.Connection, key: ApiKey) -> str:
    """The key that was made on the server, and from which this one comes: it or its makers made it.

    Itself, where nobody made it.
    """
    (first,) = db.execute(
        "WITH RECURSIVE above(id, created_by, depth) AS ("
        " SELECT ?, ?, 0 UNION ALL SELECT api_key.id, api_key.created_by, depth + 1"
        " FROM api_key JOIN above ON api_key.id = above.created_by)"
        " SELECT id FROM above ORDER BY depth DESC LIMIT 1",
        (key.id, key.created_by),
    ).fetchone()
    return str(first)


def made_by(db: sqlite3.Connection, key_id: str) -> list[ApiKey]:
    """The keys that it made and that those made, oldest first, without those that were revoked."""
    rows = db.execute(
        "WITH RECURSIVE below(id) AS ("
        " SELECT id FROM api_key WHERE created_by = ?"
        " UNION SELECT api_key.id FROM api_key JOIN below ON api_key.created_by = below.id)"
        " SELECT api_key.* FROM api_key JOIN below USING (id)"
        " WHERE revoked_at IS NULL ORDER BY id",
        (key_id,),
    )
    return [_api_key(row) for row in rows]


def page(
    db: sqlite3.Connection,
    *,
    site_id: str | None,
    env_id: str | None,
    before: str | None,
    limit_count: int,
) -> Page[ApiKey]:
    """Keys that are not revoked, newest first: of all sites, or bound to one or to a part of it."""
    rows, has_more = newest_first(
        db,
        "(SELECT * FROM api_key WHERE revoked_at IS NULL) AS api_key",
        {
            name: value
            for name, value in (("site_id", site_id), ("env_id", env_id))
            if value is not None
        },
        before=before,
        limit_count=limit_count,
    )
    return Page(tuple(_api_key(row) for row in rows), has_more)


def change(db: sqlite3.Connection, key: ApiKey) -> None:
    """Write what may change of a key: its label, its networks, its secrets and its end."""
    update(
        db,
        "api_key",
        key.id,
        {
            "label": key.label,
            "cidrs": to_text(key.cidrs),
            "secret_sha256": key.secret_sha256,
            "hint": key.hint,
            "expires_at": key.expires_at,
            "previous_sha256": key.previous_sha256,
            "previous_until": key.previous_until,
        },
    )


def every(db: sqlite3.Connection) -> list[ApiKey]:
    return [_api_key(row) for row in db.execute("SELECT * FROM api_key ORDER BY id")]


def revoke(db: sqlite3.Connection, key_id: str, at: int) -> bool:
    """Return whether there is such a key. Revoking again keeps the first time."""
    cursor = db.execute(
        "UPDATE api_key SET revoked_at = COALESCE(revoked_at, ?) WHERE id = ?", (at, key_id)
    )
    return cursor.rowcount > 0


def touch(db: sqlite3.Connection, key_id: str, at: int) -> None:
    db.execute("UPDATE api_key SET last_used_at = ? WHERE id = ?", (at, key_id))
