"""What the scrub goes by: when each part was last read, and what came of it."""
# Constants and question marks are all that is put into statements.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from storage.parts import Part, PartKind
from storage.records.blobs import LIVE

_AHEAD_MS = 60_000  # less is no wrong clock: something was taken in meanwhile
_TABLES = {
    PartKind.TREE: ("tree", "digest", f"state = {LIVE}"),
    PartKind.ENVELOPE: ("attestation", "envelope_sha256", "1 = 1"),
    PartKind.BLOB: ("blob", "key", f"state = {LIVE}"),
}


@dataclass(frozen=True, slots=True)
class Due:
    """A part that should be read again. `size_bytes` is that of a blob."""

    part: Part
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the scrub is.

    Attributes:
        parts: How many parts there are to be read, time and again.
        due: How many of them should be read again.
        due_bytes: How large their blobs are together.
        oldest: When the one was read that was read longest ago; None when one was never read.
        read_at: When the scrub last read anything; None before it ever did.
        found, mended: How many damaged parts it found, and how many it repaired.
    """

    parts: int
    due: int
    due_bytes: int
    oldest: int | None
    read_at: int | None
    found: int
    mended: int


def due(db: sqlite3.Connection, before: int, now: int, *, limit_count: int) -> list[Due]:
    """The parts that were not read since `before`: never read ones first, then by time. Then those
    that were read after `now`, by a clock that was wrong: nobody knows when that was.

    Statements come before blobs: they are few and small, and say what the blobs are for.
    """
    found: list[Due] = []
    for kind, (table, column, condition) in _TABLES.items():
        size = "size_bytes" if kind is PartKind.BLOB else "NULL"
        # Apart, so that each is a range of the index.
        for when, values in (
            ("verified_at IS NULL", ()),
            ("verified_at < ?", (before,)),
            ("verified_at > ?", (now + _AHEAD_MS,)),
        ):
            rows = db.execute(
                f"SELECT {column} AS name, {size} AS size_bytes FROM {table} WHERE {condition}"
                f" AND {when} ORDER BY verified_at LIMIT ?",
                (*values, limit_count - len(found)),
            )
            found += [Due(_part(kind, row["name"]), row["size_bytes"]) for row in rows]
    return found


def note_read(db: sqlite3.Connection, parts: Iterable[Part], at: int) -> None:
    """The parts were read, and are what they must be."""
    for kind, (table, column, _) in _TABLES.items():
        db.executemany(
            f"UPDATE {table} SET verified_at = ? WHERE {column} = ?",
            [(at, _name(part)) for part in parts if part.kind is kind],
        )


def note_work(
    db: sqlite3.Connection, at: int, *, parts: int, size_bytes: int, found: int, mended: int
) -> None:
    """Add to what the scrub has done so far."""
    db.execute(
        "INSERT INTO scrub(id, read_at, parts, size_bytes, found, mended) VALUES(1,?,?,?,?,?)"
        " ON CONFLICT(id) DO UPDATE SET read_at = excluded.read_at,"
        " parts = scrub.parts + excluded.parts, size_bytes = scrub.size_bytes"
        " + excluded.size_bytes, found = scrub.found + excluded.found,"
        " mended = scrub.mended + excluded.mended",
        (at, parts, size_bytes, found, mended),
    )


def progress(db: sqlite3.Connection, before: int, now: int) -> Progress:
    """How far the scrub is: `before` and `now` as for `due`."""
    parts = due_count = due_bytes = 0
    oldest: list[int | None] = []
    for kind, (table, _, condition) in _TABLES.items():
        size = "size_bytes" if kind is PartKind.BLOB else "0"
        row = db.execute(
            "SELECT COUNT(*) AS parts, MIN(COALESCE(verified_at, -1)) AS oldest,"
            " COALESCE(SUM(is_due), 0) AS due, COALESCE(SUM(is_due * size), 0) AS due_bytes"
            f" FROM (SELECT verified_at, {size} AS size, CASE WHEN verified_at IS NULL"
            " OR verified_at < ? OR verified_at > ? THEN 1 ELSE 0 END AS is_due"
            f" FROM {table} WHERE {condition}) AS p",
            (before, now + _AHEAD_MS),
        ).fetchone()
        parts += row["parts"]
        due_count += row["due"]
        due_bytes += row["due_bytes"]
        if row["parts"]:
            oldest.append(row["oldest"])
    done = db.execute("SELECT read_at, found, mended FROM scrub").fetchone() or (None, 0, 0)
    first = min((at for at in oldest if at is not None), default=-1)
    return Progress(parts, due_count, due_bytes, first if first >= 0 else None, *done)


def _part(kind: PartKind, name: bytes | str) -> Part:
    if isinstance(name, str):
        return Part.of_envelope(name)
    return Part.of_blob(name) if kind is PartKind.BLOB else Part.of_tree(name)


def _name(part: Part) -> bytes | str:
    if part.kind is PartKind.ENVELOPE:
        return part.name
    return bytes(part.key if part.kind is PartKind.BLOB else part.digest)
