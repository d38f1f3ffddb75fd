"""The files of a commit as entries of a tree to keep, and what is remembered of them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.detection import is_published
from hooks.builds.sources.known_files import KnownFile, KnownFiles
from hooks.builds.sources.known_folders import FolderKey, KnownFolder, KnownFolders
from hooks.builds.sources.lfs import POINTER_BYTES_MAX, is_pointer, pointers_found
from hooks.builds.sources.tree import OUTPUT_TOO_LARGE
from storage.errors import StorageError, TreeInvalidError, TreeTooLargeError
from storage.git.errors import RepositoryError
from storage.manifest import FileEntry, Manifest
from storage.repos import Repositories
from storage.source import (
    WHOLE_BYTES_MAX,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
)
from storage.trees import EntryKind, Listed, TreeFile

SOURCE_UNREADABLE = "build.source_unreadable"


@dataclass(frozen=True, slots=True)
class Walk:
    """The files of a commit; `passed` fills with the folders that were not known on the way."""

    files: Iterator[TreeFile | SourceFile]
    passed: dict[FolderKey, Listed]


class SourceFiles:
    """The files of a commit as entries of a tree to keep. Iterate once."""

    def __init__(
        self,
        walk: Walk,
        site_id: str,
        known: KnownFiles,
        known_folders: KnownFolders,
        repositories: Repositories,
        *,
        ignores_lfs: bool,
        only: frozenset[bytes] | None = None,
    ) -> None:
        """`only`: what the manifest to learn from has at other paths is not the commit's."""
        self._walk = walk
        self._only = only
        self._site_id = site_id
        self._known = known
        self._known_folders = known_folders
        self._repositories = repositories
        self._ignores_lfs = ignores_lfs
        self._read: dict[bytes, str] = {}
        self._pointers: list[str] = []

    def __iter__(self) -> Iterator[SourceEntry]:
        """Yield the entries.

        Raises:
            BuildFailedError: `build.submodule_unavailable`, and `build.lfs_pointers` at the end.
                As `Sources.grafts` does.
            BuildOverError: The build is over.
        """
        with mapped_errors():
            for file in self._walk.files:
                yield file if isinstance(file, SourceFile) else self._entry(file)
        if self._pointers and not self._ignores_lfs:
            raise pointers_found(sorted(self._pointers))

    def learn(self, manifest: Manifest) -> None:
        """Remember what was read, by the manifest that was made of it."""
        entries = {entry.path: entry for entry in manifest.entries if isinstance(entry, FileEntry)}
        files = {
            oid: KnownFile(entry.digest, entry.size_bytes)
            for path, oid in self._read.items()
            if (entry := entries.get(path)) is not None
        }
        self._known.learn(self._site_id, files)
        learned = {
            key: folder
            for key, listed in self._walk.passed.items()
            if (folder := self._known_folder(key, listed, entries)) is not None
        }
        self._known_folders.learn(learned)

    def _known_folder(
        self, key: FolderKey, listed: Listed, entries: Mapping[bytes, FileEntry]
    ) -> KnownFolder | None:
        """Return what is to be remembered of a folder: nothing, unless it has plain files alone."""
        files = []
        for file in listed.files:
            if key.is_public and not is_published(file.path):
                continue
            path = os.fsencode(file.path)
            entry = entries.get(path)
            is_plain = file.kind is EntryKind.FILE and file.path not in self._pointers
            is_own = self._only is None or path in self._only
            if not is_plain or not is_own or entry is None or entry.size_bytes > WHOLE_BYTES_MAX:
                return None
            read = functools.partial(self._repositories.read_blob, self._site_id, file.oid)
            files.append(
                SourceFile(path, entry.size_bytes, entry.executable, read, digest=entry.digest)
            )
        return KnownFolder(tuple(files), tuple((path, tree.oid) for path, tree in listed.folders))

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


def among(
    files: Iterable[TreeFile | SourceFile], paths: frozenset[bytes], prefix: bytes
) -> Iterator[TreeFile | SourceFile]:
    """Yield the files at some paths behind a prefix, by these paths.

    Raises:
        TreeInvalidError: There is none at one of them.
    """
    missing = set(paths)
    for file in files if missing else ():
        whole = file.path if isinstance(file, SourceFile) else os.fsencode(file.path)
        path = whole.removeprefix(prefix)
        if path not in missing or prefix + path != whole:
            continue
        if isinstance(file, TreeFile):
            if file.kind is not EntryKind.FILE:
                continue
            file = file._replace(path=os.fsdecode(path)) if prefix else file  # noqa: PLW2901
        missing.remove(path)
        yield file
    if missing:
        raise TreeInvalidError(min(missing), "is not in the commit as it was said")


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """Tell the author of the commit what is too large of it, or cannot be read."""
    try:
        yield
    except (TreeTooLargeError, RepositoryError) as error:
        raise failure_of(error) from error


def failure_of(error: StorageError) -> BuildFailedError:
    """What a build ends with whose commit could not be read."""
    if isinstance(error, TreeTooLargeError):
        return BuildFailedError(OUTPUT_TOO_LARGE, f"source: {error}; no artifact may have them.")
    return BuildFailedError(SOURCE_UNREADABLE, f"The commit cannot be read: {error}")
