"""Below an open folder: how its files and folders are opened, and told from one another."""

from __future__ import annotations

import os
from operator import attrgetter

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What tells a file, and whether it was written to since.
identity = attrgetter("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")


def descend(folder: int, path: bytes) -> int:
    """Open a folder below the open `folder`, which is closed, without following a link on the way.

    An empty path is that folder itself.
    """
    try:
        for name in path.split(b"/") if path else ():
            child = os.open(name, DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = child
    except BaseException:
        os.close(folder)
        raise
    return folder


def facts_of(found: tuple[int, ...]) -> bytes:
    """An `identity` as text, for another process to compare."""
    return b"%d %d %d %d %d %d" % found
