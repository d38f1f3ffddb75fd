"""Reading all blobs of a store, as fast as that goes: which of them somebody should look at.

A filter and no judge: what is as it must be is passed over, and of the rest nothing is said but its
key. Folder by folder, so that the system finds a file by its name alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import groupby

from blake3 import blake3

from storage.digest import DIGEST_BYTES
from storage.layout import Layout, blob_mode, blob_mtime, blob_name

Facts = tuple[int, int, int, int]  # mode, owner, size, time in seconds
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE_BYTES = 4 << 20
_MODES = {
    executable: stat.S_IFREG | blob_mode(executable=executable) for executable in (False, True)
}


def suspects(
    layout: Layout, blobs: Iterable[tuple[bytes, int]], *, reads: bool, from_medium: bool = False
) -> Iterator[bytes]:
    """Yield the keys of those blobs that are not as they must be; `reads` as for an inspector.

    `blobs`: keys and sizes. `from_medium`: what the system remembers of them is not asked.
    """
    uid = layout.root.stat().st_uid
    for shard, group in groupby(sorted(blobs), key=lambda blob: blob[0][0]):
        wanted = list(group)
        try:
            folder = os.open(layout.blob_folder(shard), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield from (key for key, _ in wanted)
            continue
        try:
            for key, size_bytes in wanted:
                name = blob_name(key)
                facts = facts_of(key[DIGEST_BYTES:] == b"x", uid, size_bytes, key)
                if reads:
                    is_right = has_bytes(
                        folder, name, facts, key[:DIGEST_BYTES], from_medium=from_medium
                    )
                else:
                    is_right = _lies_there(folder, name, facts)
                if not is_right:
                    yield key
        finally:
            os.close(folder)


def facts_of(executable: bool, uid: int, size_bytes: int, digest: bytes) -> Facts:  # noqa: FBT001 - once for each of many files
    """What `stat` must say of a file that has this content, and is owned by that user."""
    return _MODES[executable], uid, size_bytes, blob_mtime(digest)


def _lies_there(folder: int, name: str, facts: Facts) -> bool:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return (status.st_mode, status.st_uid, status.st_size, int(status[stat.ST_MTIME])) == facts


def has_bytes(
    folder: int, name: str | bytes, facts: Facts, digest: bytes, *, from_medium: bool = False
) -> bool:
    """Read a file below an open folder, and say whether it is what it must be. Never waits, and
    follows no link at the end of its name.
    """
    size_bytes = facts[2]
    try:
        fd = os.open(name, _OPEN, dir_fd=folder)
        try:
            status = os.fstat(fd)
            found = (status.st_mode, status.st_uid, status.st_size, int(status[stat.ST_MTIME]))
            if found != facts:
                return False
            if from_medium:
                forget_cached(fd)
            if size_bytes < _PIECE_BYTES:
                data = os.read(fd, size_bytes + 1)
                return len(data) == size_bytes and blake3(data).digest() == digest
            return _digest_of(fd) == digest
        finally:
            os.close(fd)
    except OSError:
        return False


def forget_cached(fd: int) -> None:
    """Have the next read of a file ask its medium, not what the system remembers of it.

    After a write that failed in the background, memory has what no medium has. What waits to be
    written stays in memory: sync before, where that may be.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _digest_of(fd: int) -> bytes:
    hasher = blake3(max_threads=blake3.AUTO)
    while data := os.read(fd, _PIECE_BYTES):
        hasher.update(data)
    return hasher.digest()
