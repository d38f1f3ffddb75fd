"""Sources: what a build gets of its commit, on control's side. Blocking; from any thread."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from hooks.builds.errors import BuildFailedError, BuildOverError
from hooks.builds.profiles.detection import is_published
from hooks.builds.sandbox.disk import NAME_BYTES
from hooks.builds.sandbox.disk_allowance import exceeded
from hooks.builds.sandbox.limits import Limit, Limits
from hooks.builds.sources.files import SourceFiles, Walk, among, mapped_errors
from hooks.builds.sources.known_files import KnownFiles
from hooks.builds.sources.known_folders import (
    FILES_COUNT_MAX,
    FolderKey,
    KnownFolders,
)
from hooks.builds.sources.submodules import GITMODULES, GITMODULES_BYTES_MAX, Submodules
from hooks.builds.wire import (
    CONFIG_FILE_BYTES_MAX,
    CONFIG_FILES,
    HINT_FILES,
    VERSION_FILES,
    Finish,
    Folder,
    RootEntry,
)
from hooks.jobs import Jobs
from storage.model import Build
from storage.repos import Grafts, Repositories
from storage.source import (
    SourceFile,
)
from storage.trees import (
    CHECK_EVERY_S,
    Changes,
    EntryKind,
    Listed,
    Tree,
    TreeFile,
    Visits,
    list_folder,
    write_tar,
)

FOLDERS_COUNT_MAX = 16  # kept in memory: names, and the text of a few files


class Sources:
    """The commits that builds are made of, with the submodules in them.

    Whoever pushes makes them: walking one ends beyond the files and folders of an artifact, when
    its build is over, and after `timeout_s`.
    """

    def __init__(
        self,
        repositories: Repositories,
        submodules: Submodules,
        jobs: Jobs,
        *,
        timeout_s: int,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        self._repositories = repositories
        self._submodules = submodules
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._check_every_s = check_every_s
        self._known = KnownFiles()
        self._known_folders = KnownFolders()
        # A commit never changes, and each is looked at by whoever queues, leases and packs it.
        self._folder = functools.lru_cache(FOLDERS_COUNT_MAX)(self._read_folder)

    def folder(self, build: Build, path: str = ".") -> Folder | None:
        """Return what is in a folder of the commit, None where it has no such folder.

        Raises:
            TreeTooLargeError: There is more in it than an artifact may have; see `failure_of`.
            RepositoryError: The commit cannot be read.
        """
        return self._folder(build.site_id, build.commit, path)

    def _read_folder(self, site_id: str, commit: str, path: str) -> Folder | None:
        found = self._repositories.folder(site_id, commit, path)
        if found is None:
            return None
        files = {}
        names = {entry.name for entry in found.entries}
        for name in names.intersection((*CONFIG_FILES, *VERSION_FILES, *HINT_FILES)):
            content = self._repositories.read_file(
                site_id, commit, f"{path}/{name}", CONFIG_FILE_BYTES_MAX
            )
            if content is not None:
                files[name] = content.decode(errors="replace")
        entries = tuple(RootEntry(entry.name, entry.kind.value) for entry in found.entries)
        return Folder(found.oid, entries, files)

    def tree_of(self, build: Build) -> str:
        """Return the object id of the commit's tree."""
        return self._repositories.tree_of(build.site_id, build.commit)

    def grafts(self, build: Build, folder: str) -> Grafts:
        """Return what lies in the places of submodules below a folder of the commit.

        All of the folder is walked for that, so it says of a commit what is too large of it.

        Raises:
            BuildFailedError: See `Submodules.grafts`; `build.output_too_large`;
                `build.source_unreadable`; `build.timed_out`.
            BuildOverError: The build is over.
        """
        visits = self._visits(build)
        with mapped_errors():
            return self._submodules.grafts(
                build.site_id, build.actor, build.commit, folder, visits=visits
            )

    def grafts_of(self, build: Build, outcome: Finish) -> Grafts:
        """Return what lay in the places of submodules when a build that ended read its commit.

        Raises:
            BuildFailedError, BuildOverError: See `grafts`; a submodule may not be had any more.
        """
        with mapped_errors():
            is_grafted = not outcome.ignores_submodules and bool(self.gitmodules(build))
        if not is_grafted:
            # Without looking for them. Those that no file speaks of: `files` sees them, and where
            # there were steps `list_files` did.
            return {}
        return self.grafts(build, outcome.folder)

    def list_files(
        self, build: Build, folder: str, *, ignores_submodules: bool, disk_bytes_max: int
    ) -> SourceListing:
        """List the files in a folder of the commit, and look how large they are: none is sent yet.

        They count as they will where they are unpacked: a name takes a block at least.

        Raises:
            BuildFailedError: `build.limit_exceeded`, and as `grafts` does.
            BuildOverError: The build is over.
        """
        with mapped_errors():
            is_grafted = not ignores_submodules and self.gitmodules(build) is not None
        grafts = self.grafts(build, folder) if is_grafted else {}
        listing = self._list_files(build, folder, grafts, disk_bytes_max)
        if not (ignores_submodules or is_grafted) and any(map(_is_submodule, listing.files)):
            self.grafts(build, folder)  # names all
        return listing

    def changes(self, build: Build, folder: str, base: str, *, count_max: int) -> Changes | None:
        """Return what makes a folder of the commit of a tree of the same site, by its id.

        None where the site has not that tree (any more), or they are more than `count_max`.

        Raises:
            BuildFailedError, BuildOverError: As `grafts` does.
        """
        with mapped_errors():
            return self._repositories.changes(
                build.site_id,
                base,
                build.commit,
                folder,
                visits=self._visits(build),
                count_max=count_max,
            )

    def _list_files(
        self, build: Build, folder: str, grafts: Grafts, disk_bytes_max: int
    ) -> SourceListing:
        taken_bytes = size_bytes = count = 0
        files = []
        sizes: dict[str, int] = {}  # a few objects may have very many names
        with mapped_errors():
            for file in self._repositories.walk_tree(
                build.site_id, build.commit, folder, grafts, visits=self._visits(build)
            ):
                size = sizes.get(file.oid)
                if size is None:
                    known = None if grafts else self._known.find(build.site_id, file.oid)
                    size = known.size_bytes if known is not None else file.size
                    sizes[file.oid] = size
                taken_bytes += max(size, NAME_BYTES)
                if taken_bytes > disk_bytes_max:
                    raise exceeded(Limit.DISK, Limits(disk_bytes=disk_bytes_max))
                if file.kind is EntryKind.FILE:
                    count += 1
                    size_bytes += size
                files.append(file)
        return SourceListing(files, count, size_bytes, is_grafted=bool(grafts))

    def write_tar(self, build: Build, files: Iterable[TreeFile], out: BinaryIO) -> None:
        """Write files of the commit, as `list_files` has them, as a tar."""
        visits = self._visits(build)

        def counted() -> Iterator[TreeFile]:
            for file in files:
                visits.add()  # counted: but the contents of those before may have taken long
                yield file

        time = self._repositories.commit_time(build.site_id, build.commit)
        write_tar(counted(), out, time=time)

    def files(self, build: Build, outcome: Finish, grafts: Grafts) -> SourceFiles:
        """Return the folder that a build without steps made its output."""
        visits = self._visits(build)
        if grafts:
            # What is in a graft is another site's, by ids of its own repository.
            files = self._repositories.walk_tree(
                build.site_id, build.commit, outcome.folder, grafts, visits=visits
            )
            walk = Walk(files, {})
            known = KnownFiles(0)
        else:
            walk = self._walk(build, outcome, visits)
            known = self._known

        def shown() -> Iterator[TreeFile | SourceFile]:
            for file in walk.files:
                visits.add()  # counted: but the contents of those before may have taken long
                if isinstance(file, TreeFile):
                    if outcome.is_public and not is_published(file.path):
                        continue
                    if file.kind is EntryKind.SUBMODULE and not outcome.ignores_submodules:
                        self.grafts(build, outcome.folder)  # names all
                yield file

        return SourceFiles(
            Walk(shown(), walk.passed),
            build.site_id,
            known,
            self._known_folders,
            self._repositories,
            ignores_lfs=outcome.ignores_lfs,
        )

    def unchanged(self, build: Build, outcome: Finish, grafts: Grafts) -> SourceFiles:
        """Return the files of an output that are the commit's, as `outcome.unchanged` has them.

        Iterating raises `TreeInvalidError` for one that the commit does not have.
        """
        said = outcome.unchanged
        paths = frozenset(map(os.fsencode, said.paths))
        visits = self._visits(build)
        if grafts or said.folder != ".":  # known folders have other names, and one site's files
            files = self._repositories.walk_tree(
                build.site_id, build.commit, outcome.folder, grafts, visits=visits
            )
            walk = Walk(files, {})
        else:
            walk = self._walk(build, outcome, visits)
        prefix = b"" if said.folder == "." else os.fsencode(said.folder) + b"/"
        return SourceFiles(
            Walk(among(walk.files, paths, prefix), walk.passed),
            build.site_id,
            KnownFiles(0) if grafts else self._known,
            self._known_folders,
            self._repositories,
            ignores_lfs=outcome.ignores_lfs,
            only=paths,
        )

    def _visits(self, build: Build) -> Visits:
        """Return what counts the files and folders that are walked for a build."""
        ends_at = time.monotonic() + self._timeout_s

        def check() -> None:
            job = self._jobs.get(build.job_id)
            if job is not None and job.status.is_final:
                raise BuildOverError(f"{build.job_id} is over")
            if time.monotonic() > ends_at:
                raise BuildFailedError(
                    "build.timed_out",
                    f"time: reading the commit took longer than {self._timeout_s:,} s"
                    " (builders.timeout_s).",
                )

        return Visits(check, check_every_s=self._check_every_s)

    def _walk(self, build: Build, outcome: Finish, visits: Visits) -> Walk:
        """Walk a folder of a commit; what is known of it is given as it is known."""
        passed: dict[FolderKey, Listed] = {}

        def files() -> Iterator[TreeFile | SourceFile]:
            top = self._repositories.tree(build.site_id, build.commit, outcome.folder)
            folders = [("", top)] if top is not None else []
            count = 0
            while folders:
                path, tree = folders.pop()
                key = FolderKey(build.site_id, tree.oid, path, outcome.is_public)
                known = self._known_folders.find(key)
                if known is not None:
                    visits.add(len(known.files) + len(known.folders))
                    yield from known.files
                    folders += [(path, Tree(tree.repository, oid)) for path, oid in known.folders]
                    continue
                listed = list_folder(tree, path)
                visits.add(len(listed.files) + len(listed.folders))
                yield from listed.files
                folders += listed.folders
                count += 1 + len(listed.files)
                if count <= FILES_COUNT_MAX:
                    passed[key] = listed

        return Walk(files(), passed)

    def gitmodules(self, build: Build) -> str | None:
        """Return the digest of the commit's `.gitmodules`, None where it has none."""
        root = self.folder(build)
        if root is None or all(entry.name != GITMODULES for entry in root.entries):
            return None
        content = self._repositories.read_file(
            build.site_id, build.commit, GITMODULES, GITMODULES_BYTES_MAX
        )
        return None if content is None else hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The files, links and submodules in a folder of a commit; how many are regular files, and
    their size. `is_grafted`: files of submodules are among them.
    """

    files: list[TreeFile]
    count: int
    size_bytes: int
    is_grafted: bool


def _is_submodule(file: TreeFile) -> bool:
    return file.kind is EntryKind.SUBMODULE
