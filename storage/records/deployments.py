"""Deployments: requests to roll one artifact onto one environment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.model import Deployment, Failure, JobStatus, Release, Trigger
from storage.records.blobs import chunks, marks
from storage.records.statements import (
    Page,
    Value,
    actor_columns,
    actor_of,
    failure_of,
    insert,
    newest_first,
    to_text,
    update,
)


def _deployment(row: sqlite3.Row) -> Deployment:
    return Deployment(
        id=row["id"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        job_id=row["job_id"],
        artifact_id=row["artifact_id"],
        envelope_sha256=row["envelope_sha256"],
        trigger=Trigger(row["trigger_kind"]),
        status=JobStatus(row["status"]),
        runs_release_command=bool(row["runs_release_command"]),
        release_id=row["release_id"],
        error=failure_of(row["error"]),
        ref=row["ref"],
        commit=row["commit_id"],
        actor=actor_of(row),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        config_version=row["config_version"],
    )


def add(db: sqlite3.Connection, deployment: Deployment) -> None:
    insert(
        db,
        "deployment",
        {
            "id": deployment.id,
            "site_id": deployment.site_id,
            "env_id": deployment.env_id,
            "job_id": deployment.job_id,
            "artifact_id": deployment.artifact_id,
            "envelope_sha256": deployment.envelope_sha256,
            "trigger_kind": deployment.trigger.value,
            "status": deployment.status.value,
            "runs_release_command": int(deployment.runs_release_command),
            "release_id": deployment.release_id,
            "error": to_text(deployment.error),
            "ref": deployment.ref,
            "commit_id": deployment.commit,
            **actor_columns(deployment.actor),
            "created_at": deployment.created_at,
            "started_at": deployment.started_at,
            "finished_at": deployment.finished_at,
            "config_version": deployment.config_version,
        },
    )


def get(db: sqlite3.Connection, deployment_id: str) -> Deployment | None:
    row = db.execute("SELECT * FROM deployment WHERE id = ?", (deployment_id,)).fetchone()
    return None if row is None else _deployment(row)


def triggers(db: sqlite3.Connection, deployment_ids: Iterable[str]) -> dict[str, Trigger]:
    """What each of the deployments was made by."""
    found: dict[str, Trigger] = {}
    for chunk in chunks(set(deployment_ids)):
        rows = db.execute(
            f"SELECT id, trigger_kind FROM deployment WHERE id IN ({marks(chunk)})",  # noqa: S608
            chunk,
        )
        found.update((row[0], Trigger(row[1])) for row in rows)
    return found


def page(
    db: sqlite3.Connection, env_id: str, *, before: str | None, limit_count: int
) -> Page[Deployment]:
    rows, has_more = newest_first(
        db, "deployment", {"env_id": env_id}, before=before, limit_count=limit_count
    )
    return Page(tuple(map(_deployment, rows)), has_more)


def unfinished(db: sqlite3.Connection, env_id: str | None = None) -> list[Deployment]:
    """Queued and running deployments, oldest first."""
    rows = db.execute(
        "SELECT * FROM deployment WHERE finished_at IS NULL AND (? IS NULL OR env_id = ?)"
        " ORDER BY id",
        (env_id, env_id),
    )
    return [_deployment(row) for row in rows]


def start(db: sqlite3.Connection, deployment_id: str, at: int) -> None:
    update(db, "deployment", deployment_id, {"status": "running", "started_at": at})


def started_at(db: sqlite3.Connection, deployment_id: str) -> int:
    """When it began, in ms since 1970; 0 where it has not."""
    row = db.execute("SELECT started_at FROM deployment WHERE id = ?", (deployment_id,)).fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


def settle_config(db: sqlite3.Connection, deployment_id: str, version: int) -> None:
    """Say which config its release has."""
    update(db, "deployment", deployment_id, {"config_version": version})


def retarget(db: sqlite3.Connection, deployment_id: str, release: Release, envelope: str) -> None:
    """Let a deployment roll what `release` ran, by the provenance `envelope`."""
    columns: dict[str, Value] = {
        "artifact_id": release.artifact_id,
        "envelope_sha256": envelope,
        "ref": release.ref,
        "commit_id": release.commit,
    }
    update(db, "deployment", deployment_id, columns)


def go_by(db: sqlite3.Connection, deployment_id: str, envelope_sha256: str) -> None:
    """Let another provenance speak for the deployment's artifact."""
    update(db, "deployment", deployment_id, {"envelope_sha256": envelope_sha256})


def succeed(db: sqlite3.Connection, deployment_id: str, release_id: str, at: int) -> None:
    update(
        db,
        "deployment",
        deployment_id,
        {"status": "succeeded", "release_id": release_id, "finished_at": at},
    )


def end(
    db: sqlite3.Connection, deployment_id: str, status: JobStatus, error: Failure | None, at: int
) -> None:
    update(
        db,
        "deployment",
        deployment_id,
        {"status": status.value, "error": to_text(error), "finished_at": at},
    )
