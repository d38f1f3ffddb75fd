"""Sites and their environments: what a client may do to them, each told as one story.

Every one commits its records in one transaction, together with the outcome that its idempotency
key names.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

import structlog

from hooks import branches, default_branch, named
from hooks.domains import free_domains
from hooks.environments import (
    add_preview,
    first_environments,
    map_branches,
    note_environment,
    remove_environment,
    resume_environment,
    suspend_environment,
)
from hooks.errors import InvalidRequestError, RefusedError
from hooks.hostnames import PlatformNames
from hooks.idempotency import Made, once
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.previews import PreviewLimits
from storage.ids import new_id
from storage.model import (
    Action,
    ActorRef,
    BranchRoute,
    Environment,
    EnvironmentKind,
    PushPolicy,
    RouteTarget,
    Site,
)
from storage.records import environments, previews, sites
from storage.records import jobs as job_rows
from storage.records.idempotency import Claim
from storage.records.statements import Value, update
from storage.repos import Repositories

log = structlog.get_logger(__name__)

ROUTES_COUNT_MAX = 100
PATTERN_CHARS_MAX = 255


class Sites:
    """All sites of one server, in its records and its repositories."""

    def __init__(
        self,
        jobs: Jobs,
        repositories: Repositories,
        limits: PreviewLimits | None = None,
        platform: PlatformNames | None = None,
    ) -> None:
        self.preview_limits = limits or PreviewLimits()
        self._platform = platform or PlatformNames()
        self._jobs = jobs
        self._repositories = repositories
        self._heads = default_branch.Heads(jobs.records, repositories)

    def recover(self) -> None:
        """After a start: say which sites have the server's name, since the settings have it now."""
        for site in sites.every(self._jobs.records.reader()):
            if self._platform_name(site.name) is not None:
                log.warning(
                    "site_reserved",
                    site_id=site.id,
                    site=site.name,
                    advice="it has the name of server.public_url: visitors reach one of the two",
                )

    async def create(
        self, name: str, chosen: str | None = None, *, claim: Claim | None = None
    ) -> Made[Site]:
        """Make a site with its repository, its production and staging environments, its routes.

        `chosen`: its default branch. Without one the first push may say it (`default_branch`).

        Raises:
            InvalidRequestError: The name or the branch cannot be one.
            RefusedError: `site.name_taken`, by another site, a preview or the server itself.
        """
        if fault := branches.site_name_fault(name):
            raise InvalidRequestError(f"{fault}, such as acme-store.", param="name")
        branch = default_branch.USUAL if chosen is None else chosen
        if fault := branches.branch_fault(branch):
            raise InvalidRequestError(f"{fault}.", param="default_branch")
        site_id = new_id("site")

        def change(changes: JobChanges) -> Site:
            if sites.find(changes.db, name) is not None:
                raise RefusedError("site.name_taken", f"There is a site {name!r} already.")
            if (own := self._platform_name(name)) is not None:
                raise RefusedError(
                    "site.name_taken", f"It would be at {own}, which is this server's own name."
                )
            if not environments.hostname_is_free(changes.db, branches.production_hostname(name)):
                raise RefusedError("site.name_taken", f"A preview has the address {name!r}.")
            site = Site(site_id, name, branch, changes.now, is_default_open=chosen is None)
            sites.add(changes.db, site)
            sites.replace_routes(changes.db, site.id, branches.default_routes(branch))
            for environment in first_environments(site, changes.now):
                environments.add(changes.db, environment)
                changes.environment_changed(environment.id)
            changes.note(Action.SITE_CREATED, site.id, site_id=site.id)
            return site

        # The repository first: a site without one would refuse its first push, and one that a
        # crash leaves without a site is found by nobody but `gitd check`.
        await asyncio.to_thread(self._repositories.create, site_id, branch)
        is_new = False
        try:
            made = await once(self._jobs, claim, "site", 201, change, _site)
            is_new = not made.replayed
        finally:
            if not is_new:
                await asyncio.to_thread(self._repositories.remove, site_id)
        return made

    async def delete(self, site: Site) -> None:
        """Remove the site, its environments and its repository. What runs on them stops.

        Raises:
            NotFoundError: It is gone already.
        """
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
            NotFoundError: The site is gone.
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
            named.expect_site(changes.db, site)
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
            NotFoundError: It is gone already.
        """
        if environment.kind is not EnvironmentKind.PREVIEW:
            raise RefusedError(
                "environment.permanent",
                f"{environment.slug} lives as long as its site: only previews can be deleted.",
            )

        def change(changes: JobChanges) -> None:
            named.expect(changes.db, environment)
            remove_environment(changes, environment)

        await self._jobs.commit(change)

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
        """Replace the site's branch routes. The first match wins, top to bottom.

        Raises:
            InvalidRequestError: There are too many, or one has a pattern that no branch can match.
            NotFoundError: The site is gone.
        """
        if len(wanted) > ROUTES_COUNT_MAX:
            raise InvalidRequestError(f"At most {ROUTES_COUNT_MAX} routes.", param="routes")
        for number, route in enumerate(wanted):
            fault = (
                branches.pattern_fault(route.pattern)
                if 0 < len(route.pattern) <= PATTERN_CHARS_MAX
                else f"A pattern has 1 to {PATTERN_CHARS_MAX} characters"
            )
            if fault is not None:
                raise InvalidRequestError(f"{fault}.", param=f"routes[{number}].pattern")

        def change(changes: JobChanges) -> None:
            there = named.expect_site(changes.db, site)
            # Who says what becomes of each branch leaves that to no push.
            sites.set_default_branch(changes.db, site.id, there.default_branch)
            sites.replace_routes(changes.db, site.id, wanted)
            map_branches(changes, there, wanted)
            changes.note(Action.ROUTES_REPLACED, site.id, site_id=site.id)

        await self._jobs.commit(change)

    async def set_default_branch(self, site: Site, branch: str) -> None:
        """Choose the branch that goes live by its route, and that a clone checks out.

        Raises:
            InvalidRequestError: It cannot be a branch.
            NotFoundError: The site is gone.
            RefusedError: `site.branch_routed_elsewhere`.
        """
        if fault := branches.branch_fault(branch):
            raise InvalidRequestError(f"{fault}.", param="default_branch")

        def change(changes: JobChanges) -> None:
            default_branch.change(changes, named.expect_site(changes.db, site), branch)

        await self._jobs.commit(change)
        await self._heads.follow(site.id)

    async def set_push_policy(self, where: Site | Environment, policy: PushPolicy | None) -> None:
        """Say what newer pushes do to older builds there. None leaves it to the wider setting."""
        columns: dict[str, Value] = {"when_pushed_again": policy}

        def change(changes: JobChanges) -> None:
            if isinstance(where, Site):
                named.expect_site(changes.db, where)
                update(changes.db, "site", where.id, columns)
                changes.note(Action.SITE_CHANGED, where.id, site_id=where.id)
            else:
                named.expect(changes.db, where)
                update(changes.db, "environment", where.id, columns)
                note_environment(changes, Action.ENVIRONMENT_CHANGED, where)

        await self._jobs.commit(change)

    def _platform_name(self, site_name: str) -> str | None:
        """The name of the server, where an environment that a site begins with would have it."""
        labels = branches.production_hostname(site_name), branches.staging_hostname(site_name)
        is_servers = any(self._platform.is_server(label) for label in labels)
        return self._platform.server if is_servers else None


def _site(db: sqlite3.Connection, site_id: str) -> Site | None:
    return sites.find(db, site_id)


def _environment(db: sqlite3.Connection, env_id: str) -> Environment | None:
    return environments.get(db, env_id)


def _delete_site(changes: JobChanges, site: Site) -> None:
    named.expect_site(changes.db, site)
    free_domains(changes, site)
    for environment in environments.of_site(changes.db, site.id):
        remove_environment(changes, environment)
    sites.delete(changes.db, site.id)
    changes.note(Action.SITE_DELETED, site.id, site_id=site.id)
