"""Sources: what a build gets of its commit, on control's side. Blocking; from any thread."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from hooks.builds.known_files import KnownFile, KnownFiles
from hooks.builds.lfs import POINTER_BYTES_MAX, is_pointer, pointers_found
from hooks.builds.profiles import is_published
from hooks.builds.submodules import GITMODULES, GITMODULES_BYTES_MAX, Submodules
from hooks.builds.wire import CONFIG_FILE_BYTES_MAX, CONFIG_FILES, Finish, Folder, RootEntry
from storage.manifest import FileEntry, Manifest
from storage.model import Build
from storage.repos import Grafts, Repositories
from storage.source import (
    WHOLE_BYTES_MAX,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
)
from storage.trees import EntryKind, TreeFile


class Sources:
    """The commits that builds are made of, with the submodules in them."""

    def __init__(self, repositories: Repositories, submodules: Submodules) -> None:
        self._repositories = repositories
        self._submodules = submodules
        self._known = KnownFiles()

    def folder(self, build: Build, path: str = ".") -> Folder | None:
        """Return what is in a folder of the commit, None where it has no such folder."""
        found = self._repositories.folder(build.site_id, build.commit, path)
        if found is None:
            return None
        files = {}
        for name in set(CONFIG_FILES).intersection(entry.name for entry in found.entries):
            content = self._repositories.read_file(
                build.site_id, build.commit, f"{path}/{name}", CONFIG_FILE_BYTES_MAX
            )
            if content is not None:
                files[name] = content.decode(errors="replace")
        entries = tuple(RootEntry(entry.name, entry.kind.value) for entry in found.entries)
        return Folder(found.oid, entries, files)

    def tree_of(self, build: Build) -> str:
        """Return the object id of the commit's tree."""
        return self._repositories.tree_of(build.site_id, build.commit)

    def grafts(self, build: Build, folder: str, *, ignores_submodules: bool) -> Grafts:
        """Return what lies in the places of submodules below a folder of the commit.

        Raises:
            BuildFailedError: See `Submodules.grafts`.
        """
        if ignores_submodules:
            return {}
        return self._submodules.grafts(build.site_id, build.actor, build.commit, folder)

    def grafts_of(self, build: Build, outcome: Finish) -> Grafts:
        """Return what lay in the places of submodules when a build that ended read its commit.

        Raises:
            BuildFailedError: It may not be had any more.
        """
        if outcome.output == "source" and not self.gitmodules(build):
            return {}  # without looking for them: `entries` sees those that no file speaks of
        return self.grafts(build, outcome.folder, ignores_submodules=outcome.ignores_submodules)

    def write_tar(self, build: Build, folder: str, grafts: Grafts, out: BinaryIO) -> None:
        """Write a folder of the commit as a tar."""
        self._repositories.write_tar(build.site_id, build.commit, folder, out, grafts)

    def files(self, build: Build, outcome: Finish, grafts: Grafts) -> SourceFiles:
        """Return the folder that a build without steps made its output."""

        def walk() -> Iterator[TreeFile]:
            for file in self._repositories.walk_tree(
                build.site_id, build.commit, outcome.folder, grafts
            ):
                if outcome.is_public and not is_published(file.path):
                    continue
                if file.kind is EntryKind.SUBMODULE and not outcome.ignores_submodules:
                    self.grafts(build, outcome.folder, ignores_submodules=False)  # names them all
                yield file

        # What is in a graft is another site's, by ids of its own repository.
        known = self._known if not grafts else KnownFiles(0)
        return SourceFiles(walk(), build.site_id, known, ignores_lfs=outcome.ignores_lfs)

    def gitmodules(self, build: Build) -> str | None:
        """Return the digest of the commit's `.gitmodules`, None where it has none."""
        content = self._repositories.read_file(
            build.site_id, build.commit, GITMODULES, GITMODULES_BYTES_MAX
        )
        return None if content is None else hashlib.sha256(content).hexdigest()


class SourceFiles:
    """The files of a commit as entries of a tree to keep. Iterate once."""

    def __init__(
        self, walk: Iterator[TreeFile], site_id: str, known: KnownFiles, *, ignores_lfs: bool
    ) -> None:
        self._walk = walk
        self._site_id = site_id
        self._known = known
        self._ignores_lfs = ignores_lfs
        self._read: dict[bytes, str] = {}
        self._pointers: list[str] = []

    def __iter__(self) -> Iterator[SourceEntry]:
        """Yield the entries.

        Raises:
            BuildFailedError: `build.submodule_unavailable`, and `build.lfs_pointers` at the end.
        """
        for file in self._walk:
            yield self._entry(file)
        if self._pointers and not self._ignores_lfs:
            raise pointers_found(self._pointers)

    def learn(self, manifest: Manifest) -> None:
        """Remember what was read, by the manifest that was made of it."""
        files = {
            self._read[entry.path]: KnownFile(entry.digest, entry.size_bytes)
            for entry in manifest.entries
            if isinstance(entry, FileEntry) and entry.path in self._read
        }
        self._known.learn(self._site_id, files)

    def _entry(self, file: TreeFile) -> SourceEntry:
        path = os.fsencode(file.path)
        if file.kind is EntryKind.LINK:
            return SourceLink(path, file.read())
        if file.kind is EntryKind.SUBMODULE:
            return SourceDirectory(path)
        known = self._known.find(self._site_id, file.oid)
        size = known.size_bytes if known is not None else file.size
        read = file.chunks if size > WHOLE_BYTES_MAX else file.read
        if known is not None:
            return SourceFile(path, size, file.is_executable, read, digest=known.digest)
        if size <= POINTER_BYTES_MAX:
            content = file.read()
            if is_pointer(content):
                self._pointers.append(file.path)
            else:
                self._read[path] = file.oid
            return SourceFile(path, size, file.is_executable, lambda: content)
        self._read[path] = file.oid
        return SourceFile(path, size, file.is_executable, read)
