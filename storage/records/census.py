"""Counts of what the records hold, for whoever watches the server: by indexes, or of few rows."""

# A constant is all that is put into statements.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.model import EnvironmentKind, EnvironmentStatus, JobStatus, JobType
from storage.parts import PartKind
from storage.records.blobs import CORRUPT, is_attested

_DAMAGED = f"state <> 0 AND state = {CORRUPT}"  # as the indexes of states have it


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How many jobs there are that are not over. `oldest_at`: when the first of them was made."""

    count: int
    oldest_at: int


@dataclass(frozen=True, slots=True)
class Outbox:
    """What webhooks are still to be told: events that no deliveries were made of, and deliveries.

    `oldest_at`: when the first of the deliveries was made; None where there is none.
    """

    events: int
    deliveries: int
    oldest_at: int | None


def unfinished_jobs(db: sqlite3.Connection) -> dict[tuple[JobType, JobStatus], Unfinished]:
    """The jobs that are queued or run, of each type; nothing for what there is none of."""
    rows = db.execute(
        "SELECT type, status, COUNT(*) AS jobs, MIN(created_at) AS oldest_at FROM job"
        " WHERE finished_at IS NULL GROUP BY type, status"
    )
    return {
        (JobType(row["type"]), JobStatus(row["status"])): Unfinished(row["jobs"], row["oldest_at"])
        for row in rows
    }


def sites(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COUNT(*) FROM site").fetchone()[0])


def environments(
    db: sqlite3.Connection,
) -> dict[tuple[EnvironmentKind, EnvironmentStatus], int]:
    """How many environments there are of each kind and status; nothing for none."""
    rows = db.execute("SELECT kind, status, COUNT(*) FROM environment GROUP BY kind, status")
    return {(EnvironmentKind(kind), EnvironmentStatus(status)): n for kind, status, n in rows}


def environments_whose_last_roll_failed(db: sqlite3.Connection) -> int:
    """How many serve something else than they were last asked to, because that failed."""
    row = db.execute(
        "SELECT COUNT(*) FROM environment WHERE (SELECT status FROM deployment"
        " WHERE deployment.env_id = environment.id AND status IN ('succeeded', 'failed')"
        " ORDER BY id DESC LIMIT 1) = 'failed'"
    ).fetchone()
    return int(row[0])


def outbox(db: sqlite3.Connection) -> Outbox:
    (events,) = db.execute("SELECT COUNT(*) FROM webhook_event").fetchone()
    deliveries, oldest_at = db.execute(
        "SELECT COUNT(*), MIN(created_at) FROM webhook_delivery WHERE next_at IS NOT NULL"
    ).fetchone()
    return Outbox(events, deliveries, oldest_at)


def damaged_parts(db: sqlite3.Connection) -> dict[PartKind, int]:
    """How many parts of the store are damaged now, of each kind."""
    (blobs,) = db.execute(f"SELECT COUNT(*) FROM blob WHERE {_DAMAGED}").fetchone()
    (trees,) = db.execute(f"SELECT COUNT(*) FROM tree WHERE {_DAMAGED}").fetchone()
    named = db.execute("SELECT name FROM damage WHERE kind = ?", (PartKind.ENVELOPE.value,))
    envelopes = sum(is_attested(db, row["name"]) for row in named.fetchall())
    return {PartKind.BLOB: blobs, PartKind.TREE: trees, PartKind.ENVELOPE: envelopes}
