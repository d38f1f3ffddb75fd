"""Node: what `package.json` and its lock file ask for."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import node_server
from hooks.builds.profiles.managed_toml import CONFIG_INVALID
from hooks.builds.profiles.package_json import PACKAGE_JSON, Package
from hooks.builds.profiles.plan import Listing, Need, Recipe

NODE = Need(("node",), "nodejs")
COREPACK = "corepack"
# It fetches the client that package.json names, when that is first called.
_ENABLE = 'corepack enable --install-directory "$HOME/bin" {}'
_CACHES = ("node_modules/.cache", ".next/cache")
_UNREAD_LOCKS = ("bun.lock", "bun.lockb")


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


def recipe(
    listing: Listing, package: Package, programs: Collection[str], *, web: str | None
) -> Recipe:
    """Return what a Node project does by itself.

    `programs`: those that the machine has. `web`: the command that serves the project, if one does:
    then development dependencies go once it is built, unless it names one.

    Raises:
        BuildFailedError: `build.config_invalid`, when two lock files contradict each other.
    """
    client, lock = _client(listing, package)
    notes = _notes(listing, package, client, lock)
    is_installed = lock is not None or package.has_dependencies
    script = package.build_script
    builds = script == "build" or (script is not None and web is None)
    needs_client = is_installed or builds
    install = (client.install if lock else client.loose,) if is_installed else ()
    brings = COREPACK in programs and any(COREPACK in need.programs for need in client.needs)
    if needs_client and brings and client.name not in programs:
        install = (_ENABLE.format(client.name), *install)
    tools = node_server.needed_tools(package, web) if web is not None else []
    if tools:
        notes.append(f"development dependencies stay, for what runs needs {' and '.join(tools)}")
    prunes = web is not None and package.dev_dependencies and not tools
    return Recipe(
        by=(PACKAGE_JSON, *([lock] if lock else [])),
        install=install,
        build=(f"{client.name} run {script}",) if builds else (),
        prune=(client.prune,) if prunes and client.prune else (),
        left_out=_CACHES if web is not None and builds else (),
        web=web,
        output_folder=node_server.pages_folder(package),
        builds_more=not node_server.builds_pages_alone(package),
        needs=(NODE,),
        client_needs=client.needs if needs_client else (),
        notes=tuple(notes),
    )


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


def _notes(listing: Listing, package: Package, client: _Client, lock: str | None) -> list[str]:
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
    if node_server.is_development(package, start):
        notes.append(f"scripts.start is a development server, and is not run: {start[:200]!r}")
    return notes
