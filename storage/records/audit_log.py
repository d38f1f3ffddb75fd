"""The audit log: who changed what, when, and from where. Rows are added and grow old, no more.

Each is chained to the one before (`storage.audit_chain`), in the order of their transactions: what
a command beside the server writes has its place there, too, whatever its clock says.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from storage import audit_chain
from storage.audit_chain import BEFORE_ALL, ChainReport
from storage.digest import DIGEST_BYTES, Digest
from storage.model import ActorRef, AuditEntry, AuditLink
from storage.records.statements import (
    Page,
    Value,
    actor_columns,
    insert,
    newest_first,
)
from storage.timestamps import rfc3339

_COLUMNS: Final = (
    *("id", "created_at", "actor_type", "actor_id", "actor_label", "action", "target"),
    *("site_id", "env_id", "address", "request_id"),
)
AHEAD_MS: Final = 24 * 3600 * 1000  # a clock that is wrong by less holds nothing up for long
_MAY_BE_NONE: Final = frozenset({"site_id", "env_id", "address", "request_id"})
# Where a line has its place. Others are damaged: they are named, and nothing goes by them.
_HAS_PLACE: Final = "typeof(sequence) = 'integer' AND typeof(digest) = 'blob'"


def add(db: sqlite3.Connection, entry: AuditEntry) -> None:
    """Write a line behind the newest one."""
    last, previous = head(db)
    sequence = last + 1
    digest = audit_chain.digest_of(_shown(entry, sequence, previous))
    _set_mark(db, "audit_head", sequence, digest)
    insert(
        db,
        "audit_log",
        {
            "id": entry.id,
            "created_at": entry.created_at,
            **actor_columns(entry.actor),
            "action": str(entry.action),
            "target": entry.target,
            "site_id": entry.site_id,
            "env_id": entry.env_id,
            "address": entry.address,
            "request_id": entry.request_id,
            "sequence": sequence,
            "previous": previous,
            "digest": digest,
        },
    )


def head(db: sqlite3.Connection) -> tuple[int, Digest]:
    """The sequence and the digest of the newest line that was written; 0 where none ever was."""
    row = db.execute(
        f"SELECT sequence, digest FROM audit_log WHERE {_HAS_PLACE}"  # noqa: S608 - a constant
        " ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
    lines = [] if row is None else [(row["sequence"], Digest(row["digest"]))]
    # The mark, too: what takes the place of newest lines that are gone does not hide that.
    return max([*lines, _mark(db, "audit_anchor"), _mark(db, "audit_head")])


def page(
    db: sqlite3.Connection,
    *,
    site_id: str | None,
    env_id: str | None,
    before: str | None,
    limit_count: int,
) -> Page[AuditEntry]:
    """Newest first: of everything, or of one site, or of one environment.

    What is damaged in a line is shown as far as it can be: it is no line that its digest is of.
    """
    where: dict[str, Value] = {}
    if site_id is not None:
        where["site_id"] = site_id
    if env_id is not None:
        where["env_id"] = env_id
    with _any_text(db, "replace"):
        rows, has_more = newest_first(
            db, "audit_log", where, before=before, limit_count=limit_count
        )
    return Page(tuple(map(_mended, rows)), has_more)


def forget(db: sqlite3.Connection, before: int) -> int:
    """Remove what is older than `before`, up to the first line that is not, and return how much
    that was. The chain begins behind it then.
    """
    young = db.execute(  # old ones are few: by the index of times it would read all others
        f"SELECT sequence FROM audit_log WHERE +created_at >= ? AND {_HAS_PLACE}"  # noqa: S608 - ours
        " ORDER BY sequence LIMIT 1",
        (before,),
    ).fetchone()
    last = db.execute(
        f"SELECT sequence, digest FROM audit_log WHERE sequence < ? AND {_HAS_PLACE}"  # noqa: S608 - ours
        " ORDER BY sequence DESC LIMIT 1",
        (head(db)[0] + 1 if young is None else young["sequence"],),
    ).fetchone()
    if last is None:
        return 0
    _set_mark(db, "audit_anchor", last["sequence"], Digest(last["digest"]))
    return db.execute("DELETE FROM audit_log WHERE sequence <= ?", (last["sequence"],)).rowcount


def ahead(db: sqlite3.Connection, now: int) -> tuple[int, int] | None:
    """The sequence and the time of the first line that is dated behind `now`, by more than a clock
    may be wrong: until then neither it nor any line behind it is forgotten. None without one.
    """
    row = db.execute(
        f"SELECT sequence, created_at FROM audit_log WHERE created_at > ? AND {_HAS_PLACE}"  # noqa: S608 - ours
        " AND typeof(created_at) = 'integer' ORDER BY +sequence LIMIT 1",  # by the index of times
        (now + AHEAD_MS,),
    ).fetchone()
    return None if row is None else (row["sequence"], row["created_at"])


def check(db: sqlite3.Connection) -> ChainReport:
    """Check, as of one moment, that each line is as it was written and follows from the one before,
    and that the newest that was written is there. What is wrong with one hides no other.
    """
    report = ChainReport()
    with _one_moment(db), _any_text(db, "surrogateescape"):
        forgotten, newest = _mark(db, "audit_anchor"), _mark(db, "audit_head")
        for row in db.execute("SELECT rowid, * FROM audit_log ORDER BY sequence, rowid"):
            _check_line(row, report)
    if report.first is not None and report.first != forgotten[0] + 1:
        report.blame(f"lines {forgotten[0] + 1} to {report.first - 1} are missing")
    elif report.first is not None and report.follows != str(forgotten[1]):
        report.blame(f"line {report.first} does not follow from what was forgotten")
    last = forgotten[0] if report.last is None else report.last
    if last < newest[0]:
        report.blame(f"the newest lines, {last + 1} to {newest[0]}, are missing")
    elif last > newest[0] or (report.head or str(forgotten[1])) != str(newest[1]):
        report.blame(f"line {last} is not the one that was written last")
    return report


def chain(db: sqlite3.Connection) -> None:
    """Chain the lines of a database whose log had no chain, in the order of their ids.

    They are taken as they are found, also those that cannot be read: nobody could start otherwise.
    """
    previous, sequence = BEFORE_ALL, 0
    # By their rows: ids may be damaged too, and the lines of years are not held at once.
    row_ids = array("q", (row[0] for row in db.execute("SELECT rowid FROM audit_log ORDER BY id")))
    with _any_text(db, "surrogateescape"):
        for sequence, row_id in enumerate(row_ids, 1):
            found = db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM audit_log WHERE rowid = ?",  # noqa: S608 - ours
                (row_id,),
            ).fetchone()
            columns = dict(zip(_COLUMNS, found, strict=True))
            digest, _ = _digest(columns, sequence, previous)
            db.execute(
                "UPDATE audit_log SET sequence = ?, previous = ?, digest = ? WHERE rowid = ?",
                (sequence, previous, digest, row_id),
            )
            previous = digest
    if sequence:
        _set_mark(db, "audit_head", sequence, previous)


# -- lines as they are found ----------------------------------------------------------------------


@contextlib.contextmanager
def _any_text(db: sqlite3.Connection, errors: str) -> Iterator[None]:
    """Read texts that are no UTF-8, too; by `errors` as of `bytes.decode`."""
    before = db.text_factory
    db.text_factory = lambda data: data.decode("utf-8", errors)
    try:
        yield
    finally:
        db.text_factory = before


@contextlib.contextmanager
def _one_moment(db: sqlite3.Connection) -> Iterator[None]:
    """Let all that is read inside be of one moment: the log grows and is forgotten meanwhile."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def _check_line(row: sqlite3.Row, report: ChainReport) -> None:
    columns = {name: row[name] for name in _COLUMNS}
    sequence, previous, digest = row["sequence"], row["previous"], row["digest"]
    name = ascii(columns["id"])[1:-1] if isinstance(columns["id"], str) else f"row {row['rowid']}"
    if not (isinstance(sequence, int) and _is_digest(previous) and _is_digest(digest)):
        report.blame(f"a line ({name}) has no place in the chain: it is damaged")
        return
    expected, is_readable = _digest(columns, sequence, Digest(previous))
    if expected != digest:
        report.blame(f"line {sequence} ({name}) is not as it was written")
    elif not is_readable:
        report.blame(f"line {sequence} ({name}) cannot be read: it was so before there was a chain")
    report.add(sequence, str(Digest(previous)), str(Digest(digest)))


def _digest(columns: dict[str, Any], sequence: int, previous: Digest) -> tuple[Digest, bool]:
    """The digest that a line has to have, and whether it can be read. Of one that cannot, as with a
    text that is no UTF-8 or a time that is none, it is that of what is there in its place.
    """
    try:
        return audit_chain.digest_of(_shown(_entry(columns), sequence, previous)), True
    except (TypeError, ValueError, OverflowError, OSError):
        found = {**columns, "sequence": sequence, "previous": previous}
        # Bytes as hexadecimal, and those within a text as escapes: any value has its own JSON.
        return Digest.of(json.dumps(found, sort_keys=True, default=bytes.hex).encode()), False


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def _mark(db: sqlite3.Connection, table: str) -> tuple[int, Digest]:
    """The sequence and the digest of a line that is noted by itself: in `audit_anchor` the last one
    that was forgotten, in `audit_head` the newest one.
    """
    row = db.execute(
        f"SELECT sequence, digest FROM {table} WHERE {_HAS_PLACE}"  # noqa: S608 - names are ours
    ).fetchone()
    return (0, BEFORE_ALL) if row is None else (row["sequence"], Digest(row["digest"]))


def _set_mark(db: sqlite3.Connection, table: str, sequence: int, digest: Digest) -> None:
    db.execute(f"DELETE FROM {table}")  # noqa: S608 - names are ours
    insert(db, table, {"sequence": sequence, "digest": digest})


def _shown(entry: AuditEntry, sequence: int, previous: Digest) -> dict[str, object]:
    """A line as the API shows it, without its digest: that is what the digest is of."""
    return {
        "id": entry.id,
        "created_at": rfc3339(entry.created_at),
        "actor": {"type": entry.actor.type, "id": entry.actor.id, "label": entry.actor.label},
        "action": str(entry.action),
        "target": entry.target,
        "site_id": entry.site_id,
        "env_id": entry.env_id,
        "address": entry.address,
        "request_id": entry.request_id,
        "sequence": sequence,
        "previous": str(previous),
    }


def _entry(columns: dict[str, Any]) -> AuditEntry:
    """Raises:
    TypeError: A text is none.
    """
    for name, value in columns.items():
        is_kept = value is None and name in _MAY_BE_NONE
        if name != "created_at" and not is_kept and not isinstance(value, str):
            raise TypeError(name)
    return AuditEntry(
        id=columns["id"],
        created_at=columns["created_at"],
        actor=ActorRef(columns["actor_type"], columns["actor_id"], columns["actor_label"]),
        action=columns["action"],
        target=columns["target"],
        site_id=columns["site_id"],
        env_id=columns["env_id"],
        address=columns["address"],
        request_id=columns["request_id"],
    )


def _mended(row: sqlite3.Row) -> AuditEntry:
    """A row with what can be told of it, however damaged it is."""
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        value = row[name]
        is_kept = isinstance(value, str) or (value is None and name in _MAY_BE_NONE)
        columns[name] = value if is_kept else "" if value is None else str(value)
    try:
        rfc3339(row["created_at"])
        columns["created_at"] = row["created_at"]
    except (TypeError, ValueError, OverflowError, OSError):
        columns["created_at"] = 0
    sequence, previous, digest = row["sequence"], row["previous"], row["digest"]
    link = AuditLink(
        sequence if isinstance(sequence, int) else 0,
        Digest(previous) if _is_digest(previous) else BEFORE_ALL,
        Digest(digest) if _is_digest(digest) else BEFORE_ALL,
    )
    return replace(_entry(columns), link=link)
