"""What was found damaged and cannot be put into quarantine: it lies in its place, and counts as
there, since whatever counts as absent may be overwritten.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.parts import Part, PartKind


def note(db: sqlite3.Connection, part: Part, why: str) -> None:
    """Write down why a part is damaged, and why it is not put away."""
    db.execute(
        "INSERT INTO unsecured(kind, name, why) VALUES(?,?,?)"
        " ON CONFLICT(kind, name) DO UPDATE SET why = excluded.why",
        (part.kind.value, part.name, why),
    )


def every(db: sqlite3.Connection) -> dict[Part, str]:
    """All that is noted, and why. Some of it may be gone by now."""
    rows = db.execute("SELECT kind, name, why FROM unsecured ORDER BY kind, name")
    return {Part(PartKind(row["kind"]), row["name"]): row["why"] for row in rows}


def is_noted(db: sqlite3.Connection, part: Part) -> bool:
    found = db.execute(
        "SELECT 1 FROM unsecured WHERE kind = ? AND name = ?", (part.kind.value, part.name)
    )
    return found.fetchone() is not None


def forget(db: sqlite3.Connection, parts: Iterable[Part]) -> None:
    """They were put away, are whole, or are gone."""
    db.executemany(
        "DELETE FROM unsecured WHERE kind = ? AND name = ?",
        [(part.kind.value, part.name) for part in parts],
    )
