"""The toolchain: the programs that builds here find, and their versions.

Asked in a sandbox as a build has it, so that the answer is what a build would get: once when a
slot starts, and again when programs were installed or updated since.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.builds.sandbox.spec import SandboxSpec

PROBE_TIMEOUT_S = 60.0
ANSWER_TIMEOUTS_S = (5, 10, 20)  # for each program, in one try after the other
OUTPUT_BYTES_MAX = 64 * 1024
VERSION_CHARS_MAX = 100
# What is asked with --version. Those of the second line are scripts that take node a while to
# read: their package says it too.
_PROGRAMS = "python3 uv node bun php composer ruby rustc gcc make git"
_PACKAGES = "npm pnpm yarn corepack"
_NOT_PROGRAMS = ("os", "machine")
SLOW = "slow"  # before the name of a program that did not answer in time
_FOLDERS = (Path("/usr/local/bin"), Path("/usr/bin"))
_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.+~-]*")
_SCRIPT = f"""
answer_s=$1
ask() {{
  name=$1; shift
  command -v "$1" >/dev/null || return 0
  said=$(timeout -k 1 "$answer_s" "$@" </dev/null 2>/dev/null)
  case $? in 124|137) printf '{SLOW}\\t%s\\n' "$name"; return 0;; esac
  printf '%s\\t%s\\n' "$name" "$(printf '%s\\n' "$said" | head -n 1)"
}}
read_package() {{
  path=$(command -v "$1") || return 0
  path=$(readlink -f "$path")
  said=$(grep -m 1 '"version"' "${{path%/*/*}}/package.json" 2>/dev/null)
  if [ -n "$said" ]; then printf '%s\\t%s\\n' "$1" "$said"; else ask "$1" "$1" --version; fi
}}
for name in {_PROGRAMS}; do ask "$name" "$name" --version & done
for name in {_PACKAGES}; do read_package "$name" & done
ask go go version &
ask machine uname -m &
(. /usr/lib/os-release && printf 'os\\t%s\\n' "$ID $VERSION_ID") &
wait
"""

log = structlog.get_logger(__name__)


class Toolchain:
    """What a slot's builds find. Belongs to one event loop."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._seen: object = None
        self._versions: dict[str, str] = {}
        self._problem = ""

    async def versions(self) -> dict[str, str]:
        """Return versions by program, sorted; empty where this machine cannot run the sandbox.

        Takes as long as the slowest program the first time, and nothing while nothing changes. On a
        machine that is too busy for all to answer in time they are asked again, with more time: one
        that is left out by chance makes it another toolchain. Where the sandbox does not start,
        which may be for a moment, they are asked again the next time.
        """
        seen = [_changed_at(folder) for folder in _FOLDERS]
        if seen != self._seen:
            try:
                self._versions = await _all_versions(self._sandboxes)
                self._seen, self._problem = seen, ""
            except SandboxUnavailableError as error:
                self._versions, self._seen = {}, None
                # Said at the start, and not at the first build that needs one; and once.
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.error("sandbox_unavailable", reason=self._problem)  # noqa: TRY400 - a fact
        return self._versions


async def _all_versions(sandboxes: Sandboxes) -> dict[str, str]:
    versions: dict[str, str] = {}
    for answer_s in ANSWER_TIMEOUTS_S:
        versions, is_whole = await probe(sandboxes, answer_s)
        log.info("toolchain_probed", is_whole=is_whole, **versions)
        if is_whole:
            break
    return versions


async def probe(sandboxes: Sandboxes, answer_s: int) -> tuple[dict[str, str], bool]:
    """Ask the programs themselves, and say whether all answered within `answer_s` each.

    One that hangs or is not there is left out.

    Raises:
        SandboxUnavailableError: Nobody could be asked.
    """
    said = bytearray()
    is_whole = True
    spec = SandboxSpec(argv=("/bin/sh", "-c", _SCRIPT, "sh", str(answer_s)), cwd="/")
    sandbox = await sandboxes.start(spec, on_output=said.extend)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await sandbox.wait()
    except TimeoutError:
        log.warning("toolchain_incomplete", timeout_s=PROBE_TIMEOUT_S)
        is_whole = False
    finally:
        await sandbox.close()
    text = bytes(said[:OUTPUT_BYTES_MAX]).decode(errors="replace")
    return read_versions(text), is_whole and f"{SLOW}\t" not in text


def read_versions(said: str) -> dict[str, str]:
    """Read lines `name TAB what it says of itself`; without a version in it a line is dropped."""
    versions = {}
    for line in said.splitlines():
        name, _, text = line.partition("\t")
        match = _VERSION.search(text)
        if name in _NOT_PROGRAMS and text.isprintable():
            versions[name] = text[:VERSION_CHARS_MAX]
        elif name and match:
            versions[name] = match[0][:VERSION_CHARS_MAX]
    return {name: versions[name] for name in sorted(versions) if versions[name]}


def toolchain_digest(versions: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, that equal toolchains share and no others.

    It is the digest that the provenance bears.
    """
    return hashlib.sha256(msgspec.json.encode(dict(versions), order="sorted")).hexdigest()


def _changed_at(folder: Path) -> int | None:
    """When names in the folder last changed: a package that is updated replaces its files."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
