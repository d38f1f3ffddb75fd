"""Jobs: the durable queue, and the handle behind every 202."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from storage.model import Failure, Job, JobStatus, JobType
from storage.records.statements import Page, Value, failure_of, insert, newest_first, to_text


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        type=JobType(row["type"]),
        status=JobStatus(row["status"]),
        progress=row["progress"],
        resource_type=row["resource_type"],
        resource_id=row["resource_id"],
        site_id=row["site_id"],
        env_id=row["env_id"],
        result=None
        if row["result"] is None
        else msgspec.json.decode(row["result"], type=dict[str, str]),
        error=failure_of(row["error"]),
        version=row["version"],
        owner=row["owner"],
        lease_id=row["lease_id"],
        attempts=row["attempts"],
        losses=row["losses"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def add(db: sqlite3.Connection, job: Job) -> None:
    insert(
        db,
        "job",
        {
            "id": job.id,
            "type": job.type.value,
            "status": job.status.value,
            "progress": job.progress,
            "resource_type": job.resource_type,
            "resource_id": job.resource_id,
            "site_id": job.site_id,
            "env_id": job.env_id,
            "result": to_text(job.result),
            "error": to_text(job.error),
            "version": job.version,
            "owner": job.owner,
            "lease_id": job.lease_id,
            "attempts": job.attempts,
            "losses": job.losses,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
        },
    )


def get(db: sqlite3.Connection, job_id: str) -> Job | None:
    row = db.execute("SELECT * FROM job WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else _job(row)


def unfinished(db: sqlite3.Connection, job_type: JobType) -> list[Job]:
    """Queued and running jobs of one type, oldest first."""
    rows = db.execute(
        "SELECT * FROM job WHERE finished_at IS NULL AND type = ? ORDER BY id", (job_type.value,)
    )
    return [_job(row) for row in rows]


def unfinished_of(db: sqlite3.Connection, env_id: str) -> list[Job]:
    """Queued and running jobs of one environment, oldest first."""
    rows = db.execute(
        "SELECT * FROM job WHERE finished_at IS NULL AND env_id = ? ORDER BY id", (env_id,)
    )
    return [_job(row) for row in rows]


def unfinished_or_last(db: sqlite3.Connection, *, within_ms: int) -> list[Job]:
    """Jobs that are not over, and those that ended within `within_ms` of the last end."""
    rows = db.execute(
        "SELECT * FROM job WHERE finished_at IS NULL OR finished_at >="
        " (SELECT MAX(finished_at) FROM job) - ? ORDER BY id",
        (within_ms,),
    )
    return [_job(row) for row in rows]


def newest_and_unfinished(db: sqlite3.Connection) -> set[str]:
    """Ids of the newest job of each type of each environment, and of all that are not over."""
    rows = db.execute(
        "SELECT MAX(job.id) AS id FROM job JOIN environment ON environment.id = job.env_id"
        " GROUP BY job.env_id, job.type UNION SELECT id FROM job WHERE finished_at IS NULL"
    )
    return {row["id"] for row in rows}


def page(
    db: sqlite3.Connection,
    *,
    status: JobStatus | None,
    resource_type: str | None,
    site_id: str | None,
    env_id: str | None,
    before: str | None,
    limit_count: int,
) -> Page[Job]:
    filters: dict[str, Value] = {
        "status": status.value if status else None,
        "resource_type": resource_type,
        "site_id": site_id,
        "env_id": env_id,
    }
    where = {name: value for name, value in filters.items() if value is not None}
    rows, has_more = newest_first(db, "job", where, before=before, limit_count=limit_count)
    return Page(tuple(map(_job, rows)), has_more)


def start(
    db: sqlite3.Connection, job_id: str, *, owner: str | None, lease_id: str | None, at: int
) -> Job | None:
    """Queued → running. Returns the job, or None when it was not queued (any more)."""
    return _changed(
        db,
        "UPDATE job SET status = 'running', owner = ?, lease_id = ?, attempts = attempts + 1,"
        " started_at = COALESCE(started_at, ?), version = version + 1"
        " WHERE id = ? AND status = 'queued' RETURNING *",
        (owner, lease_id, at, job_id),
    )


def requeue(db: sqlite3.Connection, job_id: str, *, is_loss: bool) -> Job | None:
    """Running → queued. `is_loss`: its owner was lost, and did not give it back."""
    return _changed(
        db,
        "UPDATE job SET status = 'queued', owner = NULL, lease_id = NULL, losses = losses + ?,"
        " version = version + 1 WHERE id = ? AND status = 'running' RETURNING *",
        (int(is_loss), job_id),
    )


def advance(db: sqlite3.Connection, job_id: str, progress: int) -> Job | None:
    """Raise the progress of a running job; it never falls."""
    return _changed(
        db,
        "UPDATE job SET progress = ?, version = version + 1"
        " WHERE id = ? AND status = 'running' AND progress < ? RETURNING *",
        (progress, job_id, progress),
    )


def finish(
    db: sqlite3.Connection,
    job_id: str,
    status: JobStatus,
    *,
    result: dict[str, str] | None = None,
    error: Failure | None = None,
    at: int,
) -> Job | None:
    """Queued or running → `status`. Returns None when the job was already over: that stays."""
    return _changed(
        db,
        "UPDATE job SET status = ?, result = ?, error = ?, finished_at = ?, owner = NULL,"
        " lease_id = NULL, progress = CASE WHEN ? = 'succeeded' THEN 100 ELSE progress END,"
        " version = version + 1 WHERE id = ? AND finished_at IS NULL RETURNING *",
        (status.value, to_text(result), to_text(error), at, status.value, job_id),
    )


def _changed(db: sqlite3.Connection, statement: str, values: Sequence[Value]) -> Job | None:
    rows = db.execute(statement, tuple(values)).fetchall()
    return _job(rows[0]) if rows else None
