"""What a request names, looked up in the transaction that acts on it."""

from __future__ import annotations

import sqlite3

from hooks.errors import AmbiguousEnvironmentError, NotFoundError, RefusedError
from storage.model import Environment, EnvironmentKind, Release, Site, SiteArtifact
from storage.records import artifacts, deployments, environments, releases, sites


def expect(db: sqlite3.Connection, environment: Environment) -> None:
    """Look again, in the transaction, for what was found before it: it may be gone since.

    Nobody would cancel what is queued for an environment that is gone already.
    """
    if environments.get(db, environment.id) is None:
        raise NotFoundError("environment", environment.slug)


def expect_site(db: sqlite3.Connection, site: Site) -> Site:
    """Look again for a site, as it is now: it may be gone since it was found."""
    there = sites.find(db, site.id)
    if there is None:
        raise NotFoundError("site", site.name)
    return there


def artifact(
    db: sqlite3.Connection, environment: Environment, artifact_id: str, only_env: str | None
) -> SiteArtifact:
    """An artifact with the statement that the environment goes by.

    `only_env`: the one environment that the caller may know of, if it is bound to one.
    """
    found = artifacts.of_environment(
        db, environment, artifact_id, only_its_own=only_env is not None
    )
    if found is None:
        raise NotFoundError("artifact", artifact_id)
    return found


def target(db: sqlite3.Connection, site_id: str, named: str, only_env: str | None) -> Environment:
    """The environment that is named, of those that the caller may know of."""
    found = environments.find(db, site_id, named)
    known = [found] if found is not None else []
    if found is None and named in set(EnvironmentKind):
        known = environments.of_kind(db, site_id, EnvironmentKind(named))
    known = [environment for environment in known if only_env in (None, environment.id)]
    if not known:
        raise NotFoundError("environment", named)
    if len(known) > 1:
        raise AmbiguousEnvironmentError(named, [e.slug for e in known])
    return known[0]


def rollback_target(db: sqlite3.Connection, environment: Environment, named: str) -> Release:
    if named.startswith("rel_"):
        release = releases.get(db, named)
        if release is None or release.env_id != environment.id:
            raise NotFoundError("release", named)
        return release
    deployment = deployments.get(db, named)
    if deployment is None or deployment.env_id != environment.id:
        raise NotFoundError("deployment", named)
    made = releases.of_deployment(db, deployment.id)
    previous = (
        releases.before(db, made)
        if made is not None
        else releases.newest_at(db, environment.id, deployment.id)
    )
    if previous is None:
        raise RefusedError(
            "release.no_previous",
            f"Nothing ran on {environment.slug} before {deployment.id}: there is nothing to go "
            "back to.",
        )
    return previous
