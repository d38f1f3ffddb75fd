"""Builds: runs that turn a commit into an artifact."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

import msgspec

from storage.model import Attestation, Build, Failure, JobStatus
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


def _build(row: sqlite3.Row) -> Build:
    return Build(
        id=row["id"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        job_id=row["job_id"],
        ref=row["ref"],
        commit=row["commit_id"],
        status=JobStatus(row["status"]),
        clean=bool(row["clean"]),
        deploys=bool(row["deploys"]),
        pushed=bool(row["pushed"]),
        cached=bool(row["cached"]),
        profile=row["profile"],
        artifact_id=row["artifact_id"],
        deployment_id=row["deployment_id"],
        superseded_by=row["superseded_by"],
        error=failure_of(row["error"]),
        timings=msgspec.json.decode(row["timings"], type=dict[str, float]),
        actor=actor_of(row),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def add(db: sqlite3.Connection, build: Build) -> None:
    insert(
        db,
        "build",
        {
            "id": build.id,
            "site_id": build.site_id,
            "env_id": build.env_id,
            "job_id": build.job_id,
            "ref": build.ref,
            "commit_id": build.commit,
            "status": build.status.value,
            "clean": int(build.clean),
            "deploys": int(build.deploys),
            "pushed": int(build.pushed),
            "cached": int(build.cached),
            "profile": build.profile,
            "artifact_id": build.artifact_id,
            "deployment_id": build.deployment_id,
            "superseded_by": build.superseded_by,
            "error": to_text(build.error),
            "timings": to_text(build.timings),
            **actor_columns(build.actor),
            "created_at": build.created_at,
            "started_at": build.started_at,
            "finished_at": build.finished_at,
        },
    )


def get(db: sqlite3.Connection, build_id: str) -> Build | None:
    row = db.execute("SELECT * FROM build WHERE id = ?", (build_id,)).fetchone()
    return None if row is None else _build(row)


def page(
    db: sqlite3.Connection, env_id: str, *, before: str | None, limit_count: int
) -> Page[Build]:
    rows, has_more = newest_first(
        db, "build", {"env_id": env_id}, before=before, limit_count=limit_count
    )
    return Page(tuple(map(_build, rows)), has_more)


def unfinished_of(db: sqlite3.Connection, env_id: str) -> list[Build]:
    """Queued and running builds of one environment, oldest first."""
    rows = db.execute(
        "SELECT * FROM build WHERE finished_at IS NULL AND env_id = ? ORDER BY id", (env_id,)
    )
    return [_build(row) for row in rows]


def newest_deployed_ref(db: sqlite3.Connection, env_id: str) -> str | None:
    """The ref of the newest build that was made to be deployed onto an environment."""
    row = db.execute(
        "SELECT ref FROM build WHERE env_id = ? AND deploys = 1 AND ref IS NOT NULL"
        " ORDER BY id DESC LIMIT 1",
        (env_id,),
    ).fetchone()
    return None if row is None else row["ref"]


def ask_too(db: sqlite3.Connection, build_id: str, actor_id: str) -> None:
    """Record that another actor asked for the same build, while it was queued or running."""
    db.execute(
        "INSERT INTO build_asker(build_id, actor_id) VALUES(?, ?) ON CONFLICT DO NOTHING",
        (build_id, actor_id),
    )


def is_asked_for_by(db: sqlite3.Connection, build_id: str, actor_id: str) -> bool:
    """Whether the build was made for the actor, alone or among others."""
    row = db.execute(
        "SELECT 1 FROM build WHERE id = ? AND actor_id = ? UNION ALL"
        " SELECT 1 FROM build_asker WHERE build_id = ? AND actor_id = ?",
        (build_id, actor_id, build_id, actor_id),
    ).fetchone()
    return row is not None


def is_deployment_asked_for_by(db: sqlite3.Connection, deployment_id: str, actor_id: str) -> bool:
    """Whether the actor asked, beside another, for the build that went on to the deployment."""
    row = db.execute(
        "SELECT 1 FROM build_asker JOIN build ON build.id = build_asker.build_id"
        " WHERE build_asker.actor_id = ? AND build.deployment_id = ?",
        (actor_id, deployment_id),
    ).fetchone()
    return row is not None


def start(db: sqlite3.Connection, build_id: str, at: int) -> None:
    update(db, "build", build_id, {"status": "running", "started_at": at})


def requeue(db: sqlite3.Connection, build_id: str) -> None:
    update(db, "build", build_id, {"status": "queued"})


def give(db: sqlite3.Connection, build_id: str, made_by: Attestation) -> None:
    """Write down what a build gave, also when it was canceled meanwhile: its word counts."""
    update(
        db,
        "build",
        build_id,
        {"artifact_id": made_by.artifact_id, "envelope_sha256": made_by.envelope_sha256},
    )


def succeed(
    db: sqlite3.Connection,
    build_id: str,
    made_by: Attestation,
    *,
    deployment_id: str | None,
    timings: Mapping[str, float],
    at: int,
    cached: bool = False,
) -> None:
    """`made_by`: the statement that it gave; `cached`: an earlier build made that."""
    update(
        db,
        "build",
        build_id,
        {
            "status": "succeeded",
            "artifact_id": made_by.artifact_id,
            "envelope_sha256": made_by.envelope_sha256,
            "deployment_id": deployment_id,
            "profile": made_by.profile,
            "cached": int(cached),
            "timings": to_text(timings),
            "finished_at": at,
        },
    )


def end(
    db: sqlite3.Connection,
    build_id: str,
    status: JobStatus,
    error: Failure | None,
    at: int,
    *,
    timings: Mapping[str, float] | None = None,
) -> None:
    columns: dict[str, Value] = {
        "status": status.value,
        "error": to_text(error),
        "finished_at": at,
    }
    if timings is not None:
        columns["timings"] = to_text(timings)
    update(db, "build", build_id, columns)


def supersede(db: sqlite3.Connection, build_id: str, *, by: str) -> None:
    update(db, "build", build_id, {"superseded_by": by})
