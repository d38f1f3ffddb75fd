"""Known folders: the files of a folder as entries of a tree to keep, by git's id of the folder.

Most folders of a site are the same in the next push: nothing of them is listed or looked up again,
file by file. As with known files, the store still says whether it has the contents.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from storage.source import SourceFile

FILES_COUNT_MAX: Final = 20_000
"""Files in the folders that are remembered, some 500 bytes each: those used last."""


class FolderKey(NamedTuple):
    """A folder of a site's commits. `oid` is its tree's; the path is in the entries' names.

    `is_public`: without what a static site does not show.
    """

    site_id: str
    oid: bytes
    path: str
    is_public: bool


class KnownFolder(NamedTuple):
    """The files in a folder, with their digests, and the folders in it: path and tree."""

    files: tuple[SourceFile, ...]
    folders: tuple[tuple[str, bytes], ...]


class KnownFolders:
    """Of all sites, each by itself. From any thread; forgotten at the end of the process."""

    def __init__(self) -> None:
        self._files_count = 0
        self._folders: OrderedDict[FolderKey, KnownFolder] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: FolderKey) -> KnownFolder | None:
        with self._lock:
            found = self._folders.get(key)
            if found is not None:
                self._folders.move_to_end(key)
            return found

    def learn(self, folders: Mapping[FolderKey, KnownFolder]) -> None:
        """Remember folders."""
        with self._lock:
            for key, folder in folders.items():
                self._drop(key)
                self._folders[key] = folder
                self._files_count += _weight(folder)
            while self._folders and self._files_count > FILES_COUNT_MAX:
                self._drop(next(iter(self._folders)))

    def _drop(self, key: FolderKey) -> None:
        dropped = self._folders.pop(key, None)
        if dropped is not None:
            self._files_count -= _weight(dropped)


def _weight(folder: KnownFolder) -> int:
    return 1 + len(folder.files) + len(folder.folders)
