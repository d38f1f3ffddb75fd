"""`managed.toml`: what a repository says about its own builds and what they run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.toml_text import read_toml
from hooks.variable_rules import name_fault
from storage.manifest import PATH_BYTES_MAX

CONFIG_INVALID = "build.config_invalid"
COMMAND_CHARS_MAX = 8192
SITES_COUNT_MAX = 1000
CACHE_COUNT_MAX = 20
VARIABLES_COUNT_MAX = 64
_HEALTH_PATH = re.compile(r"/[!-~]{0,1023}")
TABLES = {
    "build": (
        *("root", "profile", "install", "command", "finish", "output", "facts", "cache"),
        *("submodules", "lfs", "variables"),
    ),
    "run": ("web", "release", "health"),
}
_SITES = "sites"
_FOLDER_KEYS = ("root", _SITES)
_IGNORE = "ignore"


class Profile(StrEnum):
    """How a tree of files becomes something that serves."""

    STATIC = "static"
    NODE = "node"
    PYTHON = "python"
    PHP = "php"
    PROCFILE = "procfile"


class Fact(StrEnum):
    """What a build can ask to know of itself. It is then built anew wherever that differs."""

    COMMIT = "commit"
    REF = "ref"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class ManagedToml:
    """Every key, None where it is not set. Folders are clean relative paths, `.` for the root.

    `install`, `command` and `finish`: False leaves out what the profile would do by itself.
    `sites`: the folder of each site that is named.
    """

    root: str | None = None
    profile: Profile | None = None
    install: str | Literal[False] | None = None
    command: str | Literal[False] | None = None
    finish: str | Literal[False] | None = None
    output: str | None = None
    facts: tuple[Fact, ...] | None = None
    cache: tuple[str, ...] | None = None
    ignores_submodules: bool | None = None
    ignores_lfs: bool | None = None
    web: str | None = None
    release: str | None = None
    health: str | None = None
    variables: tuple[str, ...] | None = None
    sites: dict[str, str] = field(default_factory=dict)

    def root_of(self, site: str) -> str:
        """Return the folder of the repository that `site` is built from."""
        return self.sites.get(site, self.root or ".")

    def overridden_by(self, inner: ManagedToml) -> ManagedToml:
        """Return these settings with those of the site's own folder over them, key by key."""
        given = {
            each.name: value
            for each in fields(inner)
            if each.name not in _FOLDER_KEYS and (value := getattr(inner, each.name)) is not None
        }
        return replace(self, **given)


def parse(text: str, *, where: str = "managed.toml") -> ManagedToml:
    """Read the text of a `managed.toml`. One that is not at the top of its repository says nothing
    of folders.

    Raises:
        BuildFailedError: `build.config_invalid`; it names the key, and the nearest known one.
    """
    try:
        return _parse(text, is_top="/" not in where)
    except _Invalid as error:
        raise BuildFailedError(CONFIG_INVALID, f"{where}: {error}") from error


def clean_folder(path: str) -> str:
    """Return a relative path without `.`, doubled or trailing slashes; `.` for the root itself.

    Raises:
        ValueError: It is absolute, leaves the root, or no path at all.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path or path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError(path)
    return "/".join(parts) or "."


class _Invalid(Exception):  # noqa: N818 - never leaves this module
    """What is wrong, as a clause."""


def _parse(text: str, *, is_top: bool) -> ManagedToml:
    try:
        document = read_toml(text)
    except ValueError as error:
        raise _Invalid(f"is not TOML: {error}") from error
    _refuse_unknown(document, (*TABLES, _SITES), "")
    for name in (*TABLES, _SITES):
        table = document.setdefault(name, {})
        if not isinstance(table, dict):
            raise _Invalid(f"`{name}` must be a table, [{name}], not a value")
        _refuse_unknown(table, TABLES.get(name, table), f"{name}.")
    build, run = document["build"], document["run"]
    if not is_top and ("root" in build or document[_SITES]):
        raise _Invalid("only the managed.toml at the top of the repository has [sites] and a root")
    return ManagedToml(
        root=_folder(build, "build.root"),
        profile=_profile(build),
        install=_step(build, "build.install"),
        command=_step(build, "build.command"),
        finish=_step(build, "build.finish"),
        output=_folder(build, "build.output"),
        facts=_facts(build),
        cache=_cache(build),
        ignores_submodules=_ignores(build, "build.submodules"),
        ignores_lfs=_ignores(build, "build.lfs"),
        web=_command(run, "run.web"),
        release=_command(run, "run.release"),
        health=_health(run),
        variables=_variables(build),
        sites=_site_folders(document[_SITES]),
    )


def _refuse_unknown(table: dict[str, Any], known: Iterable[str], prefix: str) -> None:
    known = tuple(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise _Invalid(f"unknown key `{prefix}{key}`: {hint}")


def _text(table: dict[str, Any], name: str) -> str | None:
    value = table.get(name.partition(".")[2])
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Invalid(f'`{name}` must be text, as in `{name.partition(".")[2]} = "..."`')
    if not value.strip():
        raise _Invalid(f"`{name}` is empty: leave the key out, or give it a value")
    return value


def _command(table: dict[str, Any], name: str) -> str | None:
    command = _text(table, name)
    if command is not None and (len(command) > COMMAND_CHARS_MAX or "\0" in command):
        raise _Invalid(f"`{name}` is longer than {COMMAND_CHARS_MAX} characters, or holds a NUL")
    return command


def _step(table: dict[str, Any], name: str) -> str | Literal[False] | None:
    key = name.partition(".")[2]
    if table.get(key) is False:
        return False
    if table.get(key) == "":
        raise _Invalid(f"`{name}` is empty: to leave the step out, write `{key} = false`")
    return _command(table, name)


def _folder(table: dict[str, Any], name: str) -> str | None:
    folder = _text(table, name)
    if folder is None:
        return None
    if len(folder.encode()) > PATH_BYTES_MAX:
        raise _Invalid(f"`{name}` is longer than {PATH_BYTES_MAX} bytes")
    try:
        return clean_folder(folder)
    except ValueError as error:
        raise _Invalid(
            f"`{name}` must be a folder inside the repository, not {folder!r}"
        ) from error


def _site_folders(table: dict[str, Any]) -> dict[str, str]:
    if len(table) > SITES_COUNT_MAX:
        raise _Invalid(f"[sites] names more than {SITES_COUNT_MAX} sites")
    return {site: folder for site in table if (folder := _folder(table, f"sites.{site}"))}


def _facts(table: dict[str, Any]) -> tuple[Fact, ...] | None:
    names = table.get("facts")
    known = [str(each) for each in Fact]
    if names is None:
        return None
    if not isinstance(names, list) or not all(name in known for name in names):
        raise _Invalid(f"`build.facts` must be a list of some of {known}, not {names!r}"[:300])
    return tuple(fact for fact in Fact if fact in names)


def _cache(table: dict[str, Any]) -> tuple[str, ...] | None:
    names = table.get("cache")
    if names is None:
        return None
    if not isinstance(names, list) or len(names) > CACHE_COUNT_MAX:
        raise _Invalid(f"`build.cache` must be a list of at most {CACHE_COUNT_MAX} folders")
    folders = [_folder({"cache": name}, "build.cache") for name in names]
    if "." in folders:
        raise _Invalid("`build.cache` cannot be the whole site: name the folders in it")
    return tuple(dict.fromkeys(folder for folder in folders if folder))


def _ignores(table: dict[str, Any], name: str) -> bool | None:
    value = _text(table, name)
    if value is not None and value != _IGNORE:
        raise _Invalid(f'`{name}` can only be "{_IGNORE}", not {value!r}')
    return None if value is None else True


def _variables(table: dict[str, Any]) -> tuple[str, ...] | None:
    names = table.get("variables")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Invalid('`build.variables` must be a list of names, such as ["NPM_TOKEN"]')
    if len(names) > VARIABLES_COUNT_MAX:
        raise _Invalid(f"`build.variables` has more than {VARIABLES_COUNT_MAX} names")
    for name in names:
        if fault := name_fault(name):
            raise _Invalid(f"`build.variables`: {name[:200]!r}: {fault}")
    return tuple(dict.fromkeys(names))


def _profile(table: dict[str, Any]) -> Profile | None:
    profile = _text(table, "build.profile")
    if profile is None:
        return None
    known = [str(each) for each in Profile]
    if profile not in known:
        near = difflib.get_close_matches(profile, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise _Invalid(f"unknown `build.profile` {profile!r}: {hint}")
    return Profile(profile)


def _health(table: dict[str, Any]) -> str | None:
    health = _text(table, "run.health")
    if health is not None and not _HEALTH_PATH.fullmatch(health):
        raise _Invalid(f'`run.health` must be a path such as "/healthz", not {health!r}')
    return health
