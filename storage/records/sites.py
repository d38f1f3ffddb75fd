"""Sites and their branch routes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from storage.model import BranchRoute, RouteTarget, Site
from storage.records.statements import (
    Page,
    Value,
    insert,
    newest_first,
    push_policy_of,
    update,
)


def _site(row: sqlite3.Row) -> Site:
    return Site(
        row["id"],
        row["name"],
        row["default_branch"],
        row["created_at"],
        push_policy_of(row["when_pushed_again"]),
        bool(row["default_is_open"]),
    )


def add(db: sqlite3.Connection, site: Site) -> None:
    """Raises RecordConflictError when the name is taken."""
    insert(
        db,
        "site",
        {
            "id": site.id,
            "name": site.name,
            "default_branch": site.default_branch,
            "created_at": site.created_at,
            "when_pushed_again": site.when_pushed_again,
            "default_is_open": int(site.is_default_open),
        },
    )


def find(db: sqlite3.Connection, id_or_name: str) -> Site | None:
    row = db.execute(
        "SELECT * FROM site WHERE id = ? OR name = ?", (id_or_name, id_or_name)
    ).fetchone()
    return None if row is None else _site(row)


def page(
    db: sqlite3.Connection, *, only: str | None, before: str | None, limit_count: int
) -> Page[Site]:
    """Newest first; `only` narrows the list to one site id."""
    where: dict[str, Value] = {} if only is None else {"id": only}
    rows, has_more = newest_first(db, "site", where, before=before, limit_count=limit_count)
    return Page(tuple(map(_site, rows)), has_more)


def every(db: sqlite3.Connection) -> list[Site]:
    return [_site(row) for row in db.execute("SELECT * FROM site ORDER BY id")]


def delete(db: sqlite3.Connection, site_id: str) -> None:
    """Environments, routes and keys of the site go with it; its history stays."""
    db.execute("DELETE FROM site WHERE id = ?", (site_id,))


def set_default_branch(db: sqlite3.Connection, site_id: str, branch: str) -> None:
    """Choose it: no push changes it any more."""
    update(db, "site", site_id, {"default_branch": branch, "default_is_open": 0})


def routes(db: sqlite3.Connection, site_id: str) -> tuple[BranchRoute, ...]:
    rows = db.execute(
        "SELECT pattern, target FROM branch_route WHERE site_id = ? ORDER BY position", (site_id,)
    )
    return tuple(BranchRoute(row["pattern"], RouteTarget(row["target"])) for row in rows)


def replace_routes(db: sqlite3.Connection, site_id: str, wanted: Sequence[BranchRoute]) -> None:
    db.execute("DELETE FROM branch_route WHERE site_id = ?", (site_id,))
    for position, route in enumerate(wanted):
        insert(
            db,
            "branch_route",
            {
                "site_id": site_id,
                "position": position,
                "pattern": route.pattern,
                "target": route.target.value,
            },
        )
