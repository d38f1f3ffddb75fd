"""Configs: what the programs of an environment are given of variables and secrets.

A config is settled when a deployment begins, and pinned to its release: the version of the
environment's config with the values that hold then. Equal values are the same version. A rollback
names the version that its release had. Values are sealed in the records, and opened for the site
host alone.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping

import msgspec

from hooks.deploys.wire import Config, config_digest
from hooks.errors import RefusedError
from hooks.job_changes import JobChanges
from hooks.variables import Variables
from storage.digest import Digest
from storage.model import Deployment, EnvironmentConfig, config_place
from storage.records import deployments, environment_configs, releases, variables
from storage.release_statement import ConfigPin

NOTHING = 0
"""The version of a config without values."""
KEEP_COUNT = 100
"""Versions kept per environment, so that a rollback finds what its release was given."""
SALT_BYTES = 32


class Configs:
    """The configs of one server's environments."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables

    def settle(self, changes: JobChanges, deployment: Deployment) -> int:
        """Decide what the release of a deployment is given, and return its version.

        What holds now, unless the deployment names a version already, as a rollback does.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        if deployment.config_version is not None:
            return deployment.config_version
        version = self._version_of_now(changes, deployment)
        deployments.settle_config(changes.db, deployment.id, version)
        environment_configs.prune(changes.db, deployment.env_id, keep_count=KEEP_COUNT)
        return version

    def get(self, db: sqlite3.Connection, env_id: str, version: int) -> Config | None:
        """Return a config with its values; None when it has none.

        Raises:
            RefusedError: `release.config_gone`: it is not kept any more.
            SealBrokenError: See `Vault.unseal`.
        """
        if version == NOTHING:
            return None
        held = environment_configs.get(db, env_id, version)
        if held is None:
            raise config_gone(version)
        return self._open(held)

    def pin(self, db: sqlite3.Connection, env_id: str, version: int) -> ConfigPin | None:
        """Return what a release statement says of a config; nothing for one without values.

        Raises:
            RefusedError: As for `get`.
        """
        if version == NOTHING:
            return None
        held = environment_configs.get(db, env_id, version)
        if held is None:
            raise config_gone(version)
        return ConfigPin(version, Digest.parse(held.pin))

    def changed(self, db: sqlite3.Connection, env_id: str, version: int) -> list[str]:
        """Say by name what the config has otherwise than that of the environment's release."""
        current = releases.current(db, env_id)
        before = self._values(db, env_id, current.config_version if current is not None else None)
        return differences(before, self._values(db, env_id, version))

    def _version_of_now(self, changes: JobChanges, deployment: Deployment) -> int:
        db, env_id = changes.db, deployment.env_id
        values = self._variables.for_run(db, deployment.site_id, env_id)
        if not values.secrets and not values.plain:
            return NOTHING
        digest = self._variables.digest(values)
        newest = environment_configs.newest(db, env_id)
        if newest is not None and newest.digest == digest:
            return newest.version
        version = 1 if newest is None else newest.version + 1
        salt = secrets.token_hex(SALT_BYTES)
        config = Config(version, salt, dict(values.secrets), dict(values.plain))
        sealed = self._variables.vault.seal(
            msgspec.json.encode(config), place=config_place(env_id, version)
        )
        pin = str(config_digest(config))
        made = EnvironmentConfig(env_id, version, digest, pin, sealed, changes.now)
        environment_configs.add(db, made)
        return version

    def _values(self, db: sqlite3.Connection, env_id: str, version: int | None) -> dict[str, str]:
        held = environment_configs.get(db, env_id, version) if version else None
        if held is None:
            return {}
        opened = self._open(held)
        return {**opened.plain, **opened.secrets}

    def _open(self, held: EnvironmentConfig) -> Config:
        place = config_place(held.env_id, held.version)
        return msgspec.json.decode(
            self._variables.vault.unseal(held.sealed, place=place), type=Config
        )


def has_sealed(db: sqlite3.Connection) -> bool:
    """Say whether the records hold values that the key is needed for."""
    return variables.has_any(db) or environment_configs.has_any(db)


def config_gone(version: int) -> RefusedError:
    return RefusedError(
        "release.config_gone",
        f"Version {version} of the environment's config is not kept any more: roll back with the"
        ' config of now ("config": "now").',
    )


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Say of each name whose value differs what became of it, in order, without the value."""
    said = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            what = "added" if name not in old else "removed" if name not in new else "changed"
            said.append(f"{name} {what}")
    return said


def line_of(version: int, changed: list[str]) -> str:
    """What a roll's log says of its config."""
    if version == NOTHING:
        return f"no variables: {', '.join(changed)}" if changed else "no variables"
    return f"config {version}: {', '.join(changed) or 'as it was'}"
