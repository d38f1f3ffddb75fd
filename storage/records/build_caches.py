"""Build caches: trees that builds keep for later builds. Each row keeps its tree in the store."""

from __future__ import annotations

import sqlite3

from storage.digest import Digest
from storage.model import BuildCache


def _cache(row: sqlite3.Row) -> BuildCache:
    return BuildCache(
        id=row["id"],
        site_id=row["site_id"],
        profile=row["profile"],
        cache_key=row["cache_key"],
        tree_digest=str(Digest(row["tree_digest"])),
        files=row["files"],
        size_bytes=row["size_bytes"],
        created_at=row["created_at"],
        used_at=row["used_at"],
    )


def put(db: sqlite3.Connection, cache: BuildCache) -> BuildCache:
    """Keep the cache; it takes the place, and the id, of the one with the same key.

    Returns:
        The row as it is now.

    Raises:
        RecordConflictError: The store has no such tree, or there is no such site (any more).
    """
    row = db.execute(
        "INSERT INTO build_cache(id, site_id, profile, cache_key, tree_digest, files, size_bytes,"
        " created_at, used_at) VALUES(?,?,?,?,?,?,?,?,?)"
        " ON CONFLICT(site_id, profile, cache_key) DO UPDATE SET"
        " tree_digest = excluded.tree_digest, files = excluded.files,"
        " size_bytes = excluded.size_bytes, created_at = excluded.created_at,"
        " used_at = excluded.used_at RETURNING *",
        (
            cache.id,
            cache.site_id,
            cache.profile,
            cache.cache_key,
            Digest.parse(cache.tree_digest),
            cache.files,
            cache.size_bytes,
            cache.created_at,
            cache.used_at,
        ),
    ).fetchone()
    return _cache(row)


def find(db: sqlite3.Connection, site_id: str, profile: str, cache_key: str) -> BuildCache | None:
    row = db.execute(
        "SELECT * FROM build_cache WHERE site_id = ? AND profile = ? AND cache_key = ?",
        (site_id, profile, cache_key),
    ).fetchone()
    return None if row is None else _cache(row)


def newest(db: sqlite3.Connection, site_id: str, profile: str) -> BuildCache | None:
    """The cache that the site used last with a profile, whatever its key."""
    row = db.execute(
        "SELECT * FROM build_cache WHERE site_id = ? AND profile = ?"
        " ORDER BY used_at DESC, id DESC LIMIT 1",
        (site_id, profile),
    ).fetchone()
    return None if row is None else _cache(row)


def touch(db: sqlite3.Connection, cache_id: str, at: int) -> bool:
    """Note a use, so that the collector takes others first. False when it is gone."""
    return (
        db.execute(
            "UPDATE build_cache SET used_at = MAX(used_at, ?) WHERE id = ?", (at, cache_id)
        ).rowcount
        == 1
    )


def of_site(db: sqlite3.Connection, site_id: str) -> list[BuildCache]:
    """The site's caches, the one used last first."""
    rows = db.execute(
        "SELECT * FROM build_cache WHERE site_id = ? ORDER BY used_at DESC, id DESC", (site_id,)
    )
    return [_cache(row) for row in rows]


def every(db: sqlite3.Connection) -> list[BuildCache]:
    """All caches, the one used last first."""
    rows = db.execute("SELECT * FROM build_cache ORDER BY used_at DESC, id DESC")
    return [_cache(row) for row in rows]


def delete(db: sqlite3.Connection, cache_id: str) -> bool:
    """Let the cache go; its tree stays until the collector comes. False when it was gone."""
    return db.execute("DELETE FROM build_cache WHERE id = ?", (cache_id,)).rowcount == 1
