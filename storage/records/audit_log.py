"""The audit log: who changed what, when, and from where. Rows are added and grow old, no more.

Each is chained to the one before (`storage.audit_chain`), in the order of their transactions: what
a command beside the server writes has its place there, too, whatever its clock says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from storage import audit_chain
from storage.audit_chain import BEFORE_ALL, ChainReport
from storage.digest import Digest
from storage.model import Action, ActorRef, AuditEntry, AuditLink
from storage.records.statements import (
    Page,
    Value,
    actor_columns,
    actor_of,
    insert,
    newest_first,
)
from storage.timestamps import rfc3339


def add(db: sqlite3.Connection, entry: AuditEntry) -> None:
    """Write a line behind the newest one."""
    last, previous = head(db)
    sequence = last + 1
    digest = audit_chain.digest_of(_shown(entry, sequence, previous))
    insert(
        db,
        "audit_log",
        {
            "id": entry.id,
            "created_at": entry.created_at,
            **actor_columns(entry.actor),
            "action": entry.action.value,
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


def has_chain(db: sqlite3.Connection) -> bool:
    """Say whether lines can be added. A backup may be older than that."""
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit_anchor'").fetchone()
    return found is not None


def head(db: sqlite3.Connection) -> tuple[int, Digest]:
    """The sequence and the digest of the newest line; of the last forgotten one without any."""
    row = db.execute(
        "SELECT sequence, digest FROM audit_log ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
    return _anchor(db) if row is None else (row["sequence"], Digest(row["digest"]))


def page(
    db: sqlite3.Connection,
    *,
    site_id: str | None,
    env_id: str | None,
    before: str | None,
    limit_count: int,
) -> Page[AuditEntry]:
    """Newest first: of everything, or of one site, or of one environment."""
    where: dict[str, Value] = {}
    if site_id is not None:
        where["site_id"] = site_id
    if env_id is not None:
        where["env_id"] = env_id
    rows, has_more = newest_first(db, "audit_log", where, before=before, limit_count=limit_count)
    return Page(tuple(map(_entry, rows)), has_more)


def forget(db: sqlite3.Connection, before: int) -> int:
    """Remove what is older than `before`, up to the first line that is not, and return how much
    that was. The chain begins behind it then.
    """
    young = db.execute(  # old ones are few: by the index of times it would read all others
        "SELECT sequence FROM audit_log WHERE +created_at >= ? ORDER BY sequence LIMIT 1", (before,)
    ).fetchone()
    last = db.execute(
        "SELECT sequence, digest FROM audit_log WHERE sequence < ? ORDER BY sequence DESC LIMIT 1",
        (head(db)[0] + 1 if young is None else young["sequence"],),
    ).fetchone()
    if last is None:
        return 0
    db.execute("DELETE FROM audit_anchor")
    columns: dict[str, Value] = {"sequence": last["sequence"], "digest": last["digest"]}
    insert(db, "audit_anchor", columns)
    return db.execute("DELETE FROM audit_log WHERE sequence <= ?", (last["sequence"],)).rowcount


def check(db: sqlite3.Connection) -> ChainReport:
    """Check that each line is as it was written and follows from the one before."""
    first, digest = _anchor(db)
    report = audit_chain.check_lines(_lines(db))
    if report.first is None:
        return report
    row = db.execute(
        "SELECT previous FROM audit_log WHERE sequence = ?", (report.first,)
    ).fetchone()
    if report.first != first + 1:
        report.blame(f"lines {first + 1} to {report.first - 1} are missing")
    elif row["previous"] != digest:
        report.blame(f"line {report.first} does not follow from what was forgotten")
    return report


def chain(db: sqlite3.Connection) -> None:
    """Chain the lines of a database whose log had no chain, in the order of their ids."""
    rows = db.execute(
        "SELECT id, created_at, actor_type, actor_id, actor_label, action, target, site_id, env_id,"
        " address, request_id FROM audit_log ORDER BY id"
    ).fetchall()
    previous = BEFORE_ALL
    for sequence, row in enumerate(rows, 1):
        entry = AuditEntry(row[0], row[1], ActorRef(*row[2:5]), Action(row[5]), *row[6:])
        digest = audit_chain.digest_of(_shown(entry, sequence, previous))
        db.execute(
            "UPDATE audit_log SET sequence = ?, previous = ?, digest = ? WHERE id = ?",
            (sequence, previous, digest, row[0]),
        )
        previous = digest


def _anchor(db: sqlite3.Connection) -> tuple[int, Digest]:
    row = db.execute("SELECT sequence, digest FROM audit_anchor").fetchone()
    return (0, BEFORE_ALL) if row is None else (row["sequence"], Digest(row["digest"]))


def _lines(db: sqlite3.Connection) -> Iterator[dict[str, object]]:
    for row in db.execute("SELECT * FROM audit_log ORDER BY sequence"):
        entry = _entry(row)
        assert entry.link is not None, "it was read"
        shown = _shown(entry, entry.link.sequence, entry.link.previous)
        yield {**shown, "digest": str(entry.link.digest)}


def _shown(entry: AuditEntry, sequence: int, previous: Digest) -> dict[str, object]:
    """A line as the API shows it, without its digest: that is what the digest is of."""
    return {
        "id": entry.id,
        "created_at": rfc3339(entry.created_at),
        "actor": {"type": entry.actor.type, "id": entry.actor.id, "label": entry.actor.label},
        "action": entry.action.value,
        "target": entry.target,
        "site_id": entry.site_id,
        "env_id": entry.env_id,
        "address": entry.address,
        "request_id": entry.request_id,
        "sequence": sequence,
        "previous": str(previous),
    }


def _entry(row: sqlite3.Row) -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        created_at=row["created_at"],
        actor=actor_of(row),
        action=Action(row["action"]),
        target=row["target"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        address=row["address"],
        request_id=row["request_id"],
        link=AuditLink(row["sequence"], Digest(row["previous"]), Digest(row["digest"])),
    )
