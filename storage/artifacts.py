"""The artifact store, control's side: takes trees in, durably, each blob once.

The order of an ingest is what makes it safe against crashes: bytes are staged and synced, then
placed under their final names and the names synced, then one commit of the records makes them
count. A crash before the commit leaves rubbish that `recover` removes; never half an artifact.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage.blobs import (
    ENVELOPE_NAME,
    MANIFEST_NAME,
    BlobKey,
    Staging,
)
from storage.digest import Digest
from storage.envelope import Envelope
from storage.errors import (
    ArtifactMissingError,
    RecordsError,
    StorageError,
    StorageFullError,
    StoreChangedError,
    StoreUnusableError,
)
from storage.files import (
    Lease,
    Remover,
    mapped_errors,
    read_bounded,
    sync_directory,
    sync_filesystem,
    write_atomic,
)
from storage.gate import Gate
from storage.holding import hold_trees
from storage.ids import ArtifactId, artifact_id
from storage.ingest import Ingest
from storage.layout import FORMAT_LINE, SHARDED, SHARDS, Layout
from storage.manifest import Manifest
from storage.reader import read_manifest
from storage.records import blobs as rows
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.recovery import Recovered, Recovery
from storage.room import Room, RoomLimits
from storage.source import Limits, SourceEntry
from storage.timestamps import now_ms

K = TypeVar("K")
R = TypeVar("R")

TRIES_MAX = 5
SYNCS_AT_ONCE = 4  # of files, and of folders: one commit of the filesystem's journal for all


@dataclass(frozen=True, slots=True)
class Ingested:
    """An artifact that the store holds.

    Attributes:
        manifest_sha256: In hexadecimal.
        files: How many files it has; `size_bytes` is their size together.
        envelope_sha256: Name of the statement that was signed for this ingest, in hexadecimal.
        key_id: The key that signed it; `signature` is in base 64.
        new_blobs: How many contents the store did not have before; `new_bytes` is their size.
    """

    artifact_id: ArtifactId
    digest: Digest
    manifest_sha256: str
    files: int
    size_bytes: int
    envelope_sha256: str
    key_id: str
    signature: str
    new_blobs: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class KeptTree:
    """A tree that the store holds without anybody vouching for it, such as a build cache.

    Attributes:
        files: How many files it has; `size_bytes` is their size together.
        new_blobs: How many contents the store did not have before; `new_bytes` is their size.
    """

    digest: Digest
    files: int
    size_bytes: int
    new_blobs: int
    new_bytes: int


class ArtifactStore:
    """A store open for writing. Any thread may use it, also several processes at once."""

    def __init__(self, layout: Layout, records: Records, room: Room) -> None:
        self.layout = layout
        self.room = room
        self._records = records
        self._gate = Gate(layout)
        self._recovery = Recovery(layout, records, self._gate)
        self._syncing = ThreadPoolExecutor(SYNCS_AT_ONCE, "sync")
        self._is_doubtful = False

    @classmethod
    def open(
        cls,
        root: Path,
        records: Records,
        *,
        group: int | None,
        room: Room | None = None,
    ) -> ArtifactStore:
        """Open the store at `root`, making it first where there is none.

        `group`: the group (gid) whose members may read the store; None keeps it to its owner.
        `room`: that of this very store; one with the usual limits when None.

        Raises:
            StoreUnusableError: It has a format that this program does not know.
            StorageIoError: It cannot be made or read.
        """
        layout = Layout(root)
        with mapped_errors(f"open the store {root}"):
            if not layout.format.exists():
                _make(layout)
            if not read_bounded(layout.format, size_bytes_max=4096).startswith(FORMAT_LINE):
                raise StoreUnusableError(f"{layout.format} names an unknown format")
            layout.quarantine.mkdir(mode=0o700, exist_ok=True)  # stores of old have none
            _share(layout, group)
        return cls(layout, records, room or Room(layout, RoomLimits()))

    def ingest(
        self,
        tree: Iterable[SourceEntry],
        *,
        limits: Limits,
        attest: Callable[[Manifest], Envelope],
        record: Callable[[sqlite3.Connection, Ingested], R],
    ) -> tuple[Ingested, R]:
        """Take a tree in. Durable when it returns, together with what `record` wrote.

        Equal trees give equal artifacts; a repeat costs little and is always right, also after
        an error. `tree`: entries in any order; each file is read before the next entry is asked
        for. `attest` seals the provenance, once, when the manifest is known. `record` runs
        inside the transaction that makes the artifact count; its answer is handed on.
        Blocking: call it from a thread.

        Raises:
            TreeInvalidError: The tree holds what no artifact may hold.
            TreeTooLargeError: It is beyond the limits.
            StorageFullError: No room; what was written is removed again.
            StoreChangedError: Blobs were collected meanwhile, again and again: repeat it.
            StorageError: Whatever else failed; what was written is removed again. Only when the
                commit itself failed is its outcome unknown until `recover` after the next start.
        """
        with self._taking_in(tree, limits) as ingest:
            manifest = ingest.draft.manifest()
            envelope = attest(manifest)

            def ingested(placed: Mapping[BlobKey, int]) -> Ingested:
                return Ingested(
                    artifact_id=artifact_id(manifest.digest),
                    digest=manifest.digest,
                    manifest_sha256=manifest.sha256,
                    files=manifest.files,
                    size_bytes=manifest.size_bytes,
                    envelope_sha256=envelope.sha256,
                    key_id=envelope.key_id,
                    signature=envelope.signature,
                    new_blobs=len(placed),
                    new_bytes=sum(placed.values()),
                )

            self._add_manifest(ingest, manifest)
            ingest.staging.add_statement(
                ENVELOPE_NAME, envelope.data, self.layout.envelope(envelope.sha256)
            )
            return self._publish(ingest, manifest, ingested, record)

    def keep_tree(
        self,
        tree: Iterable[SourceEntry],
        *,
        limits: Limits,
        record: Callable[[sqlite3.Connection, KeptTree], R],
    ) -> tuple[KeptTree, R]:
        """Take a tree in that is no artifact: without a statement, never listed, never rolled.

        As `ingest` otherwise. `record` writes the row that keeps it, such as a build cache
        (`storage.records.build_caches.put`): the collector takes trees that no row asks for.

        Raises:
            As `ingest`.
        """
        with self._taking_in(tree, limits) as ingest:
            manifest = ingest.draft.manifest()

            def kept(placed: Mapping[BlobKey, int]) -> KeptTree:
                return KeptTree(
                    digest=manifest.digest,
                    files=manifest.files,
                    size_bytes=manifest.size_bytes,
                    new_blobs=len(placed),
                    new_bytes=sum(placed.values()),
                )

            self._add_manifest(ingest, manifest)
            return self._publish(ingest, manifest, kept, record)

    @contextlib.contextmanager
    def reading(self, digest: Digest) -> Iterator[Manifest]:
        """Hold a tree while it is read: whatever its rows say meanwhile, nothing of it goes.

        The hold ends with the context, or with this process.

        Raises:
            ArtifactMissingError: It is not there (any more).
            ArtifactCorruptError: Its manifest is not what its digest says.
            StorageError: The system refused.
        """
        lease = None
        try:
            with mapped_errors(f"read the tree {digest}"), mapped_record_errors():
                # Behind the gate: a collector has either not looked for leases yet, and will see
                # this one, or has forgotten the tree before it is looked for here.
                with self._gate.publishing():
                    lease = hold_trees(self.layout, [digest])
                    if not rows.has_tree(self._records.reader(), digest):
                        raise ArtifactMissingError(f"the tree {digest} is not in the store")
                manifest = read_manifest(self.layout, digest)
            yield manifest
        finally:
            if lease is not None:
                lease.release()

    def recover(self) -> Recovered:
        """Remove what crashes left. See `storage.recovery`."""
        return self._recovery.recover()

    # -- ingest ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Lease]:
        self.room.check()
        lease = Lease.take(self.layout.tmp)
        try:
            yield lease
        except BaseException:
            if self._is_doubtful:
                lease.is_abandoned = True
                raise
            # Should this fail as well, the first error is the one to tell; the rest is harmless.
            with contextlib.suppress(StorageError, OSError):
                self._recovery.remove_unknown(lease, Remover(), doubt=self._doubt)
            raise
        finally:
            lease.release()

    def _doubt(self) -> str | None:
        return "a commit failed that may have happened" if self._is_doubtful else None

    @contextlib.contextmanager
    def _taking_in(self, tree: Iterable[SourceEntry], limits: Limits) -> Iterator[Ingest]:
        with mapped_errors("take in a tree"), mapped_record_errors(), self._lease() as lease:
            staging = Staging(self.layout, lease, self._syncing)
            ingest = Ingest(self._records, staging, self.room, limits)
            ingest.stage(tree)
            yield ingest

    def _add_manifest(self, ingest: Ingest, manifest: Manifest) -> None:
        final = self.layout.tree(manifest.digest)
        ingest.staging.add_statement(MANIFEST_NAME, manifest.data, final)

    def _publish(
        self,
        ingest: Ingest,
        manifest: Manifest,
        describe: Callable[[Mapping[BlobKey, int]], K],
        record: Callable[[sqlite3.Connection, K], R],
    ) -> tuple[K, R]:
        for _ in range(TRIES_MAX):
            ingest.staging.sync()
            with self._gate.publishing():
                live = ingest.live_keys(manifest.digest)
                missing = ingest.missing_keys(live)
                if not missing:
                    return self._commit(ingest, manifest, live, describe, record)
            ingest.stage_again(missing)
        raise StoreChangedError("blobs were collected while a tree was taken in: repeat it")

    def _commit(
        self,
        ingest: Ingest,
        manifest: Manifest,
        live: set[BlobKey],
        describe: Callable[[Mapping[BlobKey, int]], K],
        record: Callable[[sqlite3.Connection, K], R],
    ) -> tuple[K, R]:
        placed = {
            key: blob.size_bytes for key, blob in ingest.staging.blobs.items() if key not in live
        }
        described = describe(placed)
        tree = rows.TreeRow(
            digest=manifest.digest,
            sha256=bytes.fromhex(manifest.sha256),
            files=manifest.files,
            size_bytes=manifest.size_bytes,
            manifest_bytes=len(manifest.data),
            blobs=len(ingest.files),
        )
        ingest.staging.place(live)

        is_written = False

        def commit(db: sqlite3.Connection) -> R:
            nonlocal is_written
            is_written = False
            rows.publish(db, tree, list(ingest.files), placed, now_ms())
            answer = record(db, described)
            is_written = True
            return answer

        try:
            return described, self._records.write(commit)
        except rows.BlobsMissingError as error:
            raise StoreChangedError("blobs went away behind the gate: repeat it") from error
        except (RecordsError, StorageFullError):
            if is_written:
                # The commit itself failed. The database may still find it in its log when it is
                # opened again: only the next start knows what is rubbish, so nothing is removed
                # until then, neither after this failure nor after later ones. "Full" too: the log
                # is written before the file that its processes share has to grow.
                self._is_doubtful = True
            raise


def _make(layout: Layout) -> None:
    """Make the folders of a store; its FORMAT comes last, so that a store with one is whole."""
    make_folders(layout)
    fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd)
    finally:
        os.close(fd)
    name = secrets.token_hex(16).encode()
    write_atomic(layout.format, FORMAT_LINE + name + b"\n", mode=0o444, replace=False)
    sync_directory(layout.root.parent)


def make_folders(layout: Layout) -> None:
    """Make the folders of a store, as far as they are not there."""
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout.tmp.mkdir(mode=0o700, exist_ok=True)
    layout.trust.mkdir(exist_ok=True)
    layout.trust.chmod(0o755)
    for kind in SHARDED:
        folder = str(layout.root / kind)
        # As text: a path for each of so many takes as long as they take themselves.
        for path in (folder, *(f"{folder}/{shard}" for shard in SHARDS)):
            try:
                os.mkdir(path)  # noqa: PTH102
            except FileExistsError:
                if not os.path.isdir(path):  # noqa: PTH112
                    raise
            os.chmod(path, 0o755)  # noqa: PTH101, S103 - as the store has them


def _share(layout: Layout, group: int | None) -> None:
    """Let the group in at the root; below it nobody else can pass."""
    mode = 0o700 if group is None else 0o750
    status = layout.root.stat()
    if group is not None and status.st_gid != group:
        os.chown(layout.root, -1, group)
    if stat.S_IMODE(status.st_mode) != mode:
        layout.root.chmod(mode)
