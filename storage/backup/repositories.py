"""A repository in a backup: its refs as they were at one moment, and all objects that there were.

Refs are read first, so that each has its objects among the files that are listed after. They are
written as one `packed-refs`, whatever they lay in. Packs may be joined meanwhile by their server:
then a listed file is gone, and the repository is looked at again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.backup.manifest import is_safe
from storage.git.check import check_repository
from storage.git.packed_refs import written
from storage.git.refs import show
from storage.git.repository import Repository

_PACK = re.compile(r"pack-[0-9a-f]{40}\.(pack|idx|rev|bitmap|keep|promisor|mtimes)")
_SHARD = re.compile(r"[0-9a-f]{2}")
_LOOSE = re.compile(r"[0-9a-f]{38}")
_PLAIN = ("config", "description", "shallow")
_FOLDERS = ("info", "info/gitd-links", "hooks")
_LOOKS_MAX = 10
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a repository: its path in it, and what `stat` says."""

    path: str
    mode: int
    mtime_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A repository at one moment.

    Attributes:
        made: Contents of the files that refs are written to, by their paths.
        files: The other files, in order.
        warnings: A sentence for each ref that cannot be read, and so is left out.
    """

    made: Mapping[str, bytes]
    files: tuple[Listed, ...]
    warnings: tuple[str, ...]


def picture_of(path: Path) -> Picture:
    """Look at the repository in a git directory. Safe while others push to it.

    Raises:
        RepositoryError: It is none, or damaged.
        OSError: The system refused.
    """
    repository = Repository(path)
    snapshot = repository.refs.snapshot()
    warnings = tuple(f"ref {show(name)}: {why}" for name, why in repository.refs.broken())
    # What refs point at was there before them; the objects are seen anew after the refs.
    repository.refresh()
    values = {name: oid for name, oid in snapshot.values.items() if name not in snapshot.symrefs}
    if snapshot.head_target is not None:
        head = b"ref: " + snapshot.head_target
    else:
        head = (
            snapshot.head.hex().encode() if snapshot.head is not None else b"ref: refs/heads/main"
        )
    made = {"HEAD": head + b"\n"}
    if values:
        made["packed-refs"] = written(repository, values, dict(snapshot.peeled))
    for name, target in snapshot.symrefs.items():
        if is_safe(os.fsdecode(name)) and name.isascii():
            made[name.decode()] = b"ref: " + target + b"\n"
        else:
            warnings += (f"ref {show(name)}: a symbolic ref of that name is not backed up",)
    return Picture(made, tuple(_list(path)), warnings)


def check_view(
    folder: Path, contents: Mapping[str, str], *, is_whole: bool = False
) -> tuple[str, ...]:
    """Check a repository that is in a backup: made of links in `folder`, which is new.

    `contents`: where each of its files lies, by its path in the repository. Returns what is wrong,
    a sentence each.
    """
    for name in ("objects/pack", "refs"):
        (folder / name).mkdir(parents=True)
    for path, content in contents.items():
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(content)
    return check_repository(folder, is_whole=is_whole).faults


def _list(path: Path) -> Iterator[Listed]:
    """List what is there, again and again until nothing changed meanwhile."""
    before: list[Listed] = []
    for _ in range(_LOOKS_MAX):
        found = sorted(_listed(path), key=lambda item: item.path)
        if found == before:
            break
        before = found
    packs = {item.path for item in before if item.path.endswith(".pack")}
    for item in before:
        stem, _, ending = item.path.rpartition(".")
        is_beside_pack = item.path.startswith("objects/pack/") and ending != "pack"
        if not is_beside_pack or f"{stem}.pack" in packs:
            yield item


def _listed(path: Path) -> Iterator[Listed]:
    for name in _PLAIN:
        yield from _stat(path, name)
    for folder in _FOLDERS:
        for name in _names(path / folder):
            if _NAME.fullmatch(name):
                yield from _stat(path, f"{folder}/{name}")
    for name in _names(path / "objects/pack"):
        if _PACK.fullmatch(name):
            yield from _stat(path, f"objects/pack/{name}")
    for shard in _names(path / "objects"):
        if _SHARD.fullmatch(shard):
            for name in _names(path / "objects" / shard):
                if _LOOSE.fullmatch(name):
                    yield from _stat(path, f"objects/{shard}/{name}")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - plain names are wanted
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stat(path: Path, name: str) -> Iterator[Listed]:
    with contextlib.suppress(FileNotFoundError):
        status = (path / name).lstat()
        if (status.st_mode & 0o170000) == 0o100000:
            yield Listed(name, status.st_mode & 0o777, status.st_mtime_ns, status.st_size)
