"""A process's own folder for large files in progress; the next process removes what it left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "gitd-packs-"


class WorkFolder:
    """A folder below `parent`, made when it is first asked for, locked while its process lives."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._path: Path | None = None
        self._lock = -1
        _sweep(parent)

    def path(self) -> Path:
        """Return the folder. Raises OSError when it cannot be made."""
        while self._path is None:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
            lock = _locked(path)
            # A process that starts now may have swept it away before it was locked.
            if lock is not None and path.exists():
                self._path, self._lock = path, lock
            elif lock is not None:
                os.close(lock)
        return self._path

    def close(self) -> None:
        """Remove it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self._lock)
            self._path = None


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that are gone."""
    for path in parent.glob(f"{PREFIX}*"):
        lock = _locked(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """Lock a folder of ours; None when a process has it, or it is gone, or somebody else's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if os.fstat(descriptor).st_uid == os.geteuid():
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    os.close(descriptor)
    return None
