"""The few statements that every table needs, made from column names of ours (never from input)."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from storage.model import ActorRef, Failure, PushPolicy

T = TypeVar("T")
Value = str | int | bytes | float | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list, and whether more follow. The next page starts after the last item."""

    items: tuple[T, ...]
    has_more: bool


def insert(db: sqlite3.Connection, table: str, columns: dict[str, Value]) -> None:
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    db.execute(
        f"INSERT INTO {table}({names}) VALUES({marks})",
        tuple(columns.values()),
    )


def update(db: sqlite3.Connection, table: str, row_id: str, columns: dict[str, Value]) -> None:
    marks = ", ".join(f"{name} = ?" for name in columns)
    db.execute(
        f"UPDATE {table} SET {marks} WHERE id = ?",  # noqa: S608 - names are ours
        (*columns.values(), row_id),
    )


def newest_first(
    db: sqlite3.Connection,
    table: str,
    where: Mapping[str, Value],
    *,
    before: str | None,
    limit_count: int,
) -> tuple[list[sqlite3.Row], bool]:
    """Return up to `limit_count` rows with ids below `before`, largest first, and if more follow.

    Ids grow with time, so that rows written meanwhile never move a page's boundary.
    """
    terms = [f"{name} = ?" for name in where]
    values: list[Value] = list(where.values())
    if before is not None:
        terms.append("id < ?")
        values.append(before)
    condition = " AND ".join(terms) or "1 = 1"
    rows = db.execute(
        f"SELECT * FROM {table} WHERE {condition} ORDER BY id DESC LIMIT ?",  # noqa: S608 - ours
        (*values, limit_count + 1),
    ).fetchall()
    return rows[:limit_count], len(rows) > limit_count


def actor_columns(actor: ActorRef) -> dict[str, Value]:
    return {"actor_type": actor.type, "actor_id": actor.id, "actor_label": actor.label}


def actor_of(row: sqlite3.Row) -> ActorRef:
    return ActorRef(row["actor_type"], row["actor_id"], row["actor_label"])


def to_text(value: object) -> str | None:
    """JSON for a column, or None for None."""
    return None if value is None else msgspec.json.encode(value).decode()


def failure_of(text: str | None) -> Failure | None:
    return None if text is None else msgspec.json.decode(text, type=Failure)


def push_policy_of(text: str | None) -> PushPolicy | None:
    return None if text is None else PushPolicy(text)


def texts_of(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


def data_version(db: sqlite3.Connection) -> int:
    """A number that changes when another connection, of whatever process, commits.

    Source: sqlite.org "PRAGMA data_version".
    """
    (version,) = db.execute("PRAGMA data_version").fetchone()
    return int(version)


def newest_ids(db: sqlite3.Connection) -> list[str]:
    """The newest id of each kind of row that lists are ordered by."""
    tables = ("job", "push", "build", "deployment", "release", "domain")
    found = [
        db.execute(f"SELECT MAX(id) AS id FROM {table}").fetchone()["id"]  # noqa: S608 - ours
        for table in tables
    ]
    return [row_id for row_id in found if row_id is not None]
