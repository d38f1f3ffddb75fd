"""The rows of new work, in the transaction of whoever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hooks.job_changes import JobChanges
from storage.ids import new_id
from storage.model import (
    Action,
    ActorRef,
    Build,
    Deployment,
    Environment,
    Failure,
    Job,
    JobStatus,
    JobType,
    PushPolicy,
    Trigger,
)
from storage.records import builds, deployments
from storage.records import jobs as job_rows

_AUTOMATIC = frozenset({Trigger.PUSH, Trigger.CONFIG})


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
    """Which artifact goes onto which environment, and why.

    `config_version`: what its programs are given; None is what holds when it begins. `supersedes`:
    it takes the place of rolls that nobody asked for by themselves, and that wait.
    """

    environment: Environment
    artifact_id: str
    envelope_sha256: str
    trigger: Trigger
    actor: ActorRef
    ref: str | None
    commit: str | None
    config_version: int | None = None
    supersedes: bool = True


@dataclass(frozen=True, slots=True)
class Queued:
    """The build that an order got: a new one, or one of the same that was not over yet."""

    build: Build
    job: Job
    is_new: bool


def queue_build(
    changes: JobChanges, order: BuildOrder, policy: PushPolicy = PushPolicy.OVERRIDE
) -> Queued:
    """Queue a build, unless the same one is queued or running; a push ends older ones by policy."""
    unfinished = builds.unfinished_of(changes.db, order.environment.id)
    same = same_build(unfinished, order)
    if same is not None:
        builds.ask_too(changes.db, same.id, order.actor.id)
        job = job_rows.get(changes.db, same.job_id)
        assert job is not None, "a build has its job"
        return Queued(same, job, is_new=False)
    build, job = _add_build(changes, order)
    if order.pushed:
        for older in superseded(unfinished, policy):
            _supersede(changes, older, build)
    return Queued(build, job, is_new=True)


def same_build(unfinished: Sequence[Build], order: BuildOrder) -> Build | None:
    """The unfinished build, oldest first, that gives what is ordered: same commit, same settings.

    An order of a bare commit takes a build by any name for it. Where builds deploy, only the newest
    can be the same: what is pushed again after something else is to be served after it.
    """
    if order.clean:
        return None
    alike = [build for build in unfinished if build.deploys is order.deploys]
    if order.deploys:
        alike = alike[-1:]
    return next(
        (
            build
            for build in reversed(alike)
            if build.commit == order.commit and order.ref in (None, build.ref)
        ),
        None,
    )


def superseded(unfinished: Sequence[Build], policy: PushPolicy) -> list[Build]:
    """The unfinished builds that a newer push ends. Builds that do not deploy are in nobody's way;
    what is deploying already is not a build any more.
    """
    if policy is PushPolicy.ALL:
        return []
    return [
        build
        for build in unfinished
        if build.deploys and (build.status is JobStatus.QUEUED or policy is PushPolicy.OVERRIDE)
    ]


def _supersede(changes: JobChanges, older: Build, newer: Build) -> None:
    error = Failure(
        "build.superseded",
        f"A newer push took its place: {newer.id} of commit {newer.commit[:12]}.",
    )
    if changes.cancel(older.job_id, error, by=newer.actor):
        builds.end(changes.db, older.id, JobStatus.CANCELED, error, changes.now)
        builds.supersede(changes.db, older.id, by=newer.id)


def _add_build(changes: JobChanges, order: BuildOrder) -> tuple[Build, Job]:
    build_id = new_id("build")
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
        superseded_by=None,
        error=None,
        timings={},
        actor=order.actor,
        created_at=changes.now,
        started_at=None,
        finished_at=None,
    )
    builds.add(changes.db, build)
    changes.note(
        Action.BUILD_QUEUED, build.id, site_id=build.site_id, env_id=build.env_id, actor=build.actor
    )
    return build, job


def queue_deployment(changes: JobChanges, order: DeploymentOrder) -> tuple[Deployment, Job]:
    """Queue a roll. A rollback runs no release command: that ran when its release was new.

    An environment that is suspended is resumed when the release is live, and not by a failed roll.
    """
    deployment_id = new_id("dep")
    if order.supersedes:
        _supersede_rolls(changes, order, deployment_id)
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
        config_version=order.config_version,
    )
    deployments.add(changes.db, deployment)
    changes.note(
        Action.DEPLOYMENT_QUEUED,
        deployment.id,
        site_id=deployment.site_id,
        env_id=deployment.env_id,
        actor=deployment.actor,
    )
    changes.deployment_queued(deployment)
    return deployment, job


def _supersede_rolls(changes: JobChanges, order: DeploymentOrder, newer_id: str) -> None:
    """End the rolls of pushes and of changed configs that wait: the newer one would undo them.

    A changed config rolls what runs by then, so it takes the place of its like alone. What was
    asked for by itself (deploy, promotion, rollback) is done.
    """
    automatic = {Trigger.CONFIG} if order.trigger is Trigger.CONFIG else _AUTOMATIC
    for older in deployments.unfinished(changes.db, order.environment.id):
        if older.status is JobStatus.QUEUED and older.trigger in automatic:
            error = Failure("deployment.superseded", f"A newer one took its place: {newer_id}.")
            if changes.cancel(older.job_id, error, by=order.actor):
                deployments.end(changes.db, older.id, JobStatus.CANCELED, error, changes.now)


def cancel_work(changes: JobChanges, job: Job) -> Job | None:
    """Cancel a job and what it stands for. None when it was over already."""
    canceled = changes.cancel(job.id)
    if canceled is None:
        return None
    end = builds.end if job.type is JobType.BUILD_RUN else deployments.end
    end(changes.db, job.resource_id, JobStatus.CANCELED, None, changes.now)
    return canceled
