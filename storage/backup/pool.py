"""The pool: contents of files, each once for all backups of a folder.

What is added lies in the lease of its writer first. It is synced, then renamed, then its name is
synced, some hundred files at a time: what has its name in the pool is whole, and an interrupted
backup is not begun from nothing.
"""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH104, PTH108, PTH208

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from storage.backup.destination import FILE_MODE, FOLDER_MODE, Destination
from storage.digest import Digest
from storage.errors import BackupDamagedError
from storage.files import (
    Lease,
    Unsynced,
    open_regular,
    read_up_to,
    sync_directory,
    write_all,
)

PIECE_BYTES = 1 << 20
BATCH_COUNT = 2000
BATCH_BYTES = 256 << 20
# A link, a folder or a pipe in the place of a file; and what disks and filesystems say.
_OF_THE_MEDIUM = frozenset(
    [
        *(errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO),
        *(errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EREMOTEIO),
    ]
)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kept:
    """A content that the pool has now."""

    digest: Digest
    size_bytes: int


class Contents:
    """Which contents there are. Each folder of the pool is listed once, when it is first asked."""

    def __init__(self, destination: Destination) -> None:
        self._pool = str(destination.pool)
        self._shards: dict[str, set[str]] = {}

    def has(self, digest: bytes) -> bool:
        name = digest.hex()
        return name[2:] in self.shard(name[:2])

    def shard(self, shard: str) -> set[str]:
        found = self._shards.get(shard)
        if found is None:
            try:
                found = set(os.listdir(f"{self._pool}/{shard}"))
            except FileNotFoundError:
                found = set()
            self._shards[shard] = found
        return found

    def forget(self, digest: Digest) -> None:
        """Count a content as absent: it is not what it must be."""
        name = digest.hex()
        self.shard(name[:2]).discard(name[2:])


class Pool:
    """The pool of a folder that is open for writing. Belongs to one backup."""

    def __init__(self, destination: Destination, lease: Lease) -> None:
        self._destination = destination
        self._lease = lease
        self._contents = Contents(destination)
        self._staged: dict[Digest, str] = {}
        self._staged_bytes = 0
        self._unsynced = Unsynced(lease)
        self._count = 0
        self._placed: list[str] = []
        self.new_bytes = 0

    def has(self, digest: Digest) -> bool:
        return digest in self._staged or self._contents.has(digest)

    def path(self, digest: Digest) -> str:
        """Where a content lies that the pool has."""
        return self._staged.get(digest) or self._destination.content(digest)

    def add_bytes(self, data: bytes) -> Kept:
        digest = Digest.of(data)
        if not self.has(digest):
            path = self._new_path()
            self._stage(digest, path, len(data), _write(path, data))
        return Kept(digest, len(data))

    def add_file(self, source: str | Path) -> Kept:
        """Add what a file has now; of one that grows meanwhile what it had at the beginning.

        Raises:
            BackupDamagedError: Its medium does not give what it has, or it is no regular file.
            OSError: It is gone (FileNotFoundError), or the system refused.
        """
        with reading(source):
            fd = open_regular(source)
        try:
            size = os.fstat(fd).st_size
            if size <= PIECE_BYTES:
                with reading(source):
                    data = read_up_to(fd, size) if size else b""
                return self.add_bytes(data)
            return self._add_pieces(fd, size, source)
        finally:
            os.close(fd)

    def renew(self, digest: Digest, source: str | Path) -> bool:
        """Put what a file has into the place of a content that is damaged, if it is the right one.

        Durable when it returns. Says whether it was done; what is there stays otherwise.

        Raises:
            OSError: The system refused, as `flush` and `add_file` say. Never try again.
        """
        try:
            size_bytes = os.stat(source).st_size  # noqa: PTH116 - a plain string
        except OSError:  # of reading; what is written with it counts on its own errors
            return False
        if not matches(source, size_bytes=size_bytes, digest=digest):
            return False
        self.flush()
        self._contents.forget(digest)
        try:
            self.add_file(source)
        except (BackupDamagedError, FileNotFoundError):
            return False
        self.flush()
        # Earlier backups need it as well: it is not taken back with this one.
        self._placed = [path for path in self._placed if path != self._destination.content(digest)]
        return matches(self.path(digest), size_bytes=size_bytes, digest=digest)

    def flush(self) -> None:
        """Give what was added its name, durably.

        Raises:
            OSError: The system refused. After a failed sync nothing of the batch has its name.
        """
        if not self._staged:
            return
        self._unsynced.sync()
        folders = set()
        for digest, path in self._staged.items():
            final = self._destination.content(digest)
            folder = final.rpartition("/")[0]
            if folder not in folders:
                folders.add(folder)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, FOLDER_MODE)  # noqa: PTH102
            os.rename(path, final)
            self._placed.append(final)
            name = digest.hex()
            self._contents.shard(name[:2]).add(name[2:])
        for folder in folders:
            sync_directory(folder)
        sync_directory(self._destination.pool)
        self._staged.clear()
        self._staged_bytes = 0

    def keep(self) -> None:
        """Take nothing back from here on: a backup that is listed counts on it."""
        self._placed.clear()

    def take_back(self) -> None:
        """Remove all that was added: there is no room for the rest."""
        for path in self._placed:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _add_pieces(self, fd: int, size: int, source: str | Path) -> Kept:
        path = self._new_path()
        hasher = blake3()
        count = 0
        out = os.open(path, _CREATE, FILE_MODE)
        try:
            while count < size:
                with reading(source):
                    piece = os.read(fd, min(PIECE_BYTES, size - count))
                if not piece:
                    break
                hasher.update(piece)
                write_all(out, piece)
                count += len(piece)
        except BaseException:
            os.close(out)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        digest = Digest(hasher.digest())
        if self.has(digest):
            os.close(out)
            os.unlink(path)
        else:
            self._stage(digest, path, count, out)
        return Kept(digest, count)

    def _stage(self, digest: Digest, path: str, size_bytes: int, fd: int) -> None:
        self._staged[digest] = path
        self._unsynced.add(fd)
        self._staged_bytes += size_bytes
        self.new_bytes += size_bytes
        if len(self._staged) >= BATCH_COUNT or self._staged_bytes >= BATCH_BYTES:
            self.flush()

    def _new_path(self) -> str:
        self._count += 1
        return f"{self._lease.path}/{self._count}"


@contextlib.contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Tell what a medium has lost from what the system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_MEDIUM:
            raise
        raise BackupDamagedError(f"{source} cannot be read: {error.strerror}") from error


def sweep(destination: Destination, is_needed: Callable[[bytes], bool]) -> tuple[int, int]:
    """Remove the contents that no backup needs; return how many, and their size.

    Raises:
        OSError: The system refused.
    """
    count = size_bytes = 0
    for shard in sorted(os.listdir(destination.pool)):
        folder = f"{destination.pool}/{shard}"
        for name in os.listdir(folder):
            if is_needed(_digest_of(shard, name)):
                continue
            path = f"{folder}/{name}"
            size_bytes += os.lstat(path).st_size
            os.unlink(path)
            count += 1
    return count, size_bytes


def matches(path: str | Path, *, size_bytes: int, digest: bytes) -> bool:
    """Whether a file is there, can be read, and has exactly that content."""
    try:
        fd = open_regular(path)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size != size_bytes:
            return False
        hasher = blake3()
        for piece in iter(lambda: os.read(fd, PIECE_BYTES), b""):
            hasher.update(piece)
        return hasher.digest() == digest
    except OSError:  # a medium forgets
        return False
    finally:
        os.close(fd)


def _digest_of(shard: str, name: str) -> bytes:
    try:
        return bytes.fromhex(shard + name)
    except ValueError:
        return b""  # no name of ours: nobody needs it


def _write(path: str, data: bytes) -> int:
    """Make a file, and return it, open."""
    fd = os.open(path, _CREATE, FILE_MODE)
    try:
        write_all(fd, data)
    except BaseException:
        os.close(fd)
        raise
    return fd
