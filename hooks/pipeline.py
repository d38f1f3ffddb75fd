"""The use cases: what a client may ask of the pipeline, each told as one story.

Every one commits its records in one transaction, together with the outcome that its idempotency
key names, and answers with the job that does the work.
"""

from __future__ import annotations

import asyncio
import sqlite3

from hooks import branches, named
from hooks.configs import config_gone
from hooks.errors import (
    InvalidRequestError,
    NotFoundError,
    RefusedError,
)
from hooks.idempotency import Made, once, replay
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.orders import again, refuse_previews_word, refuse_revoked
from hooks.queueing import (
    BuildOrder,
    DeploymentOrder,
    cancel_work,
    queue_build,
    queue_deployment,
)
from storage.git.errors import RefNotFoundError
from storage.model import (
    Action,
    ActorRef,
    Artifact,
    Environment,
    Job,
    JobType,
    Release,
    SiteArtifact,
    Trigger,
)
from storage.records import (
    artifacts,
    builds,
    environment_configs,
    releases,
    retention,
    sites,
)
from storage.records import jobs as job_rows
from storage.records.idempotency import Claim
from storage.repos import Repositories, ResolvedRef


class Pipeline:
    """The use cases over one server's records, repositories and jobs."""

    def __init__(self, jobs: Jobs, repositories: Repositories) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._repositories = repositories

    # -- builds and deployments -----------------------------------------------------------------

    async def start_build(
        self,
        environment: Environment,
        actor: ActorRef,
        *,
        ref: str | None = None,
        clean: bool = False,
        deploy: bool = False,
        only_env: str | None = None,
        claim: Claim | None = None,
    ) -> Made[Job]:
        """Queue a build of `ref`: a branch, tag, full name or commit.

        Without, the branch that is mapped to the environment; where a pattern maps several, the
        one that was pushed or built for it last. While the same build is queued or running, the
        answer is that one's job.

        `only_env`: the one environment that the caller may know of, if it is bound to one: it may
        name a branch that deploys there, or the whole id of a commit.

        Raises:
            NotFoundError: No such ref in the site's repository that the caller may know of, or the
                environment is gone.
            InvalidRequestError: No ref is named, and none can be meant.
        """
        if claim and (earlier := replay(self._records.reader(), claim, self._jobs.clock(), _job)):
            return earlier
        wanted = ref
        if wanted is None and environment.branch is not None:
            wanted = f"refs/heads/{environment.branch}"  # and not a tag or a commit of that name
        if wanted is None:
            wanted = builds.newest_deployed_ref(self._records.reader(), environment.id)
        if wanted is None:
            raise InvalidRequestError(
                f"No single branch is mapped to {environment.slug}, and nothing was pushed to it "
                "yet: name a ref.",
                param="ref",
            )
        try:
            resolved = await asyncio.to_thread(
                self._repositories.resolve, environment.site_id, wanted
            )
        except RefNotFoundError as error:
            raise NotFoundError("ref", wanted) from error
        if ref is not None and only_env is not None and not self._may_name(environment, resolved):
            raise NotFoundError("ref", wanted)
        order = BuildOrder(
            environment, resolved.ref, resolved.commit, actor, clean=clean, deploys=deploy
        )

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, environment)
            return queue_build(changes, order).job

        return await once(self._jobs, claim, "job", 202, change, _job)

    def _may_name(self, environment: Environment, named: ResolvedRef) -> bool:
        """Whether whoever may know of one environment alone may know of this, to build it there."""
        if named.ref is None:
            return named.is_whole_id
        routes = sites.routes(self._records.reader(), environment.site_id)
        branch = branches.branch_of(named.ref)
        is_its_own = branch is not None and branch == environment.branch
        return is_its_own or branches.reaches(routes, named.ref, environment)

    async def start_deployment(
        self,
        environment: Environment,
        artifact_id: str,
        actor: ActorRef,
        *,
        only_env: str | None = None,
        claim: Claim | None = None,
    ) -> Made[Job]:
        """Queue a roll of an artifact that a build of this site made.

        `only_env`: the one environment that the caller may know of, if it is bound to one.

        Raises:
            NotFoundError: No build of this site made it, or the environment is gone.
            RefusedError: `artifact.previews_only`, `artifact.revoked`, `artifact.expired`.
        """

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, environment)
            found = named.artifact(changes.db, environment, artifact_id, only_env)
            if not found.artifact.is_available:
                raise _expired(found.artifact)
            made_by = found.attestation
            if not found.is_trusted:
                refuse_previews_word(environment, made_by)
            refuse_revoked(made_by)
            order = DeploymentOrder(
                environment,
                artifact_id,
                made_by.envelope_sha256,
                Trigger.DEPLOY,
                actor,
                made_by.ref,
                made_by.commit,
            )
            return queue_deployment(changes, order)[1]

        return await once(self._jobs, claim, "job", 202, change, _job)

    async def start_promotion(
        self,
        source: Environment,
        to_env: str,
        actor: ActorRef,
        *,
        only_env: str | None = None,
        claim: Claim | None = None,
    ) -> Made[Job]:
        """Queue a roll of what runs on `source` onto `to_env`: an id, a slug, or a kind.

        `only_env` is the one environment that the caller may know of, if it is bound to one.

        Raises:
            NotFoundError: No such target, or the source is gone.
            RefusedError: `environment.nothing_running`, `artifact.revoked`.
            AmbiguousEnvironmentError: Several environments have that kind.
            InvalidRequestError: The target is the source.
        """

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, source)
            target = named.target(changes.db, source.site_id, to_env, only_env)
            if target.id == source.id:
                raise InvalidRequestError(
                    f"{source.slug} cannot be promoted onto itself.", param="to_env"
                )
            running = _running(changes.db, source)
            order = again(changes.db, running, target, Trigger.PROMOTE, actor)
            return queue_deployment(changes, order)[1]

        return await once(self._jobs, claim, "job", 202, change, _job)

    async def start_restart(
        self, environment: Environment, actor: ActorRef, *, claim: Claim | None = None
    ) -> Made[Job]:
        """Queue a roll of what runs once more: its programs begin anew, with what is set now.

        Raises:
            NotFoundError: The environment is gone.
            RefusedError: `environment.nothing_running`, `artifact.revoked`, and
                `deployment.under_way`: behind something newer it would take that away again.
        """

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, environment)
            for job in job_rows.unfinished_of(changes.db, environment.id):
                if job.type is JobType.DEPLOYMENT_ROLL:
                    raise RefusedError(
                        "deployment.under_way",
                        f"{job.resource_id} is on its way to {environment.slug}: its program "
                        f"begins anew by that. Its job is {job.id}.",
                    )
            running = _running(changes.db, environment)
            order = again(changes.db, running, environment, Trigger.DEPLOY, actor)
            return queue_deployment(changes, order)[1]

        return await once(self._jobs, claim, "job", 202, change, _job)

    async def start_rollback(
        self,
        environment: Environment,
        deployment_or_release: str,
        actor: ActorRef,
        *,
        with_its_config: bool = True,
        claim: Claim | None = None,
    ) -> Made[Job]:
        """Queue a roll back: to the release before a deployment, or to that very release.

        `with_its_config`: its programs are given what that release was given; else what is set now.

        Raises:
            NotFoundError: No such deployment or release on this environment, or it is gone.
            RefusedError: `release.no_previous`, `release.already_current`, `release.unavailable`,
                `release.config_gone`, `artifact.revoked`.
        """

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, environment)
            wanted = named.rollback_target(changes.db, environment, deployment_or_release)
            if wanted.is_current:
                raise RefusedError(
                    "release.already_current",
                    f"{wanted.id} is what runs on {environment.slug} now.",
                )
            ran = artifacts.get(changes.db, wanted.artifact_id)
            if ran is None or not ran.is_available:
                raise RefusedError(
                    "release.unavailable",
                    f"{wanted.id} ran {wanted.artifact_id}, which is not kept any more: build "
                    f"{wanted.commit or 'its commit'} again to deploy it.",
                )
            version = wanted.config_version if with_its_config else None
            if version and environment_configs.get(changes.db, environment.id, version) is None:
                raise config_gone(version)
            order = again(
                changes.db, wanted, environment, Trigger.ROLLBACK, actor, config_version=version
            )
            return queue_deployment(changes, order)[1]

        return await once(self._jobs, claim, "job", 202, change, _job)

    # -- artifacts ------------------------------------------------------------------------------

    async def pin_artifact(
        self,
        environment: Environment,
        artifact_id: str,
        actor: ActorRef,
        *,
        only_env: str | None = None,
    ) -> SiteArtifact:
        """Keep an artifact until it is unpinned; one that has expired is back with it. Repeatable.

        Raises:
            NotFoundError: No build of this site made it.
            RefusedError: `artifact.expired`, when its files are gone.
        """

        def change(changes: JobChanges) -> SiteArtifact:
            found = named.artifact(changes.db, environment, artifact_id, only_env)
            if found.artifact.dropped_at is not None:
                raise _expired(found.artifact)
            retention.pin(changes.db, environment.site_id, artifact_id, actor, changes.now)
            changes.note(Action.ARTIFACT_PINNED, artifact_id, site_id=environment.site_id)
            return named.artifact(changes.db, environment, artifact_id, only_env)

        return await self._jobs.commit(change)

    async def unpin_artifact(
        self, environment: Environment, artifact_id: str, *, only_env: str | None = None
    ) -> SiteArtifact:
        """Keep an artifact only as long as anything else does. Repeatable.

        Raises:
            NotFoundError: No build of this site made it.
        """

        def change(changes: JobChanges) -> SiteArtifact:
            found = named.artifact(changes.db, environment, artifact_id, only_env)
            retention.unpin(changes.db, environment.site_id, artifact_id)
            changes.note(Action.ARTIFACT_UNPINNED, artifact_id, site_id=environment.site_id)
            return found

        return await self._jobs.commit(change)

    # -- jobs -----------------------------------------------------------------------------------

    async def cancel_job(self, job_id: str) -> Job:
        """Cancel a queued or running job; one that is over stays as it is, and is returned so."""

        def change(changes: JobChanges) -> Job:
            job = job_rows.get(changes.db, job_id)
            if job is None:
                raise NotFoundError("job", job_id)
            return cancel_work(changes, job) or job

        return await self._jobs.commit(change)


def _running(db: sqlite3.Connection, environment: Environment) -> Release:
    running = releases.current(db, environment.id)
    if running is None:
        raise RefusedError(
            "environment.nothing_running",
            f"Nothing runs on {environment.slug} yet: push to it or deploy an artifact first.",
        )
    return running


def _expired(artifact: Artifact) -> RefusedError:
    what_to_do = "build its commit again" if artifact.dropped_at else "pin it to bring it back"
    return RefusedError("artifact.expired", f"{artifact.id} is not kept any more: {what_to_do}.")


def _job(db: sqlite3.Connection, job_id: str) -> Job | None:
    return job_rows.get(db, job_id)
