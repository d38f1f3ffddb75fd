"""Previews, with what decides how long they stay."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from storage.model import Environment
from storage.records import environments

# When it was last pushed, built, rolled or renewed: whichever came last. Was its branch ever built
# for it?
_SELECT = """
    SELECT environment.*,
      MAX(environment.created_at, COALESCE(environment.renewed_at, 0),
          COALESCE((SELECT created_at FROM build WHERE env_id = environment.id
                    ORDER BY id DESC LIMIT 1), 0),
          COALESCE((SELECT created_at FROM deployment WHERE env_id = environment.id
                    ORDER BY id DESC LIMIT 1), 0)) AS used_at,
      EXISTS(SELECT 1 FROM build WHERE env_id = environment.id
             AND ref = 'refs/heads/' || environment.branch) AS had_branch
    FROM environment WHERE kind = 'preview'
"""


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview. `used_at`: when it was made, pushed to, rolled or renewed last. `had_branch`: its
    branch was there once, and built for it.
    """

    environment: Environment
    used_at: int
    had_branch: bool


def every(db: sqlite3.Connection) -> list[Preview]:
    """Those of all sites, site by site."""
    return [_preview(row) for row in db.execute(f"{_SELECT} ORDER BY site_id, id")]


def get(db: sqlite3.Connection, env_id: str) -> Preview | None:
    """Return one; None when it is gone, or no preview."""
    row = db.execute(f"{_SELECT} AND id = ?", (env_id,)).fetchone()
    return None if row is None else _preview(row)


def among(db: sqlite3.Connection, env_ids: Sequence[str]) -> dict[str, Preview]:
    """Return those of these environments that are previews, by id."""
    marks = ", ".join("?" * len(env_ids))
    found = map(_preview, db.execute(f"{_SELECT} AND id IN ({marks})", tuple(env_ids)))
    return {each.environment.id: each for each in found}


def count_of(db: sqlite3.Connection, site_id: str) -> int:
    row = db.execute(
        "SELECT COUNT(*) FROM environment WHERE site_id = ? AND kind = 'preview'", (site_id,)
    ).fetchone()
    return int(row[0])


def _preview(row: sqlite3.Row) -> Preview:
    return Preview(environments.of_row(row), row["used_at"], bool(row["had_branch"]))
