"""The use cases: what a client may ask of the pipeline, each told as one story.

Every one commits its records in one transaction, together with the outcome that its idempotency
key names, and answers with the job that does the work.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

from hooks import branches, named
from hooks.configs import config_gone
from hooks.domains import free_domains
from hooks.environments import (
    add_preview,
    first_environments,
    mapped_branches,
    note_environment,
    remove_environment,
    resume_environment,
    suspend_environment,
)
from hooks.errors import (
    InvalidRequestError,
    NotFoundError,
    RefusedError,
)
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.once import Made, once, replay
from hooks.orders import again, refuse_previews_word, refuse_revoked
from hooks.previews import PreviewLimits
from hooks.queueing import (
    BuildOrder,
    DeploymentOrder,
    cancel_work,
    queue_build,
    queue_deployment,
)
from storage.git.errors import RefNotFoundError
from storage.ids import new_id
from storage.model import (
    Action,
    ActorRef,
    Artifact,
    BranchRoute,
    Environment,
    EnvironmentKind,
    Job,
    PushPolicy,
    RouteTarget,
    Site,
    SiteArtifact,
    Trigger,
)
from storage.records import (
    artifacts,
    builds,
    environment_configs,
    environments,
    previews,
    releases,
    retention,
    sites,
)
from storage.records import jobs as job_rows
from storage.records.idempotency import Claim
from storage.records.statements import Value, update
from storage.repos import Repositories

ROUTES_COUNT_MAX = 100
PATTERN_CHARS_MAX = 255


class Pipeline:
    """The use cases over one server's records, repositories and jobs."""

    def __init__(
        self, jobs: Jobs, repositories: Repositories, limits: PreviewLimits | None = None
    ) -> None:
        self.preview_limits = limits or PreviewLimits()
        self._jobs = jobs
        self._records = jobs.records
        self._repositories = repositories

    # -- sites and environments -----------------------------------------------------------------

    async def create_site(
        self, name: str, default_branch: str = "main", *, claim: Claim | None = None
    ) -> Made[Site]:
        """Make a site with its repository, its production and staging environments, its routes.

        Raises:
            InvalidRequestError: The name or the branch cannot be one.
            RefusedError: `site.name_taken`.
        """
        if fault := branches.site_name_fault(name):
            raise InvalidRequestError(f"{fault}, such as acme-store.", param="name")
        if fault := branches.branch_fault(default_branch):
            raise InvalidRequestError(f"{fault}.", param="default_branch")
        site_id = new_id("site")

        def change(changes: JobChanges) -> Site:
            if sites.find(changes.db, name) is not None:
                raise RefusedError("site.name_taken", f"There is a site {name!r} already.")
            if not environments.hostname_is_free(changes.db, branches.production_hostname(name)):
                raise RefusedError("site.name_taken", f"A preview has the address {name!r}.")
            site = Site(site_id, name, default_branch, changes.now)
            sites.add(changes.db, site)
            sites.replace_routes(changes.db, site.id, branches.default_routes(default_branch))
            for environment in first_environments(site, changes.now):
                environments.add(changes.db, environment)
                changes.environment_changed(environment.id)
            changes.note(Action.SITE_CREATED, site.id, site_id=site.id)
            return site

        # The repository first: a site without one would refuse its first push, and one that a
        # crash leaves without a site is found by nobody but `gitd check`.
        await asyncio.to_thread(self._repositories.create, site_id, default_branch)
        is_new = False
        try:
            made = await once(self._jobs, claim, "site", 201, change, _site)
            is_new = not made.replayed
        finally:
            if not is_new:
                await asyncio.to_thread(self._repositories.remove, site_id)
        return made

    async def delete_site(self, site: Site) -> None:
        """Remove the site, its environments and its repository. What runs on them stops."""
        await self._jobs.commit(lambda changes: _delete_site(changes, site))
        await asyncio.to_thread(self._repositories.remove, site.id)

    async def create_environment(
        self, site: Site, kind: str, branch: str, *, ephemeral: bool, claim: Claim | None = None
    ) -> Made[Environment]:
        """Make a preview for a branch before its first push.

        Raises:
            InvalidRequestError: The branch cannot be one, or the kind is not `preview`.
            RefusedError: `environment.exists`, `environment.routed_elsewhere`,
                `environment.too_many`.
        """
        if kind != EnvironmentKind.PREVIEW:
            raise InvalidRequestError(
                "Only previews are made by hand: a site has its production and staging from the "
                "start. Send kind 'preview'.",
                param="kind",
            )
        if fault := branches.branch_fault(branch):
            raise InvalidRequestError(f"{fault}.", param="branch")

        def change(changes: JobChanges) -> Environment:
            target = branches.target_of(sites.routes(changes.db, site.id), branch)
            if target is not RouteTarget.PREVIEW:
                raise RefusedError(
                    "environment.routed_elsewhere",
                    f"By the branch routes, {branch!r} is for {target.value}: its pushes would "
                    "never reach a preview.",
                )
            if there := environments.preview_of(changes.db, site.id, branch):
                raise RefusedError(
                    "environment.exists", f"The branch {branch!r} has a preview: {there.slug}."
                )
            crowd = self.preview_limits.crowd(previews.count_of(changes.db, site.id))
            if crowd is not None:
                raise RefusedError("environment.too_many", f"{crowd[0].upper()}{crowd[1:]}.")
            return add_preview(changes, site, branch, ephemeral=ephemeral)

        return await once(self._jobs, claim, "environment", 201, change, _environment)

    async def delete_environment(self, environment: Environment) -> None:
        """Tear a preview down.

        Raises:
            RefusedError: `environment.permanent`, for production and staging.
        """
        if environment.kind is not EnvironmentKind.PREVIEW:
            raise RefusedError(
                "environment.permanent",
                f"{environment.slug} lives as long as its site: only previews can be deleted.",
            )
        await self._jobs.commit(lambda changes: remove_environment(changes, environment))

    async def renew_environment(self, environment: Environment) -> Environment:
        """Begin the time anew after which a preview that nobody uses is removed.

        Raises:
            RefusedError: `environment.permanent`, for production and staging.
        """
        if environment.kind is not EnvironmentKind.PREVIEW:
            raise RefusedError(
                "environment.permanent",
                f"{environment.slug} lives as long as its site: there is nothing to renew.",
            )

        def change(changes: JobChanges) -> Environment:
            named.expect(changes.db, environment)
            environments.renew(changes.db, environment.id, changes.now)
            note_environment(changes, Action.ENVIRONMENT_RENEWED, environment)
            return environment

        return await self._jobs.commit(change)

    async def suspend_environment(
        self, environment: Environment, may_cancel: Callable[[], None]
    ) -> Environment:
        """Let it serve nothing until it is resumed, or a deployment is rolled onto it.

        `may_cancel` is asked where that cancels work, and raises to keep all as it is.
        """

        def change(changes: JobChanges) -> Environment:
            named.expect(changes.db, environment)
            if job_rows.unfinished_of(changes.db, environment.id):
                may_cancel()
            return suspend_environment(changes, environment)

        return await self._jobs.commit(change)

    async def resume_environment(self, environment: Environment, actor: ActorRef) -> Environment:
        """Let it serve again what it served when it was suspended.

        What was set meanwhile for its programs, they are given by a roll of `actor`.
        """

        def change(changes: JobChanges) -> Environment:
            named.expect(changes.db, environment)
            return resume_environment(changes, environment, actor)

        return await self._jobs.commit(change)

    async def replace_routes(self, site: Site, wanted: Sequence[BranchRoute]) -> None:
        """Replace the site's branch routes. The first match wins, top to bottom."""
        if len(wanted) > ROUTES_COUNT_MAX:
            raise InvalidRequestError(f"At most {ROUTES_COUNT_MAX} routes.", param="routes")
        for number, route in enumerate(wanted):
            if not 0 < len(route.pattern) <= PATTERN_CHARS_MAX:
                raise InvalidRequestError(
                    f"A pattern has 1 to {PATTERN_CHARS_MAX} characters.",
                    param=f"routes[{number}].pattern",
                )

        def change(changes: JobChanges) -> None:
            sites.replace_routes(changes.db, site.id, wanted)
            live, staging = mapped_branches(wanted, site.default_branch)
            for environment in environments.of_site(changes.db, site.id):
                if environment.kind is EnvironmentKind.PRODUCTION:
                    update(changes.db, "environment", environment.id, {"branch": live})
                elif environment.kind is EnvironmentKind.STAGING:
                    update(changes.db, "environment", environment.id, {"branch": staging})
            changes.note(Action.ROUTES_REPLACED, site.id, site_id=site.id)

        await self._jobs.commit(change)

    async def set_push_policy(self, where: Site | Environment, policy: PushPolicy | None) -> None:
        """Say what newer pushes do to older builds there. None leaves it to the wider setting."""
        columns: dict[str, Value] = {"when_pushed_again": policy}

        def change(changes: JobChanges) -> None:
            if isinstance(where, Site):
                update(changes.db, "site", where.id, columns)
                changes.note(Action.SITE_CHANGED, where.id, site_id=where.id)
            else:
                named.expect(changes.db, where)
                update(changes.db, "environment", where.id, columns)
                note_environment(changes, Action.ENVIRONMENT_CHANGED, where)

        await self._jobs.commit(change)

    # -- builds and deployments -----------------------------------------------------------------

    async def start_build(
        self,
        environment: Environment,
        actor: ActorRef,
        *,
        ref: str | None = None,
        clean: bool = False,
        deploy: bool = False,
        claim: Claim | None = None,
    ) -> Made[Job]:
        """Queue a build of `ref`: a branch, tag, full name or commit.

        Without, the branch that is mapped to the environment; where a pattern maps several, the
        one that was pushed or built for it last. While the same build is queued or running, the
        answer is that one's job.

        Raises:
            NotFoundError: No such ref in the site's repository, or the environment is gone.
            InvalidRequestError: No ref is named, and none can be meant.
        """
        if claim and (earlier := replay(self._records.reader(), claim, self._jobs.clock(), _job)):
            return earlier
        wanted = ref or environment.branch
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
        order = BuildOrder(
            environment, resolved.ref, resolved.commit, actor, clean=clean, deploys=deploy
        )

        def change(changes: JobChanges) -> Job:
            named.expect(changes.db, environment)
            return queue_build(changes, order).job

        return await once(self._jobs, claim, "job", 202, change, _job)

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
            running = releases.current(changes.db, source.id)
            if running is None:
                raise RefusedError(
                    "environment.nothing_running",
                    f"Nothing runs on {source.slug} yet: push to it or deploy an artifact first.",
                )
            order = again(changes.db, running, target, Trigger.PROMOTE, actor)
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


def _expired(artifact: Artifact) -> RefusedError:
    what_to_do = "build its commit again" if artifact.dropped_at else "pin it to bring it back"
    return RefusedError("artifact.expired", f"{artifact.id} is not kept any more: {what_to_do}.")


def _job(db: sqlite3.Connection, job_id: str) -> Job | None:
    return job_rows.get(db, job_id)


def _site(db: sqlite3.Connection, site_id: str) -> Site | None:
    return sites.find(db, site_id)


def _environment(db: sqlite3.Connection, env_id: str) -> Environment | None:
    return environments.get(db, env_id)


def _delete_site(changes: JobChanges, site: Site) -> None:
    free_domains(changes, site)
    for environment in environments.of_site(changes.db, site.id):
        remove_environment(changes, environment)
    sites.delete(changes.db, site.id)
    changes.note(Action.SITE_DELETED, site.id, site_id=site.id)
