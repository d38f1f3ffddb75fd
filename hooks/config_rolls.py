"""Rolls for a changed config: what runs is rolled again, as it is, with what is set now."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from hooks.errors import RefusedError
from hooks.job_changes import JobChanges
from hooks.orders import again
from hooks.queueing import queue_deployment
from storage.model import (
    ActorRef,
    Environment,
    EnvironmentStatus,
    Job,
    JobStatus,
    Release,
    Trigger,
)
from storage.records import artifacts, attestations, deployments, environments, releases
from storage.records import jobs as job_rows

STATIC = "static"  # the profile of sites that run nothing
Digests = dict[str, str]


def concerned(db: sqlite3.Connection, site_id: str, env_id: str | None) -> list[Environment]:
    """The environments that a change there may concern: one, or all of the site."""
    if env_id is None:
        return environments.of_site(db, site_id)
    found = environments.get(db, env_id)
    return [] if found is None else [found]


def queue_rolls(
    changes: JobChanges,
    where: list[Environment],
    before: Digests,
    digest_of: Callable[[Environment], str],
    actor: ActorRef,
) -> list[Job]:
    """Queue a roll onto each environment whose programs are given something else than `before`.

    Not where nothing runs. A deployment that waits there already has what is set now. What is
    suspended is rolled when it is resumed.
    """
    jobs = []
    for environment in where:
        if digest_of(environment) == before[environment.id]:
            continue
        if environment.status is EnvironmentStatus.SUSPENDED:
            environments.set_config_due(changes.db, environment.id, changes.now)
            continue
        job = _waiting(changes.db, environment) or queue_roll(changes, environment, actor)
        if job is not None:
            jobs.append(job)
    return jobs


def _waiting(db: sqlite3.Connection, environment: Environment) -> Job | None:
    unfinished = deployments.unfinished(db, environment.id)
    last = unfinished[-1] if unfinished else None
    if last is None or last.status is not JobStatus.QUEUED or last.config_version is not None:
        return None
    return job_rows.get(db, last.job_id)


def queue_roll(changes: JobChanges, environment: Environment, actor: ActorRef) -> Job | None:
    """Queue a roll of what runs there, with what is set now; None where nothing runs."""
    running = releases.current(changes.db, environment.id)
    if running is None or not _runs_something(changes.db, running):
        return None
    try:
        order = again(changes.db, running, environment, Trigger.CONFIG, actor)
    except RefusedError:  # nothing vouches for it any more: the next deployment has the values
        return None
    return queue_deployment(changes, order)[1]


def _runs_something(db: sqlite3.Connection, release: Release) -> bool:
    artifact = artifacts.get(db, release.artifact_id)
    deployment = deployments.get(db, release.deployment_id)
    if artifact is None or artifact.dropped_at is not None or deployment is None:
        return False
    made_by = attestations.by_envelope(db, deployment.envelope_sha256)
    if made_by is None:
        return False
    return made_by.profile != STATIC
