"""Copies of the database: single files that no server has open, such as those in backups."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from storage.errors import RecordsError
from storage.model import Failure, JobStatus, JobType
from storage.records import builds, deployments, jobs, migrations
from storage.records.blobs import DELETING
from storage.records.db import mapped_errors


@contextlib.contextmanager
def editing(path: Path) -> Iterator[sqlite3.Connection]:
    """Change a copy in one transaction; it stays a single file. The caller makes it durable.

    Raises:
        RecordsError: It is no database, or refused.
    """
    with _alone(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")


def update(path: Path) -> None:
    """Let a sound copy go through the steps that are newer than it; it stays a single file. The
    caller makes it durable.

    Raises:
        RecordsError: It is no database, is damaged, or refused.
    """
    with _alone(path) as db:
        require_sound(db)
        migrations.apply(db)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[sqlite3.Connection]:
    with mapped_errors():
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            # Alone, so that it needs no file that processes share; and its log goes into it.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=DELETE")
            db.execute("PRAGMA synchronous=OFF")
            db.execute("PRAGMA foreign_keys=ON")
            yield db
        finally:
            db.close()


@contextlib.contextmanager
def looking_into(path: str | Path) -> Iterator[sqlite3.Connection]:
    """Read a copy that nobody changes; nothing is written beside it.

    Raises:
        RecordsError: It is no database.
    """
    with mapped_errors():
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            db.row_factory = sqlite3.Row
            yield db
        finally:
            db.close()


def require_sound(db: sqlite3.Connection) -> None:
    """Raise RecordsError where sqlite itself finds the database damaged."""
    (said,) = db.execute("PRAGMA integrity_check").fetchone()
    if said != "ok":
        raise RecordsError(f"the database is damaged: {said}")


def drop_garbage(db: sqlite3.Connection) -> None:
    """Forget trees that were being forgotten, and blobs that no tree refers to."""
    db.execute(
        "DELETE FROM ref WHERE tree_id IN (SELECT id FROM tree WHERE state = ?)", (DELETING,)
    )
    db.execute("DELETE FROM tree WHERE state = ?", (DELETING,))
    db.execute("DELETE FROM blob WHERE NOT EXISTS (SELECT 1 FROM ref WHERE ref.blob_id = blob.id)")


def counts(db: sqlite3.Connection) -> dict[str, int]:
    """How many sites, artifacts that can be deployed, and sealed rows there are."""
    found = db.execute(
        "SELECT (SELECT COUNT(*) FROM site) AS sites,"
        " (SELECT COUNT(*) FROM artifact WHERE expired_at IS NULL) AS artifacts,"
        " (SELECT COUNT(*) FROM variable) + (SELECT COUNT(*) FROM environment_config) AS sealed"
    ).fetchone()
    return dict(found)


def forget_sealed(db: sqlite3.Connection) -> int:
    """Forget all sealed values, whose key is lost; return how many there were.

    What ran with some runs without, as what was released before there were any; so the statements
    that speak of them go too, and control signs others.
    """
    db.execute(
        "DELETE FROM release_statement WHERE deployment_id IN"
        " (SELECT id FROM deployment WHERE config_version > 0)"
    )
    for table in ("deployment", "release"):
        db.execute(f"UPDATE {table} SET config_version = NULL WHERE config_version > 0")  # noqa: S608 - names are ours
    gone = db.execute("DELETE FROM environment_config").rowcount
    return gone + db.execute("DELETE FROM variable").rowcount


def fail_running(db: sqlite3.Connection, *, of_build: Failure, of_roll: Failure, at: int) -> int:
    """End the jobs that ran at the moment of the copy: nobody runs them. Returns how many."""
    running = [
        job
        for kind in JobType
        for job in jobs.unfinished(db, kind)
        if job.status is JobStatus.RUNNING
    ]
    for job in running:
        failure = of_build if job.type is JobType.BUILD_RUN else of_roll
        jobs.finish(db, job.id, JobStatus.FAILED, error=failure, at=at)
        end = builds.end if job.type is JobType.BUILD_RUN else deployments.end
        end(db, job.resource_id, JobStatus.FAILED, failure, at)
    return len(running)
