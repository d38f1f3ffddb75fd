"""Custom domains: host names of their own that lead to an environment, beside the platform's.

A name is one environment's, of the whole server, and whose it is nobody else is told. Whether it
leads here is for its owner to see to: nothing here asks the DNS (decision 0096).
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Final

import structlog

from hooks import named
from hooks.errors import InvalidRequestError, NotFoundError, RefusedError
from hooks.hostnames import HostnameError, PlatformNames, normal
from hooks.idempotency import Made, once
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from storage.ids import is_id, new_id
from storage.model import Action, ActorRef, Domain, Environment, EnvironmentKind, Site
from storage.records import domains, environments
from storage.records.idempotency import Claim

log = structlog.get_logger(__name__)

DOMAINS_COUNT_MAX: Final = 100  # of one environment


class Domains:
    """The use cases of custom domains, on one server whose own names are `platform`."""

    def __init__(self, jobs: Jobs, platform: PlatformNames) -> None:
        self._jobs = jobs
        self._platform = platform

    def recover(self) -> None:
        """After a start: say which names lead nowhere, since the settings have them by now."""
        for domain in domains.every(self._jobs.records.reader()):
            if self._platform.include(domain.hostname):
                log.warning(
                    "domain_reserved",
                    hostname=domain.hostname,
                    site_id=domain.site_id,
                    env_id=domain.env_id,
                    advice="it leads nowhere: it is at or below sites.domain or the server's name",
                )

    async def add(
        self,
        environment: Environment,
        hostname: str,
        actor: ActorRef,
        *,
        only_env: str | None = None,
        claim: Claim | None = None,
    ) -> Made[Domain]:
        """Let a host name lead to an environment, in whatever spelling it is given.

        `only_env`: the one environment that the caller may know of, if it is bound to one.

        Raises:
            InvalidRequestError: It is no host name.
            RefusedError: `domain.reserved`, `domain.exists`, `domain.taken`, `domain.too_many`,
                `domain.not_for_previews`.
            NotFoundError: The environment is gone.
        """
        try:
            name = normal(hostname)
        except HostnameError as error:
            raise InvalidRequestError(str(error), param="hostname") from error

        def change(changes: JobChanges) -> Domain:
            named.expect(changes.db, environment)
            self._refuse(changes.db, environment, name, only_env)
            domain = Domain(
                id=new_id("dom"),
                site_id=environment.site_id,
                env_id=environment.id,
                hostname=name,
                actor=actor,
                created_at=changes.now,
            )
            domains.add(changes.db, domain)
            changes.environment_changed(environment.id)
            _note(changes, Action.DOMAIN_ADDED, domain)
            return domain

        return await once(self._jobs, claim, "domain", 201, change, domains.get)

    async def remove(self, environment: Environment, id_or_hostname: str) -> Domain:
        """Let a host name lead there no more: it is free from then on.

        Raises:
            NotFoundError: The environment has no such domain.
        """

        def change(changes: JobChanges) -> Domain:
            domain = find(changes.db, environment, id_or_hostname)
            domains.delete(changes.db, domain.id)
            changes.environment_changed(environment.id)
            _note(changes, Action.DOMAIN_REMOVED, domain)
            return domain

        return await self._jobs.commit(change)

    def _refuse(
        self, db: sqlite3.Connection, environment: Environment, name: str, only_env: str | None
    ) -> None:
        if environment.kind is EnvironmentKind.PREVIEW:
            raise RefusedError(
                "domain.not_for_previews",
                f"{environment.slug} is a preview, which comes and goes with its branch: custom "
                "domains are for production and staging.",
            )
        if self._platform.include(name):
            raise RefusedError(
                "domain.reserved",
                f"{name} is among this server's own names: give one that is not below them.",
            )
        there = domains.of_hostname(db, name)
        if there is not None:
            raise _taken(db, environment, there, only_env)
        if domains.count(db, environment.id) >= DOMAINS_COUNT_MAX:
            raise RefusedError(
                "domain.too_many", f"{environment.slug} has {DOMAINS_COUNT_MAX} domains already."
            )


def find(db: sqlite3.Connection, environment: Environment, id_or_hostname: str) -> Domain:
    """Return a domain of an environment, by its id or by any spelling of its host name.

    Raises:
        NotFoundError: It has none such: another one's counts as none.
    """
    found = None
    if is_id(id_or_hostname, "dom"):
        found = domains.get(db, id_or_hostname)
    else:
        with contextlib.suppress(HostnameError):
            found = domains.of_hostname(db, normal(id_or_hostname))
    if found is None or found.env_id != environment.id:
        raise NotFoundError("domain", id_or_hostname)
    return found


def free_domains(changes: JobChanges, site: Site) -> None:
    """Free the host names of a site that goes."""
    env_ids = [environment.id for environment in environments.of_site(changes.db, site.id)]
    for domain in domains.of_environments(changes.db, env_ids):
        domains.delete(changes.db, domain.id)
        _note(changes, Action.DOMAIN_REMOVED, domain)


def _taken(
    db: sqlite3.Connection, environment: Environment, there: Domain, only_env: str | None
) -> RefusedError:
    name = there.hostname
    if there.env_id == environment.id:
        return RefusedError(
            "domain.exists", f"{name} leads to {environment.slug} already: {there.id}."
        )
    has = "Something else on this server has it"
    if there.site_id == environment.site_id and only_env is None:
        other = environments.get(db, there.env_id)
        has = f"The site's {other.slug if other is not None else there.env_id} has it"
    return RefusedError("domain.taken", f"{has}: remove {name} there first.")


def _note(changes: JobChanges, action: Action, domain: Domain) -> None:
    changes.note(action, domain.hostname, site_id=domain.site_id, env_id=domain.env_id)
