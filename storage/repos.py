"""The hosted sites' repositories: made here, looked into here, pushed to by `gitd.git`."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage import repository_folders, trees
from storage.errors import TreeTooLargeError
from storage.files import mapped_errors, sync_directory, write_atomic
from storage.git.errors import (
    ObjectMissingError,
    RefNotFoundError,
    RepositoryCorruptError,
    RepositoryNotFoundError,
)
from storage.git.object_formats import COMMIT
from storage.git.refs import is_valid_name
from storage.git.repository import Repository, RepositoryCache, is_repository
from storage.git.walk import reachable_among
from storage.trees import Changes, Folder, Tree, TreeFile, Visits

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


@dataclass(frozen=True, slots=True)
class Graft:
    """The commit of some site that lies in a submodule's place."""

    site_id: str
    commit: str


Grafts = Mapping[str, Graft]
_NO_GRAFTS: Grafts = {}


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """What a name came to.

    Attributes:
        ref: The full name (`refs/heads/main`); None for an id, and for a `HEAD` of no branch.
        is_whole_id: Whoever named it knew all 40 digits.
    """

    ref: str | None
    commit: str
    is_whole_id: bool = False


class Repositories:
    """Bare repositories named by site id below one directory. Blocking; safe from any thread."""

    def __init__(self, root: Path, cache: RepositoryCache | None = None) -> None:
        self.root = root
        self._cache = cache or RepositoryCache()
        self._head_turn = threading.Lock()

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
        with mapped_errors(f"making the repository of {site_id}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with repository_folders.coming(self.root, site_id) as fresh:
                self._make(fresh, head)
                try:
                    fresh.rename(path)
                except OSError:
                    if not is_repository(path):  # else another call was first
                        raise
            sync_directory(self.root)
        return path

    def _make(self, fresh: Path, head: str) -> None:
        for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "hooks", "info"):
            (fresh / name).mkdir(parents=True)
        _write_synced(fresh / "config", CONFIG.encode())
        _write_synced(fresh / "HEAD", f"ref: {head}\n".encode())
        for directory in (fresh / "objects", fresh / "refs", fresh):
            sync_directory(directory)

    def remove(self, site_id: str) -> None:
        """Delete a repository; one that is not there is fine."""
        repository_folders.send_off(self.path(site_id))

    def left_behind(self) -> list[Path]:
        """Folders of repositories that a crash kept from being made, or from being deleted."""
        return repository_folders.left_behind(self.root)

    def remove_left_behind(self) -> list[Path]:
        """Remove these, beside whoever makes others; return what is there still."""
        return repository_folders.remove_left_behind(self.root)

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
                return ResolvedRef(None, found, is_whole_id=True)
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
            kind, oid = repository.objects.links.peel(oid)
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

    def has_broken_refs(self, site_id: str) -> bool:
        """Say whether anything there should be a ref and cannot be read: some may be lost then."""
        refs = self.open(site_id).refs
        return not refs.is_packed_whole() or any(refs.broken())

    def default_branch(self, site_id: str) -> str | None:
        """Return the branch that HEAD names, whether it exists yet or not."""
        target = self.open(site_id).refs.snapshot().head_target
        return os.fsdecode(target).removeprefix("refs/heads/") if target else None

    def point_head(self, site_id: str, branch: Callable[[], str | None]) -> None:
        """Let HEAD name the branch that is answered, by now; None, or no repository: as it is.

        It is asked in turn: of several calls at once, the last one's word stays.

        Raises:
            StorageError: the disk is full, or failed.
        """
        head = self.path(site_id) / "HEAD"
        with self._head_turn, mapped_errors(f"pointing HEAD of {site_id}"):
            wanted = branch()
            if wanted is None or not self.exists(site_id):
                return
            content = f"ref: refs/heads/{wanted}\n".encode()
            if head.read_bytes() != content:
                write_atomic(head, content, mode=0o644)

    # trees

    def tree_of(self, site_id: str, commit: str) -> str:
        """Return the object id of a commit's tree."""
        return self._top(site_id, commit).oid.hex()

    def folder(self, site_id: str, commit: str, path: str = ".") -> Folder | None:
        """Return a folder of a commit, None where it has no such folder."""
        tree = trees.find_tree(self._top(site_id, commit), path)
        return None if tree is None else Folder(tree.oid.hex(), trees.list_names(tree))

    def read_file(self, site_id: str, commit: str, path: str, size_bytes_max: int) -> bytes | None:
        """Return a regular file's content; None when there is no such file, or it is larger."""
        return trees.read_file(self._top(site_id, commit), path, size_bytes_max)

    def submodules(
        self, site_id: str, commit: str, folder: str = ".", *, visits: Visits | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield the path, from the folder, and the commit of each submodule below a folder.

        `visits`: what counts the files and folders on the way, together with other walks.

        Raises:
            RepositoryCorruptError: a tree is missing, or a name could not be a file's.
            TreeTooLargeError: there are more files and folders than an artifact may have.
        """
        tree = trees.find_tree(self._top(site_id, commit), folder)
        return iter(()) if tree is None else trees.find_submodules(tree, visits or Visits())

    def reachable(self, site_id: str, commits: Iterable[str]) -> set[str]:
        """Return those of some commits that branches and tags lead to: that a fetch could bring.

        Raises:
            RepositoryCorruptError: a commit on the way is missing.
        """
        repository = self.open(site_id)
        objects = repository.objects
        wanted = {
            oid
            for oid in map(bytes.fromhex, commits)
            if objects.contains(oid) and objects.kind_and_size(oid)[0] == COMMIT
        }
        peeled = {objects.links.peel(tip) for tip in repository.refs.snapshot().values.values()}
        tips = {oid for kind, oid in peeled if kind == COMMIT}
        found = reachable_among(wanted, tips, objects, cut=repository.shallow())
        return {oid.hex() for oid in found}

    def walk_tree(
        self,
        site_id: str,
        commit: str,
        folder: str = ".",
        grafts: Grafts = _NO_GRAFTS,
        *,
        visits: Visits | None = None,
    ) -> Iterator[TreeFile]:
        """Yield every file, link and submodule below a folder, depth first, in git's order.

        Empty directories do not exist in git. A folder that is absent or no directory has
        nothing in it. `grafts`: what lies in place of submodules, by their paths from the folder.
        `visits`: see `submodules`.

        Raises:
            RepositoryCorruptError: an object is missing, or a name could not be a file's.
            TreeTooLargeError: there are more files and folders than an artifact may have.
        """
        tree = trees.find_tree(self._top(site_id, commit), folder)
        if tree is not None:
            yield from trees.walk(tree, self._grafted(grafts), visits or Visits())

    def tree(self, site_id: str, commit: str, folder: str = ".") -> Tree | None:
        """Return the tree of a folder of a commit, None where it has no such folder."""
        return trees.find_tree(self._top(site_id, commit), folder)

    def changes(
        self,
        site_id: str,
        old: str,
        commit: str,
        folder: str = ".",
        *,
        visits: Visits | None = None,
        count_max: int | None = None,
    ) -> Changes | None:
        """Return what makes a folder of a commit of another one, whose tree has the id `old`.

        None where the repository has not that tree, or not all of it (any more), or they are more
        than `count_max`.

        `old`: 40 hex digits.
        """
        new = trees.find_tree(self._top(site_id, commit), folder)
        if new is None:
            return None
        try:
            before = Tree(new.repository, bytes.fromhex(old))
            return trees.changes(before, new, visits or Visits(), count_max=count_max)
        except (RepositoryCorruptError, TreeTooLargeError):
            return None

    def read_blob(self, site_id: str, oid: str) -> bytes:
        """Return the content of a file by its object's id, 40 hex digits.

        Raises:
            ObjectMissingError, RepositoryCorruptError: see `ObjectStore.get`.
        """
        return self.open(site_id).objects.get(bytes.fromhex(oid))[1]

    def commit_time(self, site_id: str, commit: str) -> int:
        """Return a commit's time, in seconds; 0 when that is unreadable."""
        return self.open(site_id).objects.links.commit(bytes.fromhex(commit)).time

    def _top(self, site_id: str, commit: str) -> Tree:
        repository = self.open(site_id)
        return Tree(repository, repository.objects.links.commit(bytes.fromhex(commit)).tree)

    def _grafted(self, grafts: Grafts) -> dict[str, Tree]:
        return {path: self._top(graft.site_id, graft.commit) for path, graft in grafts.items()}


def _full_names(name: str) -> list[bytes]:
    encoded = os.fsencode(name)
    if name == "HEAD":
        return [b"HEAD"]
    names = [encoded] if name.startswith("refs/") else []
    names += [b"refs/heads/" + encoded, b"refs/tags/" + encoded]
    return [name for name in names if is_valid_name(name)]


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
