"""Variables and secrets of sites and environments. Their values come here sealed."""

from __future__ import annotations

import sqlite3

from storage.model import Variable, VariableUse
from storage.records.statements import insert


def _variable(row: sqlite3.Row) -> Variable:
    return Variable(
        site_id=row["site_id"],
        env_id=row["env_id"],
        name=row["name"],
        is_secret=bool(row["is_secret"]),
        used_in=VariableUse(row["used_in"]),
        sealed=row["sealed"],
        updated_at=row["updated_at"],
    )


def put(db: sqlite3.Connection, variable: Variable) -> None:
    """Keep it; it takes the place of the one with its name there.

    Raises:
        RecordConflictError: Its site or environment is gone.
    """
    delete(db, variable.site_id, variable.env_id, variable.name)
    insert(
        db,
        "variable",
        {
            "site_id": variable.site_id,
            "env_id": variable.env_id,
            "name": variable.name,
            "is_secret": int(variable.is_secret),
            "used_in": variable.used_in,
            "sealed": variable.sealed,
            "updated_at": variable.updated_at,
        },
    )


def find(db: sqlite3.Connection, site_id: str, env_id: str | None, name: str) -> Variable | None:
    """What is set at that very place: for a site, with `env_id` None, its default."""
    row = db.execute(
        "SELECT * FROM variable WHERE site_id = ? AND env_id IS ? AND name = ?",
        (site_id, env_id, name),
    ).fetchone()
    return None if row is None else _variable(row)


def of_place(db: sqlite3.Connection, site_id: str, env_id: str | None) -> list[Variable]:
    """What is set at that very place, by name."""
    rows = db.execute(
        "SELECT * FROM variable WHERE site_id = ? AND env_id IS ? ORDER BY name",
        (site_id, env_id),
    )
    return [_variable(row) for row in rows]


def delete(db: sqlite3.Connection, site_id: str, env_id: str | None, name: str) -> bool:
    """Forget it. False when it was not there."""
    return (
        db.execute(
            "DELETE FROM variable WHERE site_id = ? AND env_id IS ? AND name = ?",
            (site_id, env_id, name),
        ).rowcount
        == 1
    )


def has_any(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM variable LIMIT 1").fetchone() is not None
