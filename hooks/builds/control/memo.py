"""The build memo: what a build's inputs gave before, they give again, without a builder.

Inputs are whatever may decide what a build yields, and nothing else: see `Memo.inputs_of`. Equal
inputs of one site give its artifact on any of its environments; what a cache of previews had a part
in, on previews alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import msgspec

from hooks.builds.errors import BuildFailedError, BuildOverError
from hooks.builds.profiles import managed_toml
from hooks.builds.profiles.managed_toml import ManagedToml
from hooks.builds.profiles.plan import MANAGED_TOML, Listing, told
from hooks.builds.sources.sources import Sources
from hooks.variables import Variables
from storage.errors import StorageError
from storage.git.errors import RepositoryError
from storage.model import Attestation, Build
from storage.records import build_memos, environments, sites
from storage.records.db import Records

_DECIDES_WHERE = ("root", "sites")  # in the inputs as the folder that they lead to


class Memo:
    """What the builds of each site gave. From any thread."""

    def __init__(
        self, records: Records, sources: Sources, variables: Variables | None = None
    ) -> None:
        self._variables = variables
        self._records = records
        self._sources = sources
        self._version = version("gitd")

    def inputs_of(self, build: Build) -> str | None:
        """Return the digest of a build's inputs as they are now, the toolchain excepted.

        They are: the site, the folder of the commit that is built, by its git tree (which has
        the commits of submodules), `.gitmodules`, the settings of `managed.toml` that lie above
        the folder, what the build asks to know of its commit and environment, what it is given of
        variables and secrets, by its keyed digest, and gitd's version. None for a clean build, and
        for one whose inputs cannot be told: it will say why itself.
        """
        if build.clean:
            return None
        return self._inputs(build, lambda config: self._given_now(build, config))

    def inputs_given(self, build: Build, given: str | None) -> str | None:
        """As `inputs_of`, once it is over; of a clean build too: later ones go by what it gave.

        `given`: the digest of what it was given; None when nobody knows.
        """
        return self._inputs(build, lambda _: given)

    def _inputs(self, build: Build, given_of: Callable[[ManagedToml], str | None]) -> str | None:
        try:
            inputs = self._read(build, given_of)
        except (BuildFailedError, StorageError, RepositoryError):
            return None
        encoded = msgspec.json.encode(inputs, order="sorted")
        return None if inputs is None else hashlib.sha256(encoded).hexdigest()

    def recall(
        self,
        db: sqlite3.Connection,
        site_id: str,
        inputs: str,
        toolchain: str,
        *,
        for_preview: bool,
    ) -> Attestation | None:
        """The statement of the build that gave an artifact of these inputs, if that can be
        deployed still.
        """
        return build_memos.find(db, site_id, inputs, toolchain, for_preview=for_preview)

    def is_for_preview(self, build: Build) -> bool:
        """Say whether it is; one whose environment is gone counts as such."""
        return environments.is_preview(self._records.reader(), build.env_id)

    def may_read(self, build: Build) -> bool:
        """Say whether whoever asked for the build may fetch the submodules that are in it.

        Takes as long as finding them, where the commit has any. False when it is over meanwhile.
        """
        try:
            config, root = self._config(build)
            if config.ignores_submodules or not self._sources.gitmodules(build):
                return True
            self._sources.grafts(build, root)
        except (BuildFailedError, BuildOverError, StorageError, RepositoryError):
            return False
        return True

    def _read(
        self, build: Build, given_of: Callable[[ManagedToml], str | None]
    ) -> dict[str, object] | None:
        site = sites.find(self._records.reader(), build.site_id)
        environment = environments.get(self._records.reader(), build.env_id)
        if site is None or environment is None:
            return None
        config, root = self._config(build)
        given = given_of(config) if config.variables else ""
        if given is None:
            return None
        folder = self._sources.folder(build, root)
        if folder is None:
            return None
        known = told(config.facts or (), build.commit, build.ref, environment.slug)
        settings = {k: v for k, v in asdict(config).items() if k not in _DECIDES_WHERE}
        return {
            "gitd": self._version,
            "site": site.name,
            "root": root,
            "tree": folder.tree,
            "settings": settings,
            "known": known,
            "given": given,
            "gitmodules": None if config.ignores_submodules else self._sources.gitmodules(build),
        }

    def _given_now(self, build: Build, config: ManagedToml) -> str | None:
        if self._variables is None:
            return None
        found = self._variables.for_build(
            self._records.reader(), build.site_id, build.env_id, config.variables or ()
        )
        return None if found.missing else found.digest

    def _config(self, build: Build) -> tuple[ManagedToml, str]:
        """Return the settings of a build, and the folder of its commit that it reads."""
        site = sites.find(self._records.reader(), build.site_id)
        config = self._managed_toml(build, ".")
        root = config.root_of(site.name if site is not None else "")
        if root != ".":
            config = config.overridden_by(self._managed_toml(build, root))
        return config, root

    def _managed_toml(self, build: Build, path: str) -> ManagedToml:
        folder = self._sources.folder(build, path)
        if folder is None:
            return ManagedToml()
        listing = Listing.of(folder, path)
        text = listing.text(MANAGED_TOML)
        if text is None:
            return ManagedToml()
        return managed_toml.parse(text, where=listing.path(MANAGED_TOML))
