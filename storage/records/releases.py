"""Releases: what ran on an environment, and when. The history only grows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.model import Release
from storage.records.blobs import chunks, marks
from storage.records.statements import Page, actor_columns, actor_of, insert, newest_first


def _release(row: sqlite3.Row) -> Release:
    return Release(
        id=row["id"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        deployment_id=row["deployment_id"],
        artifact_id=row["artifact_id"],
        ref=row["ref"],
        commit=row["commit_id"],
        actor=actor_of(row),
        deployed_at=row["deployed_at"],
        is_current=bool(row["is_current"]),
        config_version=row["config_version"],
    )


def add_current(db: sqlite3.Connection, release: Release) -> None:
    """Add the release as the environment's current one; the one before stops being it."""
    db.execute(
        "UPDATE release SET is_current = 0 WHERE env_id = ? AND is_current = 1", (release.env_id,)
    )
    insert(
        db,
        "release",
        {
            "id": release.id,
            "site_id": release.site_id,
            "env_id": release.env_id,
            "deployment_id": release.deployment_id,
            "artifact_id": release.artifact_id,
            "ref": release.ref,
            "commit_id": release.commit,
            **actor_columns(release.actor),
            "deployed_at": release.deployed_at,
            "is_current": 1,
            "config_version": release.config_version,
        },
    )


def get(db: sqlite3.Connection, release_id: str) -> Release | None:
    row = db.execute("SELECT * FROM release WHERE id = ?", (release_id,)).fetchone()
    return None if row is None else _release(row)


def of_deployment(db: sqlite3.Connection, deployment_id: str) -> Release | None:
    row = db.execute("SELECT * FROM release WHERE deployment_id = ?", (deployment_id,)).fetchone()
    return None if row is None else _release(row)


def current(db: sqlite3.Connection, env_id: str) -> Release | None:
    row = db.execute(
        "SELECT * FROM release WHERE env_id = ? AND is_current = 1", (env_id,)
    ).fetchone()
    return None if row is None else _release(row)


def before(db: sqlite3.Connection, release: Release) -> Release | None:
    """The release that ran on the environment just before `release`."""
    row = db.execute(
        "SELECT * FROM release WHERE env_id = ? AND id < ? ORDER BY id DESC LIMIT 1",
        (release.env_id, release.id),
    ).fetchone()
    return None if row is None else _release(row)


def newest_at(db: sqlite3.Connection, env_id: str, deployment_id: str) -> Release | None:
    """The newest release whose deployment is older than `deployment_id`."""
    row = db.execute(
        "SELECT * FROM release WHERE env_id = ? AND deployment_id < ? ORDER BY id DESC LIMIT 1",
        (env_id, deployment_id),
    ).fetchone()
    return None if row is None else _release(row)


def by_revoked_statements(db: sqlite3.Connection, release_ids: Iterable[str]) -> set[str]:
    """Return those of the releases that went by a statement whose key was revoked since."""
    found: set[str] = set()
    for chunk in chunks(set(release_ids)):
        rows = db.execute(
            "SELECT release.id FROM release"  # noqa: S608 - question marks
            " JOIN deployment ON deployment.id = release.deployment_id"
            " JOIN attestation ON attestation.envelope_sha256 = deployment.envelope_sha256"
            f" WHERE attestation.revoked = 1 AND release.id IN ({marks(chunk)})",
            chunk,
        )
        found.update(row[0] for row in rows)
    return found


def page(
    db: sqlite3.Connection, env_id: str, *, before: str | None, limit_count: int
) -> Page[Release]:
    rows, has_more = newest_first(
        db, "release", {"env_id": env_id}, before=before, limit_count=limit_count
    )
    return Page(tuple(map(_release, rows)), has_more)
