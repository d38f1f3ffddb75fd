"""The folders that refs' files lie in: made for them, synced behind them, removed once empty.

Source: git's refs/files-backend.c; gitrepository-layout(5).
"""

from __future__ import annotations

import os

from storage.files import sync_directory
from storage.git.errors import RefNotDurableError
from storage.git.sharing import Sharing


class RefFolders:
    """Those of one git directory, `root` (with a slash at its end), in which something changes."""

    def __init__(self, root: bytes, sharing: Sharing) -> None:
        self._root = root
        self._sharing = sharing
        self._unsynced: set[bytes] = set()

    def make(self, folder: bytes) -> None:
        """Make a folder and those above it, if it is not there."""
        if os.path.isdir(folder):  # noqa: PTH112
            return
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        self._sharing.apply_up(folder, self._root + b"refs")
        while len(folder) > len(self._root):
            folder = os.path.dirname(folder)  # noqa: PTH120
            self._unsynced.add(folder + b"/")

    def note_change(self, path: bytes) -> None:
        """See that a file has come into its folder, or gone: that is not durable yet."""
        self._unsynced.add(os.path.dirname(path))  # noqa: PTH120

    def sync(self) -> None:
        """Make durable what has come and gone.

        Raises:
            RefNotDurableError: one of them could not be synced; all were tried.
        """
        failure: OSError | None = None
        for folder in self._unsynced:
            try:
                sync_directory(os.fsdecode(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue  # what was emptied since is gone, or a ref by now
            except OSError as error:
                failure = error
        self._unsynced.clear()
        if failure is not None:
            raise RefNotDurableError(f"cannot sync the refs: {failure.strerror}") from failure


def prune_folders(root: bytes, name: bytes) -> None:
    """Remove folders that a deletion left empty; `refs/heads` and its like stay.

    `name`: of the ref, whose file lay below `root` (with a slash at its end).
    """
    parts = name.split(b"/")[:-1]
    while len(parts) > 2:
        try:
            os.rmdir(root + b"/".join(parts))  # noqa: PTH106
        except OSError:
            return
        parts.pop()


def is_free_of_refs(path: bytes) -> bool:
    """Say whether a ref's file could stand here: empty folders are removed for it."""
    if not os.path.isdir(path):  # noqa: PTH112
        return True
    try:
        remove_empty_folders(path)
    except OSError:
        return False
    return True


def remove_empty_folders(path: bytes) -> None:
    """Remove a folder in which there is nothing but folders. Raises OSError when there is more."""
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)  # noqa: PTH106
