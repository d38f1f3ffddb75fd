"""The disk: what a tree takes of it while it is written to, and what it has left."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hooks.builds.sandbox.limits import Limit, Limits

NAME_BYTES = 4096  # what each name counts at least: empty files fill a disk too
DEPTH_MAX = 200  # folders deeper than that are not looked into
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class DiskUse:
    """What trees take. Not `is_whole`: something could not be looked into, or nobody needed to.

    `has_cut`: there is a file that the kernel has cut off. A larger one is none of the build's.
    """

    size_bytes: int = 0
    has_cut: bool = False
    is_whole: bool = True


def disk_use(
    folders: Iterable[Path],
    *,
    enough_bytes: int,
    cut_file_bytes: int | None,
    is_stopped: Callable[[], bool],
) -> DiskUse:
    """Add up what lies below `folders`, until it is more than `enough_bytes`. Blocking.

    `cut_file_bytes`: where the kernel cuts files off that are written there.
    Links are not followed, a file with several names counts once, and the tree may change
    meanwhile.
    """
    look = _Look(enough_bytes, cut_file_bytes, is_stopped)
    for folder in folders:
        with contextlib.suppress(OSError):
            look.into(os.open(folder, _FOLDER), depth=0)
    return look.found


def shortage(
    folder: Path, limits: Limits, *, new_bytes: int = 0, new_names: int = 0
) -> Limit | None:
    """Say what is not left free on the disk of `folder`, once so much more is written there.

    Raises:
        OSError: The system refused.
    """
    least = limits.disk_free_bytes or 0
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize - new_bytes < least:
        return Limit.DISK_FREE
    # Some filesystems have no fixed number of inodes and say 0. Others have very few.
    names_min = found.f_files * least // max(1, found.f_blocks * found.f_frsize)
    if found.f_files and found.f_favail - new_names < names_min:
        return Limit.FILES_FREE
    return None


def shortage_beside_build(
    folder: Path, limits: Limits, *, new_bytes: int = 0, new_names: int = 0
) -> Limit | None:
    """Say what is not left free, once a build has taken all that it may, and so much more is there.

    Of a fixed number of inodes a build may take as large a part as of the bytes. It could name
    more, but many disks have too few for that, however empty they are.

    Raises:
        OSError: The system refused.
    """
    taken_bytes = limits.disk_bytes or 0
    found = os.statvfs(folder)
    part = found.f_files * taken_bytes // max(1, found.f_blocks * found.f_frsize)
    names = min(part, taken_bytes // NAME_BYTES)
    return shortage(folder, limits, new_bytes=taken_bytes + new_bytes, new_names=names + new_names)


class _Look:
    def __init__(
        self, enough_bytes: int, cut_file_bytes: int | None, is_stopped: Callable[[], bool]
    ) -> None:
        self.found = DiskUse()
        self._enough_bytes = enough_bytes
        self._cut_file_bytes = cut_file_bytes
        self._is_stopped = is_stopped
        self._seen: set[tuple[int, int]] = set()

    def into(self, folder: int, *, depth: int) -> None:
        """Look through an open folder, and close it."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self._has_enough():
                        self.found.is_whole = False
                        return
                    with contextlib.suppress(FileNotFoundError):
                        self._count(entry.stat(follow_symlinks=False))
                        if entry.is_dir(follow_symlinks=False):
                            self._descend(folder, entry.name, depth)
        except OSError:
            self.found.is_whole = False
        finally:
            os.close(folder)

    def _descend(self, folder: int, name: str, depth: int) -> None:
        if depth == DEPTH_MAX:
            self.found.is_whole = False
            return
        try:
            child = os.open(name, _FOLDER, dir_fd=folder)
        except (PermissionError, NotADirectoryError):
            self.found.is_whole = False
        else:
            self.into(child, depth=depth + 1)

    def _count(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            file = (status.st_dev, status.st_ino)
            if file in self._seen:
                return
            self._seen.add(file)
        self.found.size_bytes += max(status.st_blocks * 512, NAME_BYTES)
        if status.st_size == self._cut_file_bytes and stat.S_ISREG(status.st_mode):
            self.found.has_cut = True

    def _has_enough(self) -> bool:
        return self.found.size_bytes > self._enough_bytes or self._is_stopped()
