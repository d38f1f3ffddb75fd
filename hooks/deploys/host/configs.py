"""Configs at the site host: what the programs of its releases are given.

They are asked of control when a release is rolled, checked against the release statement, and kept
sealed beside the environment's state, so that what was served is started again without control.

    environments/<env_id>/config-<deployment_id>    sealed under the host's own variables.key
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import msgspec

from hooks.deploys.errors import RollFailedError
from hooks.deploys.host.control import (
    BACK_OFF_FIRST_S,
    BACK_OFF_MAX_S,
    ControlLine,
    ControlUnreachableError,
)
from hooks.deploys.wire import Config, config_digest
from storage.errors import SealBrokenError
from storage.files import mapped_errors, write_atomic
from storage.release_statement import ConfigPin
from storage.sealing import Vault

_PREFIX: Final = "config-"
_MODE: Final = 0o600


async def fetch(line: ControlLine, deployment_id: str) -> Config | None:
    """Ask control for a deployment's config, for as long as control is away."""
    pause_s = BACK_OFF_FIRST_S
    while True:
        try:
            return await line.config(deployment_id)
        except ControlUnreachableError:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACK_OFF_MAX_S)


def check(config: Config | None, pin: ConfigPin) -> Config:
    """Return the config, if it is the one that the release statement names.

    Raises:
        RollFailedError: It is not.
    """
    if config is None:
        raise RollFailedError(
            "release.config_unreadable",
            f"there is no config {pin.version}, which the release statement names",
        )
    if config.version != pin.version or config_digest(config) != pin.digest:
        raise RollFailedError(
            "release.statement_invalid",
            f"what the release is given is not the config {pin.version} that its statement names",
        )
    return config


class ConfigFiles:
    """The sealed configs of an environment. Its methods block."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder = folder
        self._vault = vault

    def write(self, deployment_id: str, config: Config) -> None:
        """Keep it, durably."""
        sealed = self._vault.seal(msgspec.json.encode(config), place=self._place(deployment_id))
        path = self._folder / f"{_PREFIX}{deployment_id}"
        with mapped_errors(f"write {path}"):
            write_atomic(path, sealed, mode=_MODE)

    def read(self, deployment_id: str) -> Config | None:
        """Return it; None when it is not there, or does not open."""
        try:
            sealed = (self._folder / f"{_PREFIX}{deployment_id}").read_bytes()
            opened = self._vault.unseal(sealed, place=self._place(deployment_id))
            return msgspec.json.decode(opened, type=Config)
        except (OSError, SealBrokenError, ValueError):
            return None

    def keep_only(self, deployment_id: str | None) -> None:
        """Remove those of other deployments, and what a crash left half written."""
        for path in (*self._folder.glob(f"{_PREFIX}*"), *self._folder.glob(f".{_PREFIX}*")):
            if path.name != f"{_PREFIX}{deployment_id}":
                with contextlib.suppress(OSError):
                    path.unlink()

    def _place(self, deployment_id: str) -> str:
        return f"{self._folder.name}/{deployment_id}"
