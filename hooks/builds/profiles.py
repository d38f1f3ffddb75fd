"""Profiles: what a commit is, told from the names in its root and the text of a few files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hooks.builds import managed_toml
from hooks.builds.errors import BuildFailedError
from hooks.builds.managed_toml import CONFIG_INVALID, ManagedToml, Profile
from hooks.builds.wire import CONFIG_FILE_BYTES_MAX, RootEntry, RunCommands

MANAGED_TOML, PROCFILE, INDEX = "managed.toml", "Procfile", "index.html"
UNDETECTED = "build.undetected"
OUTPUT_MISSING = "build.output_missing"
OUTPUT_INVALID = "build.output_invalid"
PUBLISHED_DOT_FOLDER = ".well-known"  # Source: RFC 8615
_PROCFILE_LINE = re.compile(r"([A-Za-z0-9_-]+)\s*:\s*(.*\S)\s*")
_PROCFILE_KNOWN = ("web", "release")


@dataclass(frozen=True, slots=True)
class Plan:
    """How to build a commit.

    `command` is for `/bin/sh -c`; without one nothing is built. `folder` is the part of the tree
    that becomes the artifact, `.` for all of it. `notes` are lines for the log.
    """

    profile: Profile
    run: RunCommands
    command: str | None = None
    folder: str = "."
    notes: tuple[str, ...] = ()

    @property
    def is_source(self) -> bool:
        """Say whether the artifact is a folder of the commit as it stands."""
        return self.command is None

    @property
    def settings(self) -> dict[str, str]:
        """What the build was told, for its provenance."""
        command = {} if self.command is None else {"command": self.command}
        return {**command, "output": self.folder}


def detect(root_entries: Sequence[RootEntry], files: Mapping[str, str]) -> Plan:
    """Decide how a commit is built.

    `files`: the text of `managed.toml` and `Procfile`, where the root has them.

    Raises:
        BuildFailedError: `build.config_invalid`, `build.undetected`, or `build.output_missing`
            when the output is a folder that the commit does not have.
    """
    kinds = {entry.name: entry.kind for entry in root_entries}
    config = _managed_toml(kinds, files)
    procfile, notes = _procfile(kinds, files)
    notes += [f"{name} is a submodule: its files are not fetched" for name in _submodules(kinds)]
    web = config.web or procfile.get("web")
    profile = config.profile or _guess(config, web, kinds)
    if profile is Profile.PROCFILE:
        if web is None:
            raise _without_web(kinds)
        run = RunCommands(
            web=web, release=config.release or procfile.get("release"), health=config.health
        )
    else:
        run = RunCommands()
        notes += [f"{name} is ignored: a static site runs nothing" for name in _unused(config)]
    folder = config.output or _default_folder(profile, config, kinds)
    if config.command is None:
        _require_folder(folder, kinds)
    return Plan(profile, run, config.command, folder, tuple(notes))


def is_published(path: str) -> bool:
    """Say whether a static site shows `path`, which is relative to the folder that it serves.

    Not shown: `managed.toml`, and what begins with a dot (`.git*`, `.env`, ...) at any depth,
    except below `.well-known` in the root.
    """
    first, *rest = path.split("/")
    if first == MANAGED_TOML and not rest:
        return False
    hidden = [part for part in rest if part.startswith(".")]
    return not hidden and (not first.startswith(".") or first == PUBLISHED_DOT_FOLDER)


def _managed_toml(kinds: Mapping[str, str], files: Mapping[str, str]) -> ManagedToml:
    _require_text(MANAGED_TOML, kinds, files)
    return managed_toml.parse(files[MANAGED_TOML]) if MANAGED_TOML in files else ManagedToml()


def _procfile(
    kinds: Mapping[str, str], files: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the Procfile's commands by process type, and notes on those that are not run."""
    _require_text(PROCFILE, kinds, files)
    commands: dict[str, str] = {}
    for number, line in enumerate(files.get(PROCFILE, "").splitlines(), start=1):
        if not line.strip("\ufeff \t") or line.lstrip("\ufeff \t").startswith("#"):
            continue
        match = _PROCFILE_LINE.fullmatch(line.strip("\ufeff \t"))
        if match is None or "\0" in line:
            raise BuildFailedError(
                CONFIG_INVALID, f"Procfile: line {number} is not `type: command`: {line[:80]!r}"
            )
        name, command = match.groups()
        if name in commands:
            raise BuildFailedError(CONFIG_INVALID, f"Procfile: line {number}: a second {name!r}")
        commands[name] = command
    notes = [
        f"Procfile: {name} is not run, only web and release are"
        for name in commands
        if name not in _PROCFILE_KNOWN
    ]
    return commands, notes


def _require_text(name: str, kinds: Mapping[str, str], files: Mapping[str, str]) -> None:
    if name in kinds and name not in files:
        raise BuildFailedError(
            CONFIG_INVALID,
            f"{name} must be a plain file of UTF-8 text, of at most {CONFIG_FILE_BYTES_MAX} bytes",
        )


def _guess(config: ManagedToml, web: str | None, kinds: Mapping[str, str]) -> Profile:
    if web is not None:
        return Profile.PROCFILE
    if PROCFILE in kinds:
        raise _without_web(kinds)
    if config.output is not None or kinds.get(INDEX) in ("file", "link"):
        return Profile.STATIC
    raise _undetected(config, kinds)


def _default_folder(profile: Profile, config: ManagedToml, kinds: Mapping[str, str]) -> str:
    if profile is Profile.STATIC and config.command is not None and INDEX not in kinds:
        raise BuildFailedError(
            UNDETECTED,
            "managed.toml sets build.command, but not where the result is: add the folder that the"
            ' command writes, such as output = "dist", to [build].',
        )
    return "."


def _require_folder(folder: str, kinds: Mapping[str, str]) -> None:
    first = folder.partition("/")[0]
    if first == "." or kinds.get(first) == "dir":
        return
    if first in kinds:
        raise BuildFailedError(OUTPUT_INVALID, f"The output {folder!r} is no folder.")
    raise BuildFailedError(
        OUTPUT_MISSING,
        f"The commit has no folder {folder!r}, and no build.command in managed.toml makes it.",
    )


def _without_web(kinds: Mapping[str, str]) -> BuildFailedError:
    where = "The Procfile has no" if PROCFILE in kinds else "There is no Procfile with a"
    return BuildFailedError(
        UNDETECTED,
        f"{where} `web:` line: add one with the command that serves HTTP on $PORT, such as"
        " `web: python3 app.py`, or set run.web in managed.toml.",
    )


def _undetected(config: ManagedToml, kinds: Mapping[str, str]) -> BuildFailedError:
    looked = (
        f"Looked in the root of the commit for {INDEX} (a static site), {PROCFILE} (a web process)"
        f" and {MANAGED_TOML} ([build] output, or [run] web)."
    )
    found = "Found none of them."
    if MANAGED_TOML in kinds:
        found = f"Found {MANAGED_TOML}, which sets neither build.output nor run.web."
    advice = (
        f"Add an {INDEX}, or a {PROCFILE} with a line `web: COMMAND`, or a {MANAGED_TOML} with"
        ' [build] output = "FOLDER" and the command that makes it.'
    )
    if config.command is not None:
        advice = 'Add output = "FOLDER", the folder that the command writes, to [build].'
    elif "package.json" in kinds:
        advice += (
            " There is a package.json: for a site that a script builds, [build] command ="
            ' "npm run build" and its output; for a server, `web: node FILE` in a Procfile.'
        )
    return BuildFailedError(UNDETECTED, f"{looked} {found} {advice}")


def _submodules(kinds: Mapping[str, str]) -> list[str]:
    return [name for name, kind in kinds.items() if kind == "submodule"]


def _unused(config: ManagedToml) -> list[str]:
    keys = {"run.web": config.web, "run.release": config.release, "run.health": config.health}
    return [key for key, value in keys.items() if value is not None]
