"""What retention is decided by, and what becomes of artifacts by its decisions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.model import ActorRef
from storage.records.blobs import chunks, marks
from storage.records.statements import actor_columns, insert
from storage.retention import ArtifactFacts

# The artifacts of each environment's releases by their newest release: an artifact that ran again
# and again pushes nothing out. Only environments that are there count.
_RELEASES = """
SELECT artifact_id, MAX(is_current) AS is_current, MIN(place) AS place FROM (
  SELECT artifact_id, is_current,
    ROW_NUMBER() OVER (PARTITION BY env_id ORDER BY newest DESC) AS place
  FROM (SELECT env_id, artifact_id, MAX(id) AS newest, MAX(is_current) AS is_current
        FROM release WHERE env_id IN (SELECT id FROM environment)
        GROUP BY env_id, artifact_id) AS ran) AS ranked
GROUP BY artifact_id
"""
# The artifacts of each branch that an environment stands for, by their newest build.
_BRANCHES = """
SELECT artifact_id, MIN(place) AS place FROM (
  SELECT artifact_id, ROW_NUMBER() OVER (PARTITION BY site_id, ref ORDER BY newest DESC) AS place
  FROM (SELECT site_id, ref, artifact_id, MAX(build_id) AS newest FROM attestation
        WHERE EXISTS(SELECT 1 FROM environment WHERE environment.site_id = attestation.site_id
                     AND 'refs/heads/' || environment.branch = attestation.ref)
        GROUP BY site_id, ref, artifact_id) AS built) AS ranked
GROUP BY artifact_id
"""


def facts(db: sqlite3.Connection) -> list[ArtifactFacts]:
    """What is known of every artifact that is not dropped."""
    built = dict(
        db.execute(
            "SELECT artifact_id, MAX(created_at) FROM attestation"
            " WHERE site_id IN (SELECT id FROM site) GROUP BY artifact_id"
        ).fetchall()
    )
    pinned = {row[0] for row in db.execute("SELECT artifact_id FROM artifact_pin")}
    deploying = {
        row[0] for row in db.execute("SELECT artifact_id FROM deployment WHERE finished_at IS NULL")
    }
    released = {row[0]: (bool(row[1]), row[2]) for row in db.execute(_RELEASES)}
    of_branch = dict(db.execute(_BRANCHES).fetchall())
    return [
        ArtifactFacts(
            id=row["id"],
            digest=row["digest"],
            size_bytes=row["size_bytes"],
            expired_at=row["expired_at"],
            built_at=built.get(row["id"]),
            is_pinned=row["id"] in pinned,
            is_current=released.get(row["id"], (False, None))[0],
            is_deploying=row["id"] in deploying,
            release_rank=released.get(row["id"], (False, None))[1],
            branch_rank=of_branch.get(row["id"]),
        )
        for row in db.execute("SELECT * FROM artifact WHERE dropped_at IS NULL ORDER BY id")
    ]


def site_names(db: sqlite3.Connection, artifact_ids: Iterable[str]) -> dict[str, list[str]]:
    """The names of the sites that built each artifact; those that are gone have none."""
    names: dict[str, list[str]] = {}
    for chunk in chunks(artifact_ids):
        rows = db.execute(
            "SELECT DISTINCT artifact_id, name FROM attestation"  # noqa: S608 - question marks
            f" JOIN site ON site.id = site_id WHERE artifact_id IN ({marks(chunk)}) ORDER BY name",
            chunk,
        )
        for artifact_id, name in rows:
            names.setdefault(artifact_id, []).append(name)
    return names


def expire(db: sqlite3.Connection, artifact_ids: Iterable[str], at: int) -> None:
    db.executemany(
        "UPDATE artifact SET expired_at = ? WHERE id = ? AND expired_at IS NULL",
        [(at, artifact_id) for artifact_id in artifact_ids],
    )


def restore(db: sqlite3.Connection, artifact_ids: Iterable[str]) -> None:
    """Bring expired artifacts back; those that are dropped stay so."""
    db.executemany(
        "UPDATE artifact SET expired_at = NULL WHERE id = ? AND dropped_at IS NULL",
        [(artifact_id,) for artifact_id in artifact_ids],
    )


def drop(db: sqlite3.Connection, artifact_id: str, at: int) -> list[str]:
    """Let an artifact go; return the names of the envelopes that go with it.

    Its row stays, since the history refers to it. So do the statements that something ran by, and
    the newest of all: the next one's place is counted from it.
    """
    db.execute(
        "UPDATE artifact SET expired_at = COALESCE(expired_at, ?), dropped_at = ? WHERE id = ?",
        (at, at, artifact_id),
    )
    rows = db.execute(
        "DELETE FROM attestation WHERE artifact_id = ? AND envelope_sha256 NOT IN"
        " (SELECT envelope_sha256 FROM deployment WHERE artifact_id = ?"
        "  AND release_id IS NOT NULL)"
        " AND sequence < (SELECT MAX(sequence) FROM attestation) RETURNING envelope_sha256",
        (artifact_id, artifact_id),
    ).fetchall()
    return [row[0] for row in rows]


# -- runs ---------------------------------------------------------------------------------------


def note_run(db: sqlite3.Connection, at: int, *, is_thorough: bool) -> None:
    """Write down that the collector begins, and whether it will look at every file."""
    db.execute(
        "INSERT INTO collection(id, began_at, thorough_at) VALUES(1,?,?) ON CONFLICT(id) DO UPDATE"
        " SET began_at = excluded.began_at,"
        " thorough_at = COALESCE(excluded.thorough_at, collection.thorough_at)",
        (at, at if is_thorough else None),
    )


def began_at(db: sqlite3.Connection) -> int | None:
    """When the collector last began."""
    row = db.execute("SELECT began_at FROM collection").fetchone()
    return None if row is None else row[0]


def thorough_at(db: sqlite3.Connection) -> int | None:
    """When the collector last began to look at every file."""
    row = db.execute("SELECT thorough_at FROM collection").fetchone()
    return None if row is None else row[0]


# -- pins -----------------------------------------------------------------------------------------


def pin(db: sqlite3.Connection, site_id: str, artifact_id: str, actor: ActorRef, at: int) -> None:
    """Keep an artifact for a site, until it is unpinned. An expired one comes back with it."""
    if not is_pinned(db, site_id, artifact_id):
        insert(
            db,
            "artifact_pin",
            {
                "site_id": site_id,
                "artifact_id": artifact_id,
                **actor_columns(actor),
                "created_at": at,
            },
        )
    restore(db, [artifact_id])


def unpin(db: sqlite3.Connection, site_id: str, artifact_id: str) -> None:
    db.execute(
        "DELETE FROM artifact_pin WHERE site_id = ? AND artifact_id = ?", (site_id, artifact_id)
    )


def is_pinned(db: sqlite3.Connection, site_id: str, artifact_id: str) -> bool:
    return bool(pinned(db, site_id, [artifact_id]))


def pinned(db: sqlite3.Connection, site_id: str, artifact_ids: Iterable[str]) -> set[str]:
    """Return those of the artifacts that are pinned for a site."""
    found: set[str] = set()
    for chunk in chunks(set(artifact_ids)):
        rows = db.execute(
            "SELECT artifact_id FROM artifact_pin WHERE site_id = ?"  # noqa: S608 - question marks
            f" AND artifact_id IN ({marks(chunk)})",
            (site_id, *chunk),
        )
        found.update(row[0] for row in rows)
    return found
