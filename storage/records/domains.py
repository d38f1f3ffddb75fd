"""Custom domains of environments: a host name is one environment's, of the whole server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.model import Domain
from storage.records.blobs import chunks, marks
from storage.records.statements import Page, actor_columns, actor_of, insert, newest_first


def add(db: sqlite3.Connection, domain: Domain) -> None:
    """Raises RecordConflictError when the host name is taken, or the environment is gone."""
    insert(
        db,
        "domain",
        {
            "id": domain.id,
            "site_id": domain.site_id,
            "env_id": domain.env_id,
            "hostname": domain.hostname,
            "created_at": domain.created_at,
            **actor_columns(domain.actor),
        },
    )


def get(db: sqlite3.Connection, domain_id: str) -> Domain | None:
    row = db.execute("SELECT * FROM domain WHERE id = ?", (domain_id,)).fetchone()
    return None if row is None else _domain(row)


def of_hostname(db: sqlite3.Connection, hostname: str) -> Domain | None:
    row = db.execute("SELECT * FROM domain WHERE hostname = ?", (hostname,)).fetchone()
    return None if row is None else _domain(row)


def page(
    db: sqlite3.Connection, env_id: str, *, before: str | None, limit_count: int
) -> Page[Domain]:
    """Those of an environment, newest first."""
    rows, has_more = newest_first(
        db, "domain", {"env_id": env_id}, before=before, limit_count=limit_count
    )
    return Page(tuple(map(_domain, rows)), has_more)


def of_environments(db: sqlite3.Connection, env_ids: Iterable[str]) -> list[Domain]:
    """Those of some environments, oldest first in each."""
    found: list[Domain] = []
    for chunk in chunks(env_ids):
        rows = db.execute(
            f"SELECT * FROM domain WHERE env_id IN ({marks(chunk)}) ORDER BY id",  # noqa: S608
            chunk,
        )
        found += map(_domain, rows)
    return found


def every(db: sqlite3.Connection) -> list[Domain]:
    """Those of the whole server, oldest first."""
    return [_domain(row) for row in db.execute("SELECT * FROM domain ORDER BY id")]


def count(db: sqlite3.Connection, env_id: str) -> int:
    row = db.execute("SELECT COUNT(*) FROM domain WHERE env_id = ?", (env_id,)).fetchone()
    return int(row[0])


def delete(db: sqlite3.Connection, domain_id: str) -> None:
    db.execute("DELETE FROM domain WHERE id = ?", (domain_id,))


def _domain(row: sqlite3.Row) -> Domain:
    return Domain(
        id=row["id"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        hostname=row["hostname"],
        created_at=row["created_at"],
        actor=actor_of(row),
    )
