"""The checkout that `mf` is run in: which server and site it is pushed to, and git's key for them.

Who names a remote `managed` has chosen that server for pushes, and so for `mf`. What another remote
is named is nobody's choice of a server to send a key to: such a one only names the site, on the
server that is used anyway.

What a clone brought is its author's, and git takes tracked files that look like a bare repository
for one: it is no checkout here. And the helpers that have a key are those of the user and the
machine, never of the folder that this is run in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

MANAGED: Final = "managed"
GIT_S_MAX: Final = 5.0
KEY_S_MAX: Final = 15.0  # helpers may ask a keyring
# No repository that is only found because files of a working tree look like one (git 2.38).
_NO_BARE: Final = ("-c", "safe.bareRepository=explicit")
# What would put another repository in the place of the checkout's.
_REPOSITORY: Final = ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE")
# Nobody is asked for anything: neither on the terminal nor in a window.
_UNASKED: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "GCM_INTERACTIVE": "never",
}
_SITE: Final = re.compile(r"/([A-Za-z0-9_-]+)\.git/?")


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote that leads to a site: `http(s)://HOST/SITE.git`. `server`: without the site."""

    name: str
    server: str
    site: str


def remotes() -> list[Remote]:
    """The remotes of this checkout that may lead to a site; none outside of one."""
    found: list[Remote] = []
    if _is_in_bare():
        return found
    for name in (_git("remote") or "").splitlines():
        remote = _remote(name, (_git("remote", "get-url", "--push", name) or "").strip())
        if remote is not None:
            found.append(remote)
    return found


def managed(candidates: list[Remote]) -> Remote | None:
    """The one that its owner calls the managed one."""
    return next((remote for remote in candidates if remote.name == MANAGED), None)


def site_on(server: str, candidates: list[Remote]) -> Remote | None:
    """The remote that names the site on that server: the managed one, or the only one that does."""
    there = [remote for remote in candidates if remote.server == server]
    sites = {remote.site for remote in there}
    return managed(there) or (there[0] if len(sites) == 1 else None)


def git_key(server: str, site: str | None) -> str | None:
    """The key that git would push with there, if one of its credential helpers has it."""
    parts = urlsplit(server)
    asked = f"protocol={parts.scheme}\nhost={parts.netloc}\n"
    if site is not None:  # heard where `credential.useHttpPath` is set
        asked += f"path={site}.git\n"
    options = ("-c", "credential.interactive=false", "-c", "core.askPass=true")
    # In the root folder no checkout's settings say what is run as a helper.
    said = _git(*options, "credential", "fill", stdin=asked + "\n", timeout_s=KEY_S_MAX, cwd="/")
    fields = dict(line.partition("=")[::2] for line in (said or "").splitlines())
    return fields.get("password") or None


def _remote(name: str, url: str) -> Remote | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    match = _SITE.fullmatch(unquote(parts.path))
    if parts.scheme not in ("http", "https") or not host or match is None or parts.query:
        return None
    # Without a user and a password: those are git's to send.
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    return Remote(name, f"{parts.scheme}://{place}", match[1])


def _is_in_bare() -> bool:
    """Say whether git would find a bare repository here first, as one before 2.38 would use it."""
    try:
        here = Path.cwd()
    except OSError:
        return True  # the folder is gone, and with it every checkout
    for folder in (here, *here.parents):
        if os.path.lexists(folder / ".git"):
            return False
        if os.path.lexists(folder / "HEAD"):
            return True
    return False


def _git(
    *arguments: str, stdin: str = "", timeout_s: float = GIT_S_MAX, cwd: str | None = None
) -> str | None:
    """What git says, or None where it is not here, fails or takes too long."""
    program = shutil.which("git")
    if program is None:
        return None
    kept = {name: value for name, value in os.environ.items() if name not in _REPOSITORY}
    environ: Mapping[str, str] = {**kept, **_UNASKED}
    try:
        done = subprocess.run(
            [program, *_NO_BARE, *arguments],
            input=stdin.encode(),
            capture_output=True,
            cwd=cwd,
            env=environ,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
