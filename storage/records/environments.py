"""Environments of sites."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.model import Environment, EnvironmentKind, EnvironmentStatus
from storage.records.blobs import chunks, marks
from storage.records.statements import Page, Value, insert, newest_first, push_policy_of


def of_row(row: sqlite3.Row) -> Environment:
    return Environment(
        id=row["id"],
        site_id=row["site_id"],
        slug=row["slug"],
        kind=EnvironmentKind(row["kind"]),
        branch=row["branch"],
        ephemeral=bool(row["ephemeral"]),
        status=EnvironmentStatus(row["status"]),
        hostname=row["hostname"],
        created_at=row["created_at"],
        when_pushed_again=push_policy_of(row["when_pushed_again"]),
    )


def add(db: sqlite3.Connection, environment: Environment) -> None:
    """Raises RecordConflictError when the slug (in its site) or the hostname is taken."""
    insert(
        db,
        "environment",
        {
            "id": environment.id,
            "site_id": environment.site_id,
            "slug": environment.slug,
            "kind": environment.kind.value,
            "branch": environment.branch,
            "ephemeral": int(environment.ephemeral),
            "status": environment.status.value,
            "hostname": environment.hostname,
            "created_at": environment.created_at,
            "when_pushed_again": environment.when_pushed_again,
        },
    )


def get(db: sqlite3.Connection, env_id: str) -> Environment | None:
    row = db.execute("SELECT * FROM environment WHERE id = ?", (env_id,)).fetchone()
    return None if row is None else of_row(row)


def find(db: sqlite3.Connection, site_id: str, id_or_slug: str) -> Environment | None:
    row = db.execute(
        "SELECT * FROM environment WHERE site_id = ? AND (id = ? OR slug = ?)",
        (site_id, id_or_slug, id_or_slug),
    ).fetchone()
    return None if row is None else of_row(row)


def of_kind(db: sqlite3.Connection, site_id: str, kind: EnvironmentKind) -> list[Environment]:
    rows = db.execute(
        "SELECT * FROM environment WHERE site_id = ? AND kind = ? ORDER BY id",
        (site_id, kind.value),
    )
    return [of_row(row) for row in rows]


def preview_of(db: sqlite3.Connection, site_id: str, branch: str) -> Environment | None:
    row = db.execute(
        "SELECT * FROM environment WHERE site_id = ? AND branch = ? AND kind = 'preview'",
        (site_id, branch),
    ).fetchone()
    return None if row is None else of_row(row)


def is_preview(db: sqlite3.Connection, env_id: str) -> bool:
    """Say whether an environment is one; what is gone counts as one."""
    environment = get(db, env_id)
    return environment is None or environment.kind is EnvironmentKind.PREVIEW


def slug_is_free(db: sqlite3.Connection, site_id: str, slug: str) -> bool:
    row = db.execute(
        "SELECT 1 FROM environment WHERE site_id = ? AND slug = ?", (site_id, slug)
    ).fetchone()
    return row is None


def hostname_is_free(db: sqlite3.Connection, hostname: str) -> bool:
    row = db.execute("SELECT 1 FROM environment WHERE hostname = ?", (hostname,)).fetchone()
    return row is None


def page(
    db: sqlite3.Connection,
    site_id: str,
    *,
    branch: str | None,
    only: str | None,
    before: str | None,
    limit_count: int,
) -> Page[Environment]:
    """Newest first; `only` narrows the list to one environment id, `branch` to its branch."""
    where: dict[str, Value] = {"site_id": site_id}
    if branch is not None:
        where["branch"] = branch
    if only is not None:
        where["id"] = only
    rows, has_more = newest_first(db, "environment", where, before=before, limit_count=limit_count)
    return Page(tuple(map(of_row, rows)), has_more)


def every(db: sqlite3.Connection) -> list[Environment]:
    return [of_row(row) for row in db.execute("SELECT * FROM environment ORDER BY id")]


def state(db: sqlite3.Connection) -> tuple[int, str | None]:
    """How many there are, and the newest id: it changes when one comes or goes."""
    row = db.execute("SELECT COUNT(*) AS count, MAX(id) AS newest FROM environment").fetchone()
    return row["count"], row["newest"]


def newer_than(db: sqlite3.Connection, env_id: str | None) -> list[Environment]:
    rows = db.execute("SELECT * FROM environment WHERE id > ? ORDER BY id", (env_id or "",))
    return [of_row(row) for row in rows]


def of_site(db: sqlite3.Connection, site_id: str) -> list[Environment]:
    rows = db.execute("SELECT * FROM environment WHERE site_id = ? ORDER BY id", (site_id,))
    return [of_row(row) for row in rows]


def gone(db: sqlite3.Connection, env_ids: Iterable[str]) -> list[str]:
    """Those of the environments that were there once and are not any more: their jobs stay.

    One that never had a job is not among them, and neither is one that these records know nothing
    of, since they were put back from a copy that is older.
    """
    found: list[str] = []
    for chunk in chunks(env_ids):
        rows = db.execute(
            f"SELECT DISTINCT env_id FROM job WHERE env_id IN ({marks(chunk)})"  # noqa: S608
            " AND env_id NOT IN (SELECT id FROM environment)",
            chunk,
        )
        found += [row[0] for row in rows]
    return found


def set_status(db: sqlite3.Connection, env_id: str, status: EnvironmentStatus) -> None:
    """What becomes active is given what is set then, by who makes it so: nothing is due after."""
    db.execute(
        "UPDATE environment SET status = ?,"
        " config_is_due = CASE WHEN ? THEN 0 ELSE config_is_due END WHERE id = ?",
        (status.value, status is EnvironmentStatus.ACTIVE, env_id),
    )


def set_config_due(db: sqlite3.Connection, env_id: str, at: int) -> None:
    """Note that what its programs are given has changed, since it was suspended."""
    db.execute("UPDATE environment SET config_is_due = ? WHERE id = ?", (at, env_id))


def config_is_due(db: sqlite3.Connection, env_id: str, since: int = 1) -> bool:
    """Say whether that changed, at that time or later."""
    row = db.execute("SELECT config_is_due FROM environment WHERE id = ?", (env_id,)).fetchone()
    return row is not None and int(row[0]) >= since


def renew(db: sqlite3.Connection, env_id: str, at: int) -> None:
    db.execute("UPDATE environment SET renewed_at = ? WHERE id = ?", (at, env_id))


def delete(db: sqlite3.Connection, env_id: str) -> None:
    db.execute("DELETE FROM environment WHERE id = ?", (env_id,))
