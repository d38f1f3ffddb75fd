"""Dependency caches, on a slot's side: put back before the first step, gathered after the last.

Kept is what package clients have below the home, in their own caches, and the folders that
`[build] cache` names. A tar has the first below `home/`, the others below `app/`. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.plan import Plan, StepName
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sources.tree import StoppedError, TreeSize, real_folder, tar_chunks, unpack
from hooks.builds.wire import FACT_NAME_CHARS_MAX
from storage.errors import TreeError
from storage.links import escaping_link, is_host_target
from storage.manifest import LinkEntry
from storage.scan import scan_directory
from storage.source import Draft, Limits, SourceEntry, SourceFile, SourceLink

HOME_FOLDERS = (
    ".cache",
    ".npm/_cacache",
    ".local/share/pnpm/store",
    ".yarn/berry/cache",
    ".composer/cache",
)
"""Where npm, pnpm, yarn, corepack, pip, uv, composer and most others keep what they fetched."""
_LOCKS = (
    "package-lock.json",
    "npm-shrinkwrap.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "uv.lock",
    "poetry.lock",
    "Pipfile.lock",
    "composer.lock",
)
_REQUIREMENTS = ("requirements*.txt", "constraints*.txt")  # at the top, and any in that folder:
_REQUIREMENTS_FOLDER = "requirements"
_REQUIREMENTS_MAX = 200  # files; a folder with more has other things than requirements
_NAMED_MAX = 32  # of them; the others, and those of long names, count together
_OTHERS = "other requirements"
UNLOCKED = ("package.json", "pyproject.toml", "composer.json")
"""They count where there is no lock file."""
_TOOLS = ("node", "npm", "pnpm", "yarn", "python3", "uv", "php", "composer")
_LINKS_LEFT_OUT_MAX = 100
_SHOWN_MAX = 3


def key_of(tree: Path, plan: Plan, toolchain: Mapping[str, str]) -> dict[str, str]:
    """Return what decides which dependencies a build needs: files and commands by digest, programs
    by version.

    Without a lock file it is what stands for one.
    """
    key = _digests(tree, _LOCKS) | _few(_digests(tree, _requirements(tree)))
    if not key:
        key = _digests(tree, UNLOCKED)
    key |= {name: toolchain[name] for name in _TOOLS if name in toolchain}
    installing = [step.command for step in plan.steps if step.name is StepName.INSTALL]
    if installing:
        key["install command"] = _digest("\n".join(installing).encode())
    if plan.cache:
        key["cache folders"] = _digest("\n".join(plan.cache).encode())
    return key


@dataclass(slots=True)
class Gathered:
    """What is kept for the next build. `left_out`: what cannot be, each with its reason."""

    entries: list[SourceEntry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    size_bytes: int = 0
    files: int = 0

    def chunks(self) -> Iterator[bytes]:
        return tar_chunks(self.entries)

    @property
    def said(self) -> str:
        """One line on what is left out; empty when nothing is."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - _SHOWN_MAX
        shown = ", ".join(self.left_out[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        return f"left out: {shown}"


def gather(
    home: Path, tree: Path, plan: Plan, *, size_bytes_max: int, is_stopped: Callable[[], bool]
) -> Gathered:
    """Look through the folders that are kept. Everything that could write to them must be dead.

    What cannot be kept, such as devices, set-id files and links that lead elsewhere, is left out.

    Raises:
        TreeError: It is more than can be kept.
        StoppedError: `is_stopped` said so.
    """
    gathered = Gathered()
    draft = Draft(Limits(size_bytes_max=size_bytes_max, file_bytes_max=size_bytes_max))
    for top, base, folder in _places(home, tree, plan):
        try:
            root = real_folder(base, folder)
        except BuildFailedError:
            if os.path.lexists(base / folder):
                gathered.left_out.append(f"{folder}: is no folder of its own")
            continue
        prefix = os.fsencode(f"{top}/{folder}/")

        def refuse(error: TreeError, folder: str = folder) -> None:
            gathered.left_out.append(f"{folder}/{error}")

        for entry in scan_directory(root, owner_uid=os.geteuid(), on_refused=refuse):
            if is_stopped():
                raise StoppedError
            if isinstance(entry, SourceLink) and _leads_elsewhere(entry.target):
                gathered.left_out.append(f"{folder}/{os.fsdecode(entry.path)}: leads elsewhere")
                continue
            placed = entry._replace(path=prefix + entry.path)
            draft.admit(placed)
            gathered.entries.append(placed)
            if isinstance(entry, SourceFile):
                gathered.files += 1
                gathered.size_bytes += entry.size_bytes
    _leave_out_escapes(gathered, is_stopped)
    return gathered


def leaves_any(home: Path, tree: Path, plan: Plan) -> bool:
    """Say whether a build has anything of what is kept."""
    return any(os.path.lexists(base / folder) for _, base, folder in _places(home, tree, plan))


def put_back(
    stream: BinaryIO,
    scratch: Path,
    home: Path,
    tree: Path,
    plan: Plan,
    *,
    allowance: DiskAllowance,
    is_stopped: Callable[[], bool],
) -> TreeSize:
    """Unpack a cache and move its folders to their places, those that the commit has excepted.

    Raises:
        BuildFailedError: It is not fit to be unpacked; nothing was put back then.
        StoppedError: `is_stopped` said so.
    """
    size = unpack(stream, scratch, allowance=allowance, is_stopped=is_stopped, ignores_lfs=True)
    for top, base, folder in _places(home, tree, plan):
        kept = scratch / top / folder
        if kept.is_symlink() or not kept.is_dir() or os.path.lexists(base / folder):
            continue
        parent = base
        for part in folder.split("/")[:-1]:
            parent /= part
            if not os.path.lexists(parent):
                parent.mkdir(mode=0o755)
            if parent.is_symlink() or not parent.is_dir():
                break  # the commit has something else there
        else:
            kept.rename(base / folder)
    return size


def _places(home: Path, tree: Path, plan: Plan) -> Iterator[tuple[str, Path, str]]:
    """Yield the folders that are kept: where in the tar, below what, and their path there.

    None lies in another: the outer one has it.
    """
    for folder in HOME_FOLDERS:
        yield "home", home, folder
    for folder in plan.cache:
        if not any(folder.startswith(f"{other}/") for other in plan.cache):
            yield "app", tree, folder


def _leads_elsewhere(target: bytes) -> bool:
    return target.startswith(b"/") and not is_host_target(target)


def _leave_out_escapes(gathered: Gathered, is_stopped: Callable[[], bool]) -> None:
    for _ in range(_LINKS_LEFT_OUT_MAX):
        if is_stopped():
            raise StoppedError
        links = [
            LinkEntry(entry.path, entry.target)
            for entry in gathered.entries
            if isinstance(entry, SourceLink)
        ]
        link = escaping_link(links)
        if link is None:
            return
        gathered.entries = [entry for entry in gathered.entries if entry.path != link.path]
        gathered.left_out.append(f"{os.fsdecode(link.path)}: leads elsewhere")
    gathered.entries = [e for e in gathered.entries if not isinstance(e, SourceLink)]
    gathered.left_out.append("all links: too many of them lead elsewhere")


def _digests(tree: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: digest for name in names if (digest := _digest_of_file(tree / name))}


def _few(digests: Mapping[str, str]) -> dict[str, str]:
    """Name as many as a key has room for. A digest stands for the others."""
    named = [name for name in digests if len(name) <= FACT_NAME_CHARS_MAX][:_NAMED_MAX]
    few = {name: digests[name] for name in named}
    others = "\n".join(f"{name} {digests[name]}" for name in digests if name not in few)
    return {**few, _OTHERS: _digest(others.encode())} if others else few


def _requirements(tree: Path) -> list[str]:
    """Return the files that pip and uv may be asked to install by, from the tree's root."""
    found = [path for pattern in _REQUIREMENTS for path in sorted(tree.glob(pattern))]
    top = tree / _REQUIREMENTS_FOLDER
    for folder, folders, files in () if top.is_symlink() else os.walk(top):
        folders.sort()
        found += [Path(folder, name) for name in sorted(files)]
        if len(found) > _REQUIREMENTS_MAX:
            break
    return [str(path.relative_to(tree)) for path in found[:_REQUIREMENTS_MAX]]


def _digest_of_file(path: Path) -> str | None:
    try:
        if not path.is_file() or path.is_symlink():
            return None
        with path.open("rb") as file:
            return _shown(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return None


def _digest(content: bytes) -> str:
    return _shown(hashlib.sha256(content).hexdigest())


def _shown(digest: str) -> str:
    return f"sha256:{digest[:16]}"
