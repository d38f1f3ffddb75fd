"""The rows of new work, in the transaction of whoever asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from hooks.jobs import JobChanges
from storage.ids import new_id
from storage.model import (
    ActorRef,
    Build,
    Deployment,
    Environment,
    Failure,
    Job,
    JobStatus,
    JobType,
    Trigger,
)
from storage.records import builds, deployments


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build, for which environment, on whose word. `ref` is None for a bare commit."""

    environment: Environment
    ref: str | None
    commit: str
    actor: ActorRef
    clean: bool = False
    deploys: bool = False
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class DeploymentOrder:
    """Which artifact goes onto which environment, and why."""

    environment: Environment
    artifact_id: str
    envelope_sha256: str
    trigger: Trigger
    actor: ActorRef
    ref: str | None
    commit: str | None


def queue_build(changes: JobChanges, order: BuildOrder) -> tuple[Build, Job]:
    """Queue a build. One by a push takes the place of those that earlier pushes queued."""
    build_id = new_id("build")
    if order.pushed and order.ref is not None:
        _supersede(changes, order.environment.id, order.ref, build_id)
    job = changes.add(
        JobType.BUILD_RUN,
        resource_type="build",
        resource_id=build_id,
        site_id=order.environment.site_id,
        env_id=order.environment.id,
    )
    build = Build(
        id=build_id,
        site_id=order.environment.site_id,
        env_id=order.environment.id,
        job_id=job.id,
        ref=order.ref,
        commit=order.commit,
        status=JobStatus.QUEUED,
        clean=order.clean,
        deploys=order.deploys,
        pushed=order.pushed,
        cached=False,
        profile=None,
        artifact_id=None,
        deployment_id=None,
        error=None,
        timings={},
        actor=order.actor,
        created_at=changes.now,
        started_at=None,
        finished_at=None,
    )
    builds.add(changes.db, build)
    return build, job


def queue_deployment(changes: JobChanges, order: DeploymentOrder) -> tuple[Deployment, Job]:
    """Queue a roll. A rollback runs no release command: that ran when its release was new."""
    deployment_id = new_id("dep")
    job = changes.add(
        JobType.DEPLOYMENT_ROLL,
        resource_type="deployment",
        resource_id=deployment_id,
        site_id=order.environment.site_id,
        env_id=order.environment.id,
    )
    deployment = Deployment(
        id=deployment_id,
        site_id=order.environment.site_id,
        env_id=order.environment.id,
        job_id=job.id,
        artifact_id=order.artifact_id,
        envelope_sha256=order.envelope_sha256,
        trigger=order.trigger,
        status=JobStatus.QUEUED,
        runs_release_command=order.trigger is not Trigger.ROLLBACK,
        release_id=None,
        error=None,
        ref=order.ref,
        commit=order.commit,
        actor=order.actor,
        created_at=changes.now,
        started_at=None,
        finished_at=None,
    )
    deployments.add(changes.db, deployment)
    return deployment, job


def _supersede(changes: JobChanges, env_id: str, ref: str, newer: str) -> None:
    for older in builds.queued_by_push(changes.db, env_id, ref):
        error = Failure("build.superseded", f"A newer push took its place: {newer}.")
        if changes.cancel(older.job_id, error):
            builds.end(changes.db, older.id, JobStatus.CANCELED, error, changes.now)


def cancel_work(changes: JobChanges, job: Job, error: Failure | None = None) -> Job | None:
    """Cancel a job and what it stands for. None when it was over already."""
    canceled = changes.cancel(job.id, error)
    if canceled is None:
        return None
    end = builds.end if job.type is JobType.BUILD_RUN else deployments.end
    end(changes.db, job.resource_id, JobStatus.CANCELED, error, changes.now)
    return canceled
