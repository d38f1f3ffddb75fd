"""Node: what `package.json` and its lock file ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.managed_toml import CONFIG_INVALID
from hooks.builds.profiles.plan import Listing, Need, Recipe, checked_command

PACKAGE_JSON = "package.json"
NODE = Need(("node",), "nodejs")

# Source: npm-scripts(7), "npm start": without the script, `node server.js` where there is one.
_DEFAULT_SERVER = "server.js"
COREPACK = "corepack"
# It fetches the client that package.json names, when that is first called.
_ENABLE = 'corepack enable --install-directory "$HOME/bin" {}'
_WITHOUT_CACHES = "rm -rf node_modules/.cache .next/cache"
_UNREAD_LOCKS = ("bun.lock", "bun.lockb")
_DEVELOPMENT_SERVER = re.compile(
    r"\b(?:"
    r"(?:react-scripts|craco|react-app-rewired|docusaurus) start"
    r"|(?:astro|gatsby) (?:dev|develop|start)|ng serve|gatsby develop|ember serve"
    r"|(?:next|nuxt|nuxi|vitepress|vuepress|remix|rsbuild|umi|max|quasar|snowpack) dev"
    r"|vue-cli-service serve|webpack(?:-cli)? serve|webpack-dev-server|live-server"
    r"|eleventy\b.*--serve|parcel(?! build)|vite(?! (?:build|preview))"
    r")(?![\w.:/-])"
)


@dataclass(frozen=True, slots=True)
class _Client:
    """A package manager: how it installs exactly what its lock file says, and what it drops then.

    `loose` installs without a lock file.
    """

    name: str
    locks: tuple[str, ...]
    install: str
    loose: str
    prune: str | None
    needs: tuple[Need, ...]


_NPM = _Client(
    "npm",
    ("package-lock.json", "npm-shrinkwrap.json"),
    "npm ci",
    "npm install --no-package-lock",
    "npm prune --omit=dev",
    (Need(("npm",), "npm"),),
)
_PNPM = _Client(
    "pnpm",
    ("pnpm-lock.yaml",),
    "pnpm install --frozen-lockfile",
    "pnpm install --no-lockfile",
    "pnpm prune --prod",
    (Need(("pnpm", "corepack"), "pnpm, or corepack"),),
)
_YARN_NEED = (Need(("yarn", "corepack"), "yarn, or corepack"),)
_YARN_CLASSIC = _Client(
    "yarn",
    ("yarn.lock",),
    "yarn install --frozen-lockfile --non-interactive",
    "yarn install --no-lockfile --non-interactive",
    "yarn install --production --frozen-lockfile --ignore-scripts --non-interactive",
    _YARN_NEED,
)
_YARN_BERRY = _Client(
    "yarn",
    ("yarn.lock",),
    "yarn install --immutable",
    "yarn install --no-immutable",
    None,
    _YARN_NEED,
)
_YARN_4 = replace(_YARN_BERRY, prune="yarn workspaces focus --all --production")


@dataclass(frozen=True, slots=True)
class Package:
    """What is read of a `package.json`."""

    scripts: dict[str, str]
    has_dependencies: bool
    has_dev_dependencies: bool
    manager: str
    """`packageManager`, such as `pnpm@9.1.0`; empty where it is not said."""

    @classmethod
    def read(cls, listing: Listing) -> Package | None:
        """Return the `package.json` of a folder, None where it has none.

        Raises:
            BuildFailedError: `build.config_invalid`.
        """
        text = listing.text(PACKAGE_JSON)
        if text is None:
            return None
        where = listing.path(PACKAGE_JSON)
        try:
            document = json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise BuildFailedError(CONFIG_INVALID, f"{where} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise BuildFailedError(CONFIG_INVALID, f"{where} must be an object")
        manager = document.get("packageManager")
        return cls(
            scripts=_scripts(document, where),
            has_dependencies=any(
                document.get(key)
                for key in (
                    "dependencies",
                    "devDependencies",
                    "optionalDependencies",
                    "peerDependencies",
                    "workspaces",
                )
            ),
            has_dev_dependencies=bool(document.get("devDependencies")),
            manager=manager if isinstance(manager, str) else "",
        )

    def server(self, listing: Listing) -> str | None:
        """Return the command of `npm start`, unless it is a development server."""
        start = self.scripts.get("start")
        if start is None:
            return f"node {_DEFAULT_SERVER}" if listing.has_file(_DEFAULT_SERVER) else None
        if _DEVELOPMENT_SERVER.search(start):
            return None
        before = self.scripts.get("prestart")
        command = f"({before}) && {start}" if before else start
        return checked_command(command, f"{listing.path(PACKAGE_JSON)}: scripts.start")


def recipe(listing: Listing, package: Package, programs: Collection[str], *, runs: bool) -> Recipe:
    """Return what a Node project does by itself.

    `programs`: those that the machine has. `runs`: a program serves the project, so that
    development dependencies go once it is built.

    Raises:
        BuildFailedError: `build.config_invalid`, when two lock files contradict each other.
    """
    client, lock = _client(listing, package)
    notes = _notes(listing, package, client, lock)
    is_installed = lock is not None or package.has_dependencies
    builds = "build" in package.scripts
    needs_client = is_installed or builds
    install = (client.install if lock else client.loose,) if is_installed else ()
    brings = COREPACK in programs and any(COREPACK in need.programs for need in client.needs)
    if needs_client and brings and client.name not in programs:
        install = (_ENABLE.format(client.name), *install)
    prune = client.prune if runs and is_installed and package.has_dev_dependencies else None
    return Recipe(
        by=(PACKAGE_JSON, *([lock] if lock else [])),
        install=install,
        build=(f"{client.name} run build",) if builds else (),
        prune=(prune,) if prune else (),
        finish=(_WITHOUT_CACHES,) if runs and builds else (),
        web=package.server(listing),
        needs=(NODE,),
        client_needs=client.needs if needs_client else (),
        notes=notes,
    )


def _scripts(document: dict[str, Any], where: str) -> dict[str, str]:
    scripts = document.get("scripts") or {}
    if not isinstance(scripts, dict):
        raise BuildFailedError(CONFIG_INVALID, f"{where}: scripts must be an object")
    return {name: script for name, script in scripts.items() if isinstance(script, str) and script}


def _client(listing: Listing, package: Package) -> tuple[_Client, str | None]:
    """Return the client, and the lock file that it goes by, if there is one."""
    name, _, version = package.manager.partition("@")
    clients = (_NPM, _PNPM, _yarn(version if name == "yarn" else "", listing))
    found = [(each, lock) for each in clients if (lock := listing.first_file(*each.locks))]
    named = next((each for each in clients if each.name == name), None)
    if named is not None:
        return named, next((lock for client, lock in found if client is named), None)
    if len(found) > 1:
        locks = " and ".join(listing.path(lock) for _, lock in found)
        raise BuildFailedError(
            CONFIG_INVALID,
            f"{locks} are both there: remove the one that is out of use, or name the package"
            ' manager in package.json, as in "packageManager": "pnpm@9.1.0"',
        )
    return found[0] if found else (_NPM, None)


def _yarn(version: str, listing: Listing) -> _Client:
    major = int(digits[0]) if (digits := re.match(r"[0-9]{1,3}", version)) else 0
    if major >= 4:
        return _YARN_4
    return _YARN_BERRY if major >= 2 or listing.has_file(".yarnrc.yml") else _YARN_CLASSIC


def _notes(
    listing: Listing, package: Package, client: _Client, lock: str | None
) -> tuple[str, ...]:
    notes = [
        f"{name} is not read: npm, pnpm and yarn are"
        for name in _UNREAD_LOCKS
        if listing.has_file(name)
    ]
    if lock is None and package.has_dependencies:
        notes.append(
            f"there is no {client.locks[0]}: the versions that are installed may differ from build"
            " to build"
        )
    start = package.scripts.get("start", "")
    if _DEVELOPMENT_SERVER.search(start):
        notes.append(f"scripts.start is a development server, and is not run: {start[:200]!r}")
    return tuple(notes)
