"""A batch: copies of a backup's contents, which are synced before they get their names.

So what has its name is on the medium. Otherwise a restore that goes on after a failed sync could
read in the kernel's memory, and believe, what the kernel has given up writing.
"""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH104, PTH112, PTH120

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from storage.backup.manifest import Entry, FileEntry
from storage.backup.pool import BATCH_BYTES, BATCH_COUNT, PIECE_BYTES
from storage.errors import BackupDamagedError
from storage.files import open_regular, sync_filesystem, write_all

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Batch:
    """Copies on their way into a data folder."""

    def __init__(self, root: Path, scratch: Path, fd: int) -> None:
        """`root`: the data folder; `scratch`: one in it for drafts, which has none. `fd`: something
        open there since before the first copy, so that the kernel reports errors of all.
        """
        self._root = root
        self._scratch = scratch
        self._fd = fd
        self._count = 0
        self._drafts: list[tuple[str, str]] = []
        self._bytes = 0

    def add(self, entry: Entry, source: str, final: str, *, mode: int, mtime_ns: int) -> None:
        """Copy what `source` has, if it is what the entry says. `mtime_ns`: 0 for that of now.

        Raises:
            BackupDamagedError: It is something else, or cannot be read.
            OSError: The system refused. After a failed sync nothing of the batch has its name.
        """
        self._count += 1
        draft = f"{self._scratch}/{self._count}"
        try:
            fd = open_regular(source)
        except OSError as error:
            raise _damaged(entry, source, error.strerror or "cannot be read") from error
        try:
            out = os.open(draft, _CREATE, 0o600)
            try:
                if _copy(fd, out, entry.size_bytes) != entry.digest:
                    raise _damaged(entry, source, "has other bytes than its name says")
                os.fchmod(out, mode)
                if mtime_ns:
                    os.utime(out, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(out)
        finally:
            os.close(fd)
        self._drafts.append((draft, final))
        self._bytes += entry.size_bytes
        if len(self._drafts) >= BATCH_COUNT or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make the copies durable, and give them their names, which are not durable yet.

        Raises:
            OSError: As for `add`.
        """
        if not self._drafts:
            return
        sync_filesystem(self._fd)
        for draft, final in self._drafts:
            folder = os.path.dirname(final)
            if not os.path.isdir(folder):
                self._make_folder(Path(folder))
            os.rename(draft, final)
        self._drafts.clear()
        self._bytes = 0

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it: the first ones below the data folder are private."""
        if folder == self._root or folder.is_dir():
            return
        self._make_folder(folder.parent)
        is_private = folder.parent == self._root or folder.name.endswith(".git")
        folder.mkdir(mode=0o700 if is_private else 0o755)


def _copy(fd: int, out: int, size_bytes: int) -> bytes:
    """Copy so much and a byte, and return its digest: what is longer fills no disk."""
    hasher = blake3()
    left = size_bytes + 1
    while left and (piece := os.read(fd, min(left, PIECE_BYTES))):
        hasher.update(piece)
        write_all(out, piece)
        left -= len(piece)
    return hasher.digest()


def _damaged(entry: Entry, source: str, why: str) -> BackupDamagedError:
    what = entry.path if isinstance(entry, FileEntry) else f"the blob {entry.digest}"
    return BackupDamagedError(
        f"the backup is damaged: {what}: {source} {why}. What was restored is not complete; an"
        " earlier backup may do (--at)"
    )
