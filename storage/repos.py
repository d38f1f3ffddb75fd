"""The hosted sites' repositories: made here, looked into here, pushed to by `gitd.git`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from storage.files import mapped_errors
from storage.git.errors import (
    ObjectMissingError,
    RefNotFoundError,
    RepositoryCorruptError,
    RepositoryNotFoundError,
)
from storage.git.object_formats import COMMIT, TREE, unhex
from storage.git.object_formats import tree_entries as parse_tree
from storage.git.refs import is_valid_name
from storage.git.repository import Repository, RepositoryCache, is_repository

COMMIT_PREFIX_DIGITS_MIN = 7
TREE_DEPTH_MAX = 256
LINK_BYTES_MAX = 4095
_HEX = re.compile(r"[0-9a-f]{7,40}")
_SITE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

CONFIG = """\
[core]
	repositoryformatversion = 0
	filemode = true
	bare = true
	logAllRefUpdates = false
[receive]
	advertisePushOptions = true
	advertiseAtomic = true
	fsckObjects = true
	denyDeleteCurrent = true
	shallowUpdate = false
[receive "fsck"]
	badTimezone = warn
	missingSpaceBeforeDate = warn
	zeroPaddedDate = warn
	zeroPaddedFilemode = ignore
	missingEmail = warn
	badEmail = warn
	missingNameBeforeEmail = warn
[uploadpack]
	allowFilter = true
[transfer]
	advertiseSID = false
[gc]
	auto = 0
[maintenance]
	auto = false
"""


class EntryKind(StrEnum):
    FILE = "file"
    DIR = "dir"
    LINK = "link"
    SUBMODULE = "submodule"


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """What a name came to: `ref` is the full name (`refs/heads/main`), None for a commit id."""

    ref: str | None
    commit: str


@dataclass(frozen=True, slots=True)
class RootEntry:
    name: str
    kind: EntryKind


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a commit: its tree's id, 40 hex digits, and its names in git's order."""

    oid: str
    entries: tuple[RootEntry, ...]


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file, link or submodule of a commit.

    Attributes:
        path: relative to the folder walked, `/` between; bytes that are not UTF-8 are escaped
            (`os.fsencode` gives them back).
        size: bytes; of a link, the length of its target; of a submodule, 0.
        oid: the object's id, 40 hex digits; equal content has an equal one.
    """

    path: str
    kind: EntryKind
    is_executable: bool
    size: int
    oid: str
    _repository: Repository

    def read(self) -> bytes:
        """Return the whole content (a link's target; nothing for a submodule)."""
        if self.kind is EntryKind.SUBMODULE:
            return b""
        return self._repository.objects.get(bytes.fromhex(self.oid))[1]

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of at most some 256 KiB where its stored form allows."""
        if self.kind is not EntryKind.SUBMODULE:
            yield from self._repository.objects.stream(bytes.fromhex(self.oid))


class Repositories:
    """Bare repositories named by site id below one directory. Blocking; safe from any thread."""

    def __init__(self, root: Path, cache: RepositoryCache | None = None) -> None:
        self.root = root
        self._cache = cache or RepositoryCache()

    def path(self, site_id: str) -> Path:
        """Return where a site's repository is, or would be.

        Raises:
            ValueError: the id could not be one.
        """
        if not _SITE_ID.fullmatch(site_id):
            raise ValueError(f"'{site_id}' cannot be a site's id")
        return self.root / f"{site_id}.git"

    def exists(self, site_id: str) -> bool:
        return is_repository(self.path(site_id))

    def create(self, site_id: str, default_branch: str) -> Path:
        """Make an empty repository whose HEAD is `default_branch`. Durable when it returns.

        A second call changes nothing and returns the same path. A crash leaves nothing under the
        repository's name.

        Raises:
            ValueError: the branch's name is not valid.
            StorageFullError: no room; nothing is left of it.
            StorageIoError: the disk failed.
        """
        path = self.path(site_id)
        head = f"refs/heads/{default_branch}"
        if not is_valid_name(head.encode()):
            raise ValueError(f"'{default_branch}' is not a valid branch name")
        if is_repository(path):
            return path
        fresh = self.root / f".new-{site_id}-{os.getpid()}-{os.urandom(4).hex()}"
        with mapped_errors(f"making the repository of {site_id}"):
            try:
                self._make(fresh, head)
                fresh.rename(path)
            except OSError:
                shutil.rmtree(fresh, ignore_errors=True)
                if not is_repository(path):  # else another call was first
                    raise
            _sync_directory(self.root)
        return path

    def _make(self, fresh: Path, head: str) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.mkdir(mode=0o700)
        for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "hooks", "info"):
            (fresh / name).mkdir(parents=True)
        _write_synced(fresh / "config", CONFIG.encode())
        _write_synced(fresh / "HEAD", f"ref: {head}\n".encode())
        for directory in (fresh / "objects", fresh / "refs", fresh):
            _sync_directory(directory)

    def remove(self, site_id: str) -> None:
        """Delete a repository; one that is not there is fine."""
        path = self.path(site_id)
        grave = self.root / f".gone-{site_id}-{os.urandom(4).hex()}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def open(self, site_id: str) -> Repository:
        """Return the open repository of a site.

        Raises:
            RepositoryNotFoundError: it has none.
        """
        path = self.path(site_id)
        try:
            return self._cache.open(path)
        except FileNotFoundError as error:
            raise RepositoryNotFoundError(site_id) from error

    # refs

    def resolve(self, site_id: str, ref_or_commit: str) -> ResolvedRef:
        """Find the commit that a name means.

        A name is, in this order: 40 hex digits of a commit or tag object; `HEAD`; a full
        `refs/...`; a branch; a tag; at least 7 hex digits that begin one commit's id only.
        Annotated tags are followed to their commit.

        Raises:
            RefNotFoundError: nothing has that name, or it does not lead to one commit.
        """
        repository = self.open(site_id)
        name = ref_or_commit
        if _HEX.fullmatch(name) and len(name) == 40:
            found = self._commit_of(repository, bytes.fromhex(name))
            if found is not None:
                return ResolvedRef(None, found)
        for full in _full_names(name):
            at, oid = repository.refs.resolve_symbolic(full)
            if oid is not None:
                found = self._commit_of(repository, oid)
                if found is not None:
                    resolved = at if full == b"HEAD" else full
                    ref = os.fsdecode(resolved) if resolved != b"HEAD" else None
                    return ResolvedRef(ref, found)
        if _HEX.fullmatch(name):
            found = self._commit_with_prefix(repository, name)
            if found is not None:
                return ResolvedRef(None, found)
        raise RefNotFoundError(name)

    def _commit_of(self, repository: Repository, oid: bytes) -> str | None:
        try:
            kind, oid = repository.objects.peel(oid)
        except ObjectMissingError:
            return None
        return oid.hex() if kind == COMMIT else None

    def _commit_with_prefix(self, repository: Repository, prefix: str) -> str | None:
        oids = repository.objects.with_prefix(prefix, limit_count=64)
        commits = {oid for oid in oids if repository.objects.kind_and_size(oid)[0] == COMMIT}
        return commits.pop().hex() if len(commits) == 1 else None

    def branches(self, site_id: str) -> dict[str, str]:
        """Return branch name -> commit id, ascending by name."""
        prefix = b"refs/heads/"
        return {
            os.fsdecode(name[len(prefix) :]): oid.hex()
            for name, oid in self.open(site_id).refs.snapshot().values.items()
            if name.startswith(prefix)
        }

    def default_branch(self, site_id: str) -> str | None:
        """Return the branch that HEAD names, whether it exists yet or not."""
        target = self.open(site_id).refs.snapshot().head_target
        return os.fsdecode(target).removeprefix("refs/heads/") if target else None

    # trees

    def tree_of(self, site_id: str, commit: str) -> str:
        """Return the object id of a commit's tree."""
        return _root_tree(self.open(site_id), commit).hex()

    def folder(self, site_id: str, commit: str, path: str = ".") -> Folder | None:
        """Return a folder of a commit, None where it has no such folder."""
        repository = self.open(site_id)
        tree = _folder_tree(repository, commit, path)
        if tree is None:
            return None
        return Folder(
            tree.hex(),
            tuple(
                RootEntry(os.fsdecode(name), _kind(mode))
                for mode, name, _ in _entries(repository, tree)
            ),
        )

    def read_file(self, site_id: str, commit: str, path: str, size_bytes_max: int) -> bytes | None:
        """Return a regular file's content; None when there is no such file, or it is larger."""
        repository = self.open(site_id)
        found = _find(repository, _root_tree(repository, commit), path)
        if found is None or _kind(found[0]) is not EntryKind.FILE:
            return None
        if repository.objects.kind_and_size(found[1])[1] > size_bytes_max:
            return None
        return repository.objects.get(found[1])[1]

    def walk_tree(self, site_id: str, commit: str, folder: str = ".") -> Iterator[TreeFile]:
        """Yield every file, link and submodule below a folder, depth first, in git's order.

        Empty directories do not exist in git. A folder that is absent or no directory has
        nothing in it.

        Raises:
            RepositoryCorruptError: an object is missing, or a name could not be a file's.
        """
        repository = self.open(site_id)
        tree = _folder_tree(repository, commit, folder)
        if tree is not None:
            yield from _walk(repository, tree)

    def write_tar(self, site_id: str, commit: str, folder: str, out: BinaryIO) -> None:
        """Write the files of a folder as an uncompressed pax tar; reads one file at a time.

        Modes are 0644 and 0755, times the commit's, owners 0; a submodule is an empty directory.

        Raises:
            RepositoryCorruptError: see `walk_tree`.
        """
        repository = self.open(site_id)
        time = repository.objects.commit(unhex(commit.encode())).time
        tree = _folder_tree(repository, commit, folder)
        with tarfile.open(
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18
        ) as tar:
            if tree is None:
                return
            directories: set[str] = set()
            for file in _walk(repository, tree):
                for parent in reversed(PurePosixPath(file.path).parents[:-1]):
                    if str(parent) not in directories:
                        directories.add(str(parent))
                        tar.addfile(_member(str(parent), tarfile.DIRTYPE, 0o755, time))
                _add(tar, file, time)


def _add(tar: tarfile.TarFile, file: TreeFile, time: int) -> None:
    if file.kind is EntryKind.SUBMODULE:
        tar.addfile(_member(file.path, tarfile.DIRTYPE, 0o755, time))
    elif file.kind is EntryKind.LINK:
        member = _member(file.path, tarfile.SYMTYPE, 0o777, time)
        member.linkname = os.fsdecode(file.read())
        tar.addfile(member)
    else:
        mode = 0o755 if file.is_executable else 0o644
        member = _member(file.path, tarfile.REGTYPE, mode, time)
        member.size = file.size
        tar.addfile(member, _ChunkReader(file))


class _ChunkReader(BytesIO):
    """A file object over a file's chunks, as `TarFile.addfile` wants it."""

    def __init__(self, file: TreeFile) -> None:
        super().__init__()
        self._chunks = file.chunks()
        self._rest = b""

    def read(self, size: int | None = -1, /) -> bytes:
        parts = [self._rest]
        missing = (size if size is not None and size >= 0 else 1 << 62) - len(self._rest)
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        if missing >= 0:
            self._rest = b""
            return data
        self._rest = data[missing:]
        return data[:missing]


def _member(path: str, kind: bytes, mode: int, time: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.mtime = kind, mode, time
    return member


def _full_names(name: str) -> list[bytes]:
    encoded = os.fsencode(name)
    if name == "HEAD":
        return [b"HEAD"]
    names = [encoded] if name.startswith("refs/") else []
    names += [b"refs/heads/" + encoded, b"refs/tags/" + encoded]
    return [name for name in names if is_valid_name(name)]


def _root_tree(repository: Repository, commit: str) -> bytes:
    return repository.objects.commit(bytes.fromhex(commit)).tree


def _folder_tree(repository: Repository, commit: str, folder: str) -> bytes | None:
    root = _root_tree(repository, commit)
    if not PurePosixPath(folder).parts:
        return root
    found = _find(repository, root, folder)
    return found[1] if found is not None and _kind(found[0]) is EntryKind.DIR else None


def _find(repository: Repository, tree: bytes, path: str) -> tuple[bytes, bytes] | None:
    found: tuple[bytes, bytes] | None = None
    for part in PurePosixPath(path).parts:
        if found is not None:
            if _kind(found[0]) is not EntryKind.DIR:
                return None
            tree = found[1]
        name = os.fsencode(part)
        found = next(
            ((mode, oid) for mode, entry, oid in _entries(repository, tree) if entry == name), None
        )
        if found is None:
            return None
    return found


def _entries(repository: Repository, tree: bytes) -> list[tuple[bytes, bytes, bytes]]:
    entries = parse_tree(repository.objects.get_typed(tree, TREE))
    for _, name, _ in entries:
        # A name with a slash or of dots would leave the folder that it is written into.
        if b"/" in name or name in (b".", b"..") or name.lower() == b".git":
            raise RepositoryCorruptError(f"tree {tree.hex()} has an entry of a forbidden name")
    return entries


def _walk(repository: Repository, root: bytes) -> Iterator[TreeFile]:
    objects = repository.objects
    stack: list[tuple[bytes, Iterator[tuple[bytes, bytes, bytes]]]] = [
        (b"", iter(_entries(repository, root)))
    ]
    while stack:
        prefix, entries = stack[-1]
        for mode, name, oid in entries:
            kind = _kind(mode)
            if kind is EntryKind.DIR:
                if len(stack) == TREE_DEPTH_MAX:
                    raise RepositoryCorruptError("a tree is too deep")
                stack.append((prefix + name + b"/", iter(_entries(repository, oid))))
                break
            size = 0 if kind is EntryKind.SUBMODULE else objects.kind_and_size(oid)[1]
            if kind is EntryKind.LINK and size > LINK_BYTES_MAX:
                raise RepositoryCorruptError("a symbolic link's target is too long")
            yield TreeFile(
                path=os.fsdecode(prefix + name),
                kind=kind,
                is_executable=kind is EntryKind.FILE and bool(int(mode, 8) & 0o100),
                size=size,
                oid=oid.hex(),
                _repository=repository,
            )
        else:
            stack.pop()


def _kind(mode: bytes) -> EntryKind:
    match int(mode, 8) >> 12:
        case 0o04:
            return EntryKind.DIR
        case 0o12:
            return EntryKind.LINK
        case 0o16:
            return EntryKind.SUBMODULE
        case _:
            return EntryKind.FILE


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
