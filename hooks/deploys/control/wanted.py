"""What each environment should serve: its deployment under way, or else its current release."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from hooks.deploys.wire import ArtifactPin, Desired
from hooks.hostnames import PlatformNames, served_names
from storage.model import Deployment, Environment, EnvironmentStatus
from storage.records import (
    artifacts,
    deployments,
    domains,
    environments,
    release_statements,
    releases,
    sites,
)
from storage.records.db import Records
from storage.records.release_statements import IssuedStatement


class Wanted:
    """Reads it from the records. Belongs to one event loop."""

    def __init__(
        self,
        records: Records,
        under_way: Callable[[str], Deployment | None],
        *,
        names: PlatformNames,
        url_of: Callable[[Environment], str],
    ) -> None:
        """`under_way`: the deployment of an environment that hosts may hear of, if there is one.
        `names`: the server's own.
        """
        self._records = records
        self._under_way = under_way
        self._names = names
        self._url_of = url_of

    def everywhere(self) -> tuple[Desired, ...]:
        """Return what every environment should serve."""
        reader = self._records.reader()
        custom = served_names(self._names, domains.every(reader))
        return tuple(
            self._of(reader, each, custom.get(each.id, ())) for each in environments.every(reader)
        )

    def of(self, env_id: str) -> Desired | None:
        """Return what one should serve; None when it is gone."""
        reader = self._records.reader()
        environment = environments.get(reader, env_id)
        if environment is None:
            return None
        custom = served_names(self._names, domains.of_environments(reader, [env_id]))
        return self._of(reader, environment, custom.get(env_id, ()))

    def deployment(self, env_id: str) -> Deployment | None:
        """Return the deployment that it should serve, if it should serve any."""
        if (under_way := self._under_way(env_id)) is not None:
            return under_way
        reader = self._records.reader()
        environment = environments.get(reader, env_id)
        if environment is None or environment.status is EnvironmentStatus.SUSPENDED:
            return None
        current = releases.current(reader, env_id)
        return deployments.get(reader, current.deployment_id) if current else None

    def is_of(self, env_id: str, deployment_id: str) -> bool:
        """Say whether it should serve that deployment."""
        wanted = self.deployment(env_id)
        return wanted is not None and wanted.id == deployment_id

    def _of(
        self, reader: sqlite3.Connection, environment: Environment, custom: Iterable[str]
    ) -> Desired:
        site = sites.find(reader, environment.site_id)
        assert site is not None, "kept by a foreign key"
        deployment = self.deployment(environment.id)
        issued = release_statements.of_deployment(reader, deployment.id) if deployment else None
        return Desired(
            env_id=environment.id,
            site=site.name,
            slug=environment.slug,
            kind=environment.kind.value,
            hostnames=(self._names.of(environment.hostname), *custom),
            deployment_id=deployment.id if deployment else None,
            artifact=_pin(reader, deployment, issued) if deployment else None,
            release_command=_runs_release_command(deployment),
            release=issued.envelope if issued else None,
            url=self._url_of(environment),
            is_suspended=environment.status is EnvironmentStatus.SUSPENDED,
        )


def _runs_release_command(deployment: Deployment | None) -> bool:
    """Once for a deployment: not when what it released is to be served again."""
    return (
        deployment is not None and deployment.runs_release_command and deployment.release_id is None
    )


def _pin(
    reader: sqlite3.Connection, deployment: Deployment, issued: IssuedStatement | None
) -> ArtifactPin:
    """The artifact, and the provenance that the release statement names."""
    artifact = artifacts.get(reader, deployment.artifact_id)
    assert artifact is not None, "kept by a foreign key"
    envelope = issued.provenance_sha256 if issued is not None else deployment.envelope_sha256
    return ArtifactPin(artifact.id, artifact.digest, envelope)
