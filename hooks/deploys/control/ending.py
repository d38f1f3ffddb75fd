"""How rolls end in the records: a release with its job, or a failure."""

from __future__ import annotations

from hooks import config_rolls
from hooks.environments import resume_if_suspended
from hooks.job_changes import JobChanges
from storage.ids import new_id
from storage.model import Action, Deployment, Failure, JobStatus, Release, Trigger
from storage.records import deployments, releases


def note_success(changes: JobChanges, deployment: Deployment) -> None:
    """Make the release, which is the current one then. Nothing, if the job is over."""
    release = Release(
        id=new_id("rel"),
        site_id=deployment.site_id,
        env_id=deployment.env_id,
        deployment_id=deployment.id,
        artifact_id=deployment.artifact_id,
        ref=deployment.ref,
        commit=deployment.commit,
        actor=deployment.actor,
        deployed_at=changes.now,
        is_current=True,
        config_version=deployment.config_version,
    )
    result = {"deployment_id": deployment.id, "release_id": release.id}
    if changes.succeed(deployment.job_id, result) is not None:
        given_at = deployments.started_at(changes.db, deployment.id)
        overtaken = resume_if_suspended(
            changes, deployment.env_id, deployment.actor, given_at=given_at
        )
        releases.add_current(changes.db, release)
        deployments.succeed(changes.db, deployment.id, release.id, changes.now)
        changes.note(
            Action.RELEASE_MADE,
            release.id,
            site_id=release.site_id,
            env_id=release.env_id,
            actor=release.actor,
        )
        if overtaken is not None and deployment.trigger is not Trigger.ROLLBACK:
            config_rolls.queue_roll(changes, overtaken, deployment.actor)


def note_failure(changes: JobChanges, deployment: Deployment, failure: Failure) -> None:
    """Nothing, if the job is over."""
    if changes.fail(deployment.job_id, failure) is not None:
        deployments.end(changes.db, deployment.id, JobStatus.FAILED, failure, changes.now)
