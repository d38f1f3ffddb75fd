"""Environments come and go: in the transaction of whoever makes or removes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hooks import branches, config_rolls
from hooks.job_changes import JobChanges
from hooks.queueing import cancel_work
from storage.ids import new_id
from storage.model import (
    Action,
    ActorRef,
    BranchRoute,
    Environment,
    EnvironmentKind,
    EnvironmentStatus,
    RouteTarget,
    Site,
)
from storage.records import environments
from storage.records import jobs as job_rows
from storage.records.statements import update


def mapped_branches(
    routes: Sequence[BranchRoute], default_branch: str
) -> tuple[str | None, str | None]:
    """The branches that production and staging stand for, where it is one.

    The first pattern that is a name, if its branch goes there; else the default branch, if that
    does.
    """

    def mapped(target: RouteTarget) -> str | None:
        names = [
            r.pattern for r in routes if r.target is target and not set(r.pattern) & set("*?[")
        ]
        candidates = [*names, default_branch]
        return next((n for n in candidates if branches.target_of(routes, n) is target), None)

    return mapped(RouteTarget.LIVE), mapped(RouteTarget.STAGING)


def first_environments(site: Site, now: int) -> tuple[Environment, Environment]:
    """A new site's production and staging."""
    routes = branches.default_routes(site.default_branch)
    live, staged = mapped_branches(routes, site.default_branch)
    production = Environment(
        id=new_id("env"),
        site_id=site.id,
        slug="production",
        kind=EnvironmentKind.PRODUCTION,
        branch=live,
        ephemeral=False,
        status=EnvironmentStatus.ACTIVE,
        hostname=branches.production_hostname(site.name),
        created_at=now,
    )
    staging = Environment(
        id=new_id("env"),
        site_id=site.id,
        slug="staging",
        kind=EnvironmentKind.STAGING,
        branch=staged,
        ephemeral=False,
        status=EnvironmentStatus.ACTIVE,
        hostname=branches.staging_hostname(site.name),
        created_at=now,
    )
    return production, staging


def map_branches(changes: JobChanges, site: Site, routes: Sequence[BranchRoute]) -> None:
    """Write down which branches production and staging stand for."""
    live, staging = mapped_branches(routes, site.default_branch)
    mapped = {EnvironmentKind.PRODUCTION: live, EnvironmentKind.STAGING: staging}
    for environment in environments.of_site(changes.db, site.id):
        if environment.kind in mapped:
            branch = mapped[environment.kind]
            update(changes.db, "environment", environment.id, {"branch": branch})


def add_preview(
    changes: JobChanges, site: Site, branch: str, *, ephemeral: bool = True
) -> Environment:
    """Add the preview of a branch, in the caller's transaction."""
    slug = next(
        slug
        for slug in branches.preview_slugs(site.id, branch)
        if environments.slug_is_free(changes.db, site.id, slug)
    )
    hostname = next(
        name
        for name in branches.preview_hostnames(site.name, site.id, branch)
        if environments.hostname_is_free(changes.db, name)
    )
    environment = Environment(
        id=new_id("env"),
        site_id=site.id,
        slug=slug,
        kind=EnvironmentKind.PREVIEW,
        branch=branch,
        ephemeral=ephemeral,
        status=EnvironmentStatus.ACTIVE,
        hostname=hostname,
        created_at=changes.now,
    )
    environments.add(changes.db, environment)
    changes.environment_changed(environment.id)
    note_environment(changes, Action.ENVIRONMENT_CREATED, environment)
    return environment


def note_environment(changes: JobChanges, action: Action, environment: Environment) -> None:
    """Write what became of an environment into the audit log."""
    changes.note(
        action,
        environment.id,
        site_id=environment.site_id,
        env_id=environment.id,
    )


def suspend_environment(changes: JobChanges, environment: Environment) -> Environment:
    """Let an environment serve nothing until it is resumed; the work that waits for it is canceled.

    What it ran, it has still: its release, its data, its address.
    """
    for job in job_rows.unfinished_of(changes.db, environment.id):
        cancel_work(changes, job)
    note_environment(changes, Action.ENVIRONMENT_SUSPENDED, environment)
    return _with_status(changes, environment, EnvironmentStatus.SUSPENDED)


def resume_environment(
    changes: JobChanges, environment: Environment, actor: ActorRef
) -> Environment:
    """Let it serve again what it served, with what was set meanwhile for its programs.

    To be resumed is to be used, as far as its end goes.
    """
    environments.renew(changes.db, environment.id, changes.now)
    note_environment(changes, Action.ENVIRONMENT_RESUMED, environment)
    is_due = environments.config_is_due(changes.db, environment.id)
    resumed = _with_status(changes, environment, EnvironmentStatus.ACTIVE)
    if is_due:
        config_rolls.queue_roll(changes, resumed, actor)
    return resumed


def resume_if_suspended(
    changes: JobChanges, env_id: str, actor: ActorRef, *, given_at: int
) -> Environment | None:
    """Let what is suspended serve again: a release of `actor`'s is live there.

    `given_at`: when what its programs are given was settled. Returns the environment where that
    was changed since.
    """
    environment = environments.get(changes.db, env_id)
    if environment is None or environment.status is not EnvironmentStatus.SUSPENDED:
        return None
    is_due = environments.config_is_due(changes.db, env_id, since=max(1, given_at))
    resumed = _with_status(changes, environment, EnvironmentStatus.ACTIVE)
    changes.note(
        Action.ENVIRONMENT_RESUMED,
        env_id,
        site_id=environment.site_id,
        env_id=env_id,
        actor=actor,
    )
    return resumed if is_due else None


def _with_status(
    changes: JobChanges, environment: Environment, status: EnvironmentStatus
) -> Environment:
    environments.set_status(changes.db, environment.id, status)
    changes.environment_changed(environment.id)
    return replace(environment, status=status)


def remove_environment(changes: JobChanges, environment: Environment) -> None:
    """Remove an environment, and cancel the work that waits for it."""
    for job in job_rows.unfinished_of(changes.db, environment.id):
        cancel_work(changes, job)
    environments.delete(changes.db, environment.id)
    changes.environment_changed(environment.id)
    note_environment(changes, Action.ENVIRONMENT_DELETED, environment)
