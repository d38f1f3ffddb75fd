"""`managed.toml`: what a repository says about its own build and its run."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hooks.builds.errors import BuildFailedError

CONFIG_INVALID = "build.config_invalid"
COMMAND_CHARS_MAX = 8192
_HEALTH_PATH = re.compile(r"/[!-~]{0,1023}")
_TABLES = {
    "build": ("command", "output", "profile"),
    "run": ("web", "release", "health"),
}


class Profile(StrEnum):
    """How a tree of files becomes something that serves."""

    STATIC = "static"
    PROCFILE = "procfile"


@dataclass(frozen=True, slots=True)
class ManagedToml:
    """Every key, None where it is not set. `output` is a clean relative path, `.` for the root."""

    command: str | None = None
    output: str | None = None
    profile: Profile | None = None
    web: str | None = None
    release: str | None = None
    health: str | None = None


def parse(text: str) -> ManagedToml:
    """Read the text of `managed.toml`.

    Raises:
        BuildFailedError: `build.config_invalid`; it names the key, and the nearest known one.
    """
    try:
        document = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # ValueError also for a number beyond all bounds
        raise _invalid(f"is not TOML: {error}") from error
    _refuse_unknown(document, tuple(_TABLES), "")
    for name, keys in _TABLES.items():
        table = document.setdefault(name, {})
        if not isinstance(table, dict):
            raise _invalid(f"`{name}` must be a table, [{name}], not a value")
        _refuse_unknown(table, keys, f"{name}.")
    build, run = document["build"], document["run"]
    return ManagedToml(
        command=_command(build, "build.command"),
        output=_output(build),
        profile=_profile(build),
        web=_command(run, "run.web"),
        release=_command(run, "run.release"),
        health=_health(run),
    )


def clean_folder(path: str) -> str:
    """Return a relative path without `.`, doubled or trailing slashes; `.` for the root itself.

    Raises:
        ValueError: It is absolute, leaves the root, or no path at all.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path or path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError(path)
    return "/".join(parts) or "."


def _refuse_unknown(table: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise _invalid(f"unknown key `{prefix}{key}`: {hint}")


def _text(table: dict[str, Any], name: str) -> str | None:
    value = table.get(name.rpartition(".")[2])
    if value is None:
        return None
    if not isinstance(value, str):
        raise _invalid(f'`{name}` must be text, as in `{name.rpartition(".")[2]} = "..."`')
    if not value.strip():
        raise _invalid(f"`{name}` is empty: leave the key out, or give it a value")
    return value


def _command(table: dict[str, Any], name: str) -> str | None:
    command = _text(table, name)
    if command is not None and (len(command) > COMMAND_CHARS_MAX or "\0" in command):
        raise _invalid(f"`{name}` is longer than {COMMAND_CHARS_MAX} characters, or holds a NUL")
    return command


def _output(table: dict[str, Any]) -> str | None:
    output = _text(table, "build.output")
    if output is None:
        return None
    try:
        return clean_folder(output)
    except ValueError as error:
        raise _invalid(
            f"`build.output` must be a folder inside the repository, not {output!r}"
        ) from error


def _profile(table: dict[str, Any]) -> Profile | None:
    profile = _text(table, "build.profile")
    if profile is None:
        return None
    known = [str(each) for each in Profile]
    if profile not in known:
        near = difflib.get_close_matches(profile, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise _invalid(f"unknown `build.profile` {profile!r}: {hint}")
    return Profile(profile)


def _health(table: dict[str, Any]) -> str | None:
    health = _text(table, "run.health")
    if health is not None and not _HEALTH_PATH.fullmatch(health):
        raise _invalid(f'`run.health` must be a path such as "/healthz", not {health!r}')
    return health


def _invalid(reason: str) -> BuildFailedError:
    return BuildFailedError(CONFIG_INVALID, f"managed.toml: {reason}")
