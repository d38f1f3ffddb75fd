"""How builds that succeed end in the records: an artifact, the build, its job, its deployment."""

from __future__ import annotations

from collections.abc import Mapping

from hooks.builds.wire import Finish
from hooks.job_changes import JobChanges
from hooks.queueing import DeploymentOrder, queue_deployment
from storage.artifacts import Ingested
from storage.model import Artifact, Attestation, Build, Deployment, PushPolicy, Trigger
from storage.records import artifacts, builds, environments, sites
from storage.records import jobs as job_rows


def note_output(
    changes: JobChanges,
    build: Build,
    outcome: Finish,
    kept: Ingested,
    took: Mapping[str, float],
    policy: PushPolicy,
) -> None:
    """Write down the artifact that a build made, with its statement, and `note_success`."""
    artifacts.add(
        changes.db,
        Artifact(
            kept.artifact_id,
            str(kept.digest),
            kept.manifest_sha256,
            kept.files,
            kept.size_bytes,
            changes.now,
        ),
    )
    made_by = Attestation(
        envelope_sha256=kept.envelope_sha256,
        artifact_id=kept.artifact_id,
        site_id=build.site_id,
        build_id=build.id,
        key_id=kept.key_id,
        signature=kept.signature,
        profile=outcome.profile or "static",
        ref=build.ref,
        commit=build.commit,
        created_at=changes.now,
    )
    artifacts.attest(changes.db, made_by)
    builds.give(changes.db, build.id, made_by)
    note_success(changes, build, made_by, took, policy)


def note_success(
    changes: JobChanges,
    build: Build,
    made_by: Attestation,
    took: Mapping[str, float],
    policy: PushPolicy,
    *,
    cached: bool = False,
) -> None:
    """End a build with the artifact of a statement, and queue its deployment, if it deploys.

    `took`: seconds by stage. `policy`: where neither the environment nor the site has one.
    `cached`: the statement is of another build. Of a build that is over, nothing is changed.
    """
    result = {"artifact_id": made_by.artifact_id, "build_id": build.id}
    deployment_id = None
    if build.deploys and (job := job_rows.get(changes.db, build.job_id)) and not job.finished_at:
        deployment = _queue_its_deployment(changes, build, made_by, policy)
        deployment_id = deployment.id
        result |= {"deployment_id": deployment_id, "deployment_job_id": deployment.job_id}
    if changes.succeed(build.job_id, result) is None:
        return  # canceled meanwhile: the artifact is kept, and that is all
    started = builds.get(changes.db, build.id) or build
    builds.succeed(
        changes.db,
        build.id,
        made_by,
        deployment_id=deployment_id,
        timings={**started.waited, **took},
        at=changes.now,
        cached=cached,
    )


def _queue_its_deployment(
    changes: JobChanges, build: Build, made_by: Attestation, policy: PushPolicy
) -> Deployment:
    site = sites.find(changes.db, build.site_id)
    environment = environments.get(changes.db, build.env_id)
    assert site is not None, "a site that goes cancels its builds"
    assert environment is not None, "an environment that goes cancels its builds"
    policy = environment.when_pushed_again or site.when_pushed_again or policy
    order = DeploymentOrder(
        environment,
        made_by.artifact_id,
        made_by.envelope_sha256,
        Trigger.PUSH if build.pushed else Trigger.DEPLOY,
        build.actor,
        build.ref,
        build.commit,
        supersedes=policy is not PushPolicy.ALL,
    )
    deployment, _ = queue_deployment(changes, order)
    return deployment
