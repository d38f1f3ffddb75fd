"""Blobs on their way in: staged in a lease of one ingest, synced, then placed under their names."""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH104

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import NewType

from blake3 import blake3

from storage.digest import DIGEST_BYTES, Digest
from storage.errors import TreeInvalidError
from storage.files import (
    SYNC_EACH_COUNT_MAX,
    Lease,
    Unsynced,
    sync_filesystem,
    sync_together,
    write_all,
)
from storage.layout import Layout, blob_mode, blob_mtime, blob_name
from storage.long_write import LongWrite
from storage.manifest import FileEntry, Manifest

# A blob's key in the records: its digest, then `x` or `f`. Whether it may be executed is a
# property of the file on disk, so that one content may lie there twice.
BlobKey = NewType("BlobKey", bytes)

# So much more was written: it is synced while more is staged, so that the last sync finds little.
EARLY_SYNC_BYTES = 48 << 20
MANIFEST_NAME = "manifest"
ENVELOPE_NAME = "envelope"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def blob_key(digest: Digest, *, executable: bool) -> BlobKey:
    return BlobKey(digest + (b"x" if executable else b"f"))


def entry_key(entry: FileEntry) -> BlobKey:
    return blob_key(entry.digest, executable=entry.executable)


def blob_sizes(manifest: Manifest) -> dict[BlobKey, int]:
    """The sizes of a tree's distinct blobs."""
    files = (entry for entry in manifest.entries if isinstance(entry, FileEntry))
    return {entry_key(entry): entry.size_bytes for entry in files}


def blob_path(layout: Layout, key: bytes) -> str:
    return layout.blob(Digest(key[:DIGEST_BYTES]), executable=is_executable(key))


def is_executable(key: bytes) -> bool:
    return key[DIGEST_BYTES:] == b"x"


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A blob in the lease, by its name there."""

    name: str
    size_bytes: int


class Staging:
    """What one ingest has written. Nothing of it has its final name before `place`."""

    def __init__(
        self, layout: Layout, lease: Lease, threads: ThreadPoolExecutor | None = None
    ) -> None:
        """`threads`: those that wait for the disk; without them one file is synced at a time."""
        self._threads = threads
        self._layout = layout
        self._lease = lease
        self._count = 0
        self._unsynced = Unsynced(lease, threads)
        self._statements: list[tuple[str, str]] = []
        self._early: Future[None] | None = None
        self._early_bytes = 0
        self.blobs: dict[BlobKey, StagedBlob] = {}

    def add(self, key: BlobKey, data: bytes) -> None:
        """Write the whole contents of a blob."""
        name, fd = self._new_file()
        try:
            write_all(fd, data)
            _finish(fd, key)
        except BaseException:
            os.close(fd)
            raise
        self._add(key, name, len(data), fd)

    def add_pieces(
        self,
        pieces: Iterator[bytes],
        *,
        path: bytes,
        size_bytes: int,
        executable: bool,
    ) -> Digest:
        """Write a blob whose digest comes out on the way. `path` and `size_bytes` are its source's.

        What turns out to be here already is removed again, unsynced.

        Raises:
            TreeInvalidError: The pieces are not `size_bytes` long together.
        """
        hasher = blake3()
        count = 0
        name, fd = self._new_file()
        contents = LongWrite(fd, size_bytes)
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, fd)
            for piece in pieces:
                count += len(piece)
                if count > size_bytes:
                    break
                hasher.update(piece)
                contents.write(piece)
            if count != size_bytes:
                raise TreeInvalidError(path, "changed while it was read")
            digest = Digest(hasher.digest())
            key = blob_key(digest, executable=executable)
            _finish(fd, key)
            if key in self.blobs:
                os.unlink(name, dir_fd=self._lease.fd)
            else:
                closing.pop_all()
                self._add(key, name, count, fd)
        return digest

    def add_statement(self, name: str, data: bytes, final: str) -> None:
        """Write a manifest or an envelope that will lie at `final`.

        It keeps its name here beside, so that whoever finds the lease dead knows what was meant.
        """
        path = f"{self._lease.path}/{name}"
        fd = os.open(path, _CREATE, 0o600)
        try:
            write_all(fd, data)
            os.fchmod(fd, 0o444)
        except BaseException:
            os.close(fd)
            raise
        self._unsynced.add(fd)
        self._statements.append((path, final))

    def sync(self) -> None:
        """Make the bytes durable; after an error nothing staged may be used.

        The lease was opened before the first write, so the kernel reports errors of all writes:
        each once, so that one which an early sync was told is looked for there.
        """
        if self._early is not None:
            self._early.result()
        self._unsynced.sync()

    def place(self, live: set[BlobKey]) -> None:
        """Give everything its final name, durably. The caller holds the gate.

        A live blob keeps its file. One that is not live is put over whatever lies there: a file
        without a row may be torn by a crash, and is never trusted.
        """
        placed = [(key, blob) for key, blob in self.blobs.items() if key not in live]
        folders = {self._layout.blob_folder(shard) for shard in self._place_blobs(placed)}
        for key in self.blobs.keys() & live:
            os.unlink(self.blobs[key].name, dir_fd=self._lease.fd)
        for path, final in self._statements:
            os.link(path, f"{path}.place")
            os.rename(f"{path}.place", final)
            folders.add(final.rpartition("/")[0])
        # The names too: without this an acknowledged artifact did not survive a power cut on btrfs.
        if len(folders) > SYNC_EACH_COUNT_MAX:
            sync_filesystem(self._lease.fd)
        else:
            sync_together(folders, self._threads)

    def _place_blobs(self, placed: list[tuple[BlobKey, StagedBlob]]) -> list[int]:
        """Rename blobs, shard by shard: so the system finds both names in open folders. Return
        which shards were written to.
        """
        lease, shards = self._lease.fd, []
        for shard, blobs in groupby(sorted(placed, key=_key), key=_shard):
            folder = os.open(self._layout.blob_folder(shard), _FOLDER)
            try:
                for key, blob in blobs:
                    os.rename(blob.name, blob_name(key), src_dir_fd=lease, dst_dir_fd=folder)
            finally:
                os.close(folder)
            shards.append(shard)
        return shards

    def _add(self, key: BlobKey, name: str, size_bytes: int, fd: int) -> None:
        self.blobs[key] = StagedBlob(name, size_bytes)
        self._unsynced.add(fd)
        self._early_bytes += size_bytes
        if self._early_bytes >= EARLY_SYNC_BYTES and self._unsynced.are_many:
            self._sync_early()

    def _sync_early(self) -> None:
        """Begin to make durable what is here, unless that is going on or has failed."""
        if self._threads is None:
            return
        if self._early is not None and (not self._early.done() or self._early.exception()):
            return
        self._early_bytes = 0
        # A descriptor of its own, since the lease may end before; both are one open file, so that
        # what went wrong is told for the lease.
        self._early = self._threads.submit(_sync_and_close, os.dup(self._lease.fd))

    def _new_file(self) -> tuple[str, int]:
        """Make a file in the lease; return its name, and itself, open."""
        name = str(self._count)
        self._count += 1
        return name, os.open(name, _CREATE, 0o600, dir_fd=self._lease.fd)


def remove_staged(lease: Lease) -> None:
    """Remove the blobs that a lease has still: they were never placed, so no row needs them.

    Its statements stay, which say what was meant to be placed. What cannot be removed stays, too.
    """
    for name in os.listdir(lease.fd):  # noqa: PTH208 - by the descriptor
        if name.isdecimal():
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=lease.fd)


def _sync_and_close(fd: int) -> None:
    try:
        sync_filesystem(fd)
    finally:
        os.close(fd)


def _key(blob: tuple[BlobKey, StagedBlob]) -> BlobKey:
    return blob[0]


def _shard(blob: tuple[BlobKey, StagedBlob]) -> int:
    return blob[0][0]


def _finish(fd: int, key: BlobKey) -> None:
    os.fchmod(fd, blob_mode(executable=is_executable(key)))
    mtime = blob_mtime(key)
    os.utime(fd, (mtime, mtime))
