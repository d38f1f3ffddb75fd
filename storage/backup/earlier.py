"""Earlier files: those of the newest backup, which need not be copied again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from storage.backup.destination import Destination
from storage.backup.manifest import FileEntry, Manifest
from storage.backup.pool import Pool
from storage.backup.repositories import Listed
from storage.errors import BackupDamagedError


class Earlier:
    """The files of the newest backup; none when there is none, or its manifest is damaged."""

    def __init__(self, destination: Destination) -> None:
        self._files = _files(destination)

    def has(self, entry: FileEntry) -> bool:
        return self._files.get(entry.path) == entry

    def at(self, path: str, pool: Pool) -> tuple[FileEntry, ...]:
        """The file of a path, or all files below it; without those that the pool lost."""
        one = self._files.get(path)
        found = [one] if one is not None else self._below(f"{path}/")
        return tuple(entry for entry in found if pool.has(entry.digest))

    def or_copied(self, name: str, path: Path, item: Listed, pool: Pool) -> FileEntry:
        """Copy a file, unless the backup before has it and nothing was written to it since.

        Raises:
            BackupDamagedError, OSError: As `Pool.add_file` says.
        """
        known = self._files.get(name)
        if (
            known is not None
            and (known.size_bytes, known.mtime_ns) == (item.size_bytes, item.mtime_ns)
            and pool.has(known.digest)
        ):
            return FileEntry(name, item.mode, known.mtime_ns, known.size_bytes, known.digest)
        kept = pool.add_file(path)
        return FileEntry(name, item.mode, item.mtime_ns, kept.size_bytes, kept.digest)

    def _below(self, prefix: str) -> list[FileEntry]:
        return [entry for path, entry in self._files.items() if path.startswith(prefix)]


def _files(destination: Destination) -> Mapping[str, FileEntry]:
    for name in destination.names()[-1:]:
        with contextlib.suppress(BackupDamagedError):
            found = Manifest.open(destination.manifest(name)).files()
            return {entry.path: entry for entry in found}
    return {}
