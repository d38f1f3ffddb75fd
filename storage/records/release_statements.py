"""Signed statements of releases, by environment and sequence."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.records.statements import insert


@dataclass(frozen=True, slots=True)
class IssuedStatement:
    """A statement that was signed. `envelope` is the text of its file, `envelope_sha256` its name.

    `provenance_sha256`: the envelope of the provenance that it goes by.
    """

    envelope_sha256: str
    env_id: str
    sequence: int
    deployment_id: str
    key_id: str
    provenance_sha256: str
    envelope: str
    issued_at: int


def _issued(row: sqlite3.Row) -> IssuedStatement:
    return IssuedStatement(
        envelope_sha256=row["envelope_sha256"],
        env_id=row["env_id"],
        sequence=row["sequence"],
        deployment_id=row["deployment_id"],
        key_id=row["key_id"],
        provenance_sha256=row["provenance_sha256"],
        envelope=row["envelope"],
        issued_at=row["issued_at"],
    )


def add(db: sqlite3.Connection, issued: IssuedStatement) -> None:
    """Raises RecordConflictError when the environment has a statement with this sequence."""
    insert(
        db,
        "release_statement",
        {
            "envelope_sha256": issued.envelope_sha256,
            "env_id": issued.env_id,
            "sequence": issued.sequence,
            "deployment_id": issued.deployment_id,
            "key_id": issued.key_id,
            "provenance_sha256": issued.provenance_sha256,
            "envelope": issued.envelope,
            "issued_at": issued.issued_at,
        },
    )


def last_sequence(db: sqlite3.Connection, env_id: str) -> int:
    """The highest sequence that was issued for an environment; 0 when none was."""
    row = db.execute(
        "SELECT COALESCE(MAX(sequence), 0) AS last FROM release_statement WHERE env_id = ?",
        (env_id,),
    ).fetchone()
    return int(row["last"])


def is_known(db: sqlite3.Connection, envelope_sha256: str) -> bool:
    """Whether the statement was issued by these records; one that was forgotten since was not."""
    row = db.execute(
        "SELECT 1 FROM release_statement WHERE envelope_sha256 = ?", (envelope_sha256,)
    ).fetchone()
    return row is not None


def of_deployment(db: sqlite3.Connection, deployment_id: str) -> IssuedStatement | None:
    """The newest statement of a deployment: the one to go by."""
    row = db.execute(
        "SELECT * FROM release_statement WHERE deployment_id = ? ORDER BY sequence DESC LIMIT 1",
        (deployment_id,),
    ).fetchone()
    return None if row is None else _issued(row)


def of_artifact(
    db: sqlite3.Connection, env_id: str, artifact_id: str, *, limit_count: int
) -> list[IssuedStatement]:
    """The newest statements that released an artifact on an environment, newest first."""
    rows = db.execute(
        "SELECT s.* FROM release_statement s JOIN deployment d ON d.id = s.deployment_id"
        " WHERE s.env_id = ? AND d.artifact_id = ? ORDER BY s.sequence DESC LIMIT ?",
        (env_id, artifact_id, limit_count),
    )
    return [_issued(row) for row in rows]


def outdated(db: sqlite3.Connection, key_id: str) -> list[str]:
    """Deployments of current releases whose newest statement is not by this key, or names another
    provenance than the deployment does now, or is not there.

    Those without a provenance that holds are left out: nothing can be said for them.
    """
    rows = db.execute(
        "SELECT d.id FROM release r JOIN deployment d ON d.id = r.deployment_id"
        " JOIN environment e ON e.id = r.env_id"
        " LEFT JOIN release_statement s ON s.deployment_id = d.id AND s.sequence ="
        "  (SELECT MAX(n.sequence) FROM release_statement n WHERE n.deployment_id = d.id)"
        " WHERE r.is_current = 1 AND (s.sequence IS NULL OR s.key_id <> ?"
        "  OR s.provenance_sha256 <> d.envelope_sha256)"
        " AND EXISTS(SELECT 1 FROM attestation a WHERE a.site_id = r.site_id"
        "  AND a.artifact_id = r.artifact_id AND a.revoked = 0)"
        " ORDER BY d.id",
        (key_id,),
    )
    return [row["id"] for row in rows]


@dataclass(frozen=True, slots=True)
class CurrentStatement:
    """The statement that an environment's current release goes by, and what it must be about."""

    envelope_sha256: str
    env_id: str
    environment: str
    digest: str
    provenance_sha256: str


def each_current(db: sqlite3.Connection) -> list[CurrentStatement]:
    rows = db.execute(
        "SELECT s.envelope_sha256, e.id, site.name || '/' || e.slug AS name, a.digest,"
        " s.provenance_sha256"
        " FROM release r JOIN environment e ON e.id = r.env_id JOIN site ON site.id = e.site_id"
        " JOIN artifact a ON a.id = r.artifact_id"
        " JOIN release_statement s ON s.deployment_id = r.deployment_id"
        " WHERE r.is_current = 1 AND s.sequence = (SELECT MAX(n.sequence)"
        "  FROM release_statement n WHERE n.deployment_id = r.deployment_id) ORDER BY name"
    )
    return [
        CurrentStatement(
            row["envelope_sha256"],
            row["id"],
            row["name"],
            row["digest"],
            row["provenance_sha256"],
        )
        for row in rows
    ]


def each_name(db: sqlite3.Connection) -> list[str]:
    """The names of all envelopes."""
    return [
        row["envelope_sha256"]
        for row in db.execute("SELECT envelope_sha256 FROM release_statement")
    ]


def envelope(db: sqlite3.Connection, envelope_sha256: str) -> str | None:
    """The text of a statement's file, by its name."""
    row = db.execute(
        "SELECT envelope FROM release_statement WHERE envelope_sha256 = ?", (envelope_sha256,)
    ).fetchone()
    return None if row is None else row["envelope"]


def newest(db: sqlite3.Connection) -> list[IssuedStatement]:
    """The newest statement of each environment."""
    rows = db.execute(
        "SELECT s.* FROM release_statement s JOIN environment ON environment.id = s.env_id"
        " WHERE s.sequence = (SELECT MAX(n.sequence) FROM release_statement n"
        " WHERE n.env_id = s.env_id)"
    )
    return [_issued(row) for row in rows]


def prune(db: sqlite3.Connection, env_id: str, *, keep_count: int) -> None:
    """Forget all but the newest statements of an environment, and those of its current release."""
    db.execute(
        "DELETE FROM release_statement WHERE env_id = ? AND sequence <= ? AND deployment_id NOT IN"
        " (SELECT deployment_id FROM release WHERE env_id = ? AND is_current = 1)",
        (env_id, last_sequence(db, env_id) - keep_count, env_id),
    )
