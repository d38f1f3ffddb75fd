"""The names in a folder, read again only when it changed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from storage.git.file_times import is_settled


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What a folder had in it.

    Attributes:
        files, folders: their names.
        stamp: of the folder; None when a change since might not show in it.
    """

    files: tuple[bytes, ...]
    folders: tuple[bytes, ...]
    stamp: tuple[int, int] | None

    @classmethod
    def of(cls, path: bytes, known: FolderListing | None = None) -> FolderListing:
        """List a folder; `known`, if that is as new.

        Raises:
            OSError: it is not there, or no folder.
        """
        now_ns = time.time_ns()
        stamp = _stamp(path)
        if known is not None and known.stamp == stamp:
            return known
        files: list[bytes] = []
        folders: list[bytes] = []
        is_telling = is_settled(stamp[0], now_ns)
        with os.scandir(path) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
                if entry.is_symlink():  # it may be a folder today and a file tomorrow
                    is_telling = False
        return cls(tuple(files), tuple(folders), stamp if is_telling else None)

    def is_current(self, path: bytes) -> bool:
        """Say whether listing it again would find nothing new. One call of the system."""
        try:
            return self.stamp == _stamp(path)
        except OSError:
            return False


def _stamp(path: bytes) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 -- hot
    return status.st_mtime_ns, status.st_ino
