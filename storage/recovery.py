"""Recovery: what a crash left of an ingest or of a deletion, and its removal.

All of it goes by what the records do not know. An index of the database that is damaged does not
find what is there: so the tables are held against their indexes before the first file goes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from storage.blobs import ENVELOPE_NAME, MANIFEST_NAME, blob_path, entry_key, remove_staged
from storage.envelope import ENVELOPE_BYTES_MAX
from storage.errors import ManifestInvalidError, RecordsError, StorageFullError
from storage.files import Lease, Remover, mapped_errors, read_bounded
from storage.gate import Gate
from storage.layout import Layout
from storage.manifest import MANIFEST_BYTES_MAX, FileEntry, Manifest
from storage.records import blobs as rows
from storage.records import integrity
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors

# What says whether a file is known, and whether a blob is referred to.
_KNOWN = ("blob", "tree", "attestation", "release_statement")
_REFERRED = ("blob", "ref")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found to clean up: dead leases, files that no row knows, begun deletions.

    `stuck`: what could not be removed, and why; the next start or collection tries again.
    """

    leases: int
    files: int
    deletions: int
    stuck: tuple[str, ...] = ()


class Recovery:
    """The recovery of one store. Any thread may use it."""

    def __init__(self, layout: Layout, records: Records, gate: Gate) -> None:
        self._layout = layout
        self._records = records
        self._gate = gate

    def recover(self) -> Recovered:
        """Remove what crashes left: staged files, placed files that no row knows, begun deletions.

        Safe while others use the store, since a living ingest's lease is locked. An envelope counts
        as known when there is an `attestation` of it.
        """
        with mapped_errors("recover the store"), mapped_record_errors():
            leases = 0
            remover = Remover()
            for name in os.listdir(self._layout.tmp):  # noqa: PTH208 - plain names are wanted
                lease = Lease.seize(self._layout.tmp / name)
                if lease is None:
                    continue
                self.remove_unknown(lease, remover, doubt=self._doubt)
                lease.release()
                leases += 1
            files = remover.count
            deletions = self._finish_deletions(remover)
            return Recovered(leases, files, deletions, remover.stuck())

    def remove_unknown(
        self, lease: Lease, remover: Remover, *, doubt: Callable[[], str | None]
    ) -> None:
        """Remove what this lease's ingest placed and no row knows.

        The lease is left for the next start when something is there still. `doubt`: asked while the
        gate is this one's alone, when no commit is under way; says why rows may come back that are
        not there, if they may.
        """
        remove_staged(lease)  # also where the lease is left: a commit needs room, which it may have
        try:
            manifest, envelope_sha256 = _statements(lease)
        except OSError as error:
            remover.refused[lease.path] = error.strerror or str(error)
            lease.is_abandoned = True
            return
        if manifest is None:
            return
        if fault := self._fault(_KNOWN):
            remover.refused[lease.path] = fault
            lease.is_abandoned = True
            return
        with self._gate.collecting():
            if why := doubt():
                remover.refused[lease.path] = why
                lease.is_abandoned = True
                return
            removed = [remover.remove(path) for path in self._unknown(manifest, envelope_sha256)]
            lease.is_abandoned = not all(removed)

    def _unknown(self, manifest: Manifest, envelope_sha256: str | None) -> list[str]:
        """What an ingest may have placed that no row knows."""
        db = self._records.reader()
        keys = {entry_key(e) for e in manifest.entries if isinstance(e, FileEntry)}
        paths = [blob_path(self._layout, key) for key in keys - rows.known(db, keys)]
        if not rows.has_tree(db, manifest.digest):
            paths.append(self._layout.tree(manifest.digest))
        if envelope_sha256 is not None and not rows.is_attested(db, envelope_sha256):
            paths.append(self._layout.envelope(envelope_sha256))
        return paths

    def _doubt(self) -> str | None:
        """Let no earlier commit be in doubt; say why one still is. While the gate is ours."""
        try:
            self._records.settle()
        except (RecordsError, StorageFullError) as error:
            return f"what the records know is in doubt: {error}"
        return None

    def _finish_deletions(self, remover: Remover) -> int:
        if not rows.deleting(self._records.reader()):
            return 0
        place = f"{self._layout.root}/blobs"
        if fault := self._fault(_REFERRED):
            remover.refused[place] = fault
            return 0
        with self._gate.collecting():
            if why := self._doubt():  # one that takes such a blob in again
                remover.refused[place] = why
                return 0
            keys = rows.deleting(self._records.reader())
            gone = [key for key in keys if remover.remove(blob_path(self._layout, key))]
            self._records.write(lambda db: rows.forget(db, gone))
        return len(gone)

    def _fault(self, tables: tuple[str, ...]) -> str | None:
        """Say why nothing is removed; before anybody has to wait at the gate."""
        for table in tables:
            if fault := integrity.torn(self._records.reader(), table):
                return f"the database is damaged ({table}: {fault}): run gitd check --rebuild-index"
        return None


def _statements(lease: Lease) -> tuple[Manifest | None, str | None]:
    """Return what a lease was about to publish, as far as it came. A kept tree has no envelope."""
    try:
        manifest = Manifest.parse(
            read_bounded(f"{lease.path}/{MANIFEST_NAME}", size_bytes_max=MANIFEST_BYTES_MAX)
        )
    except (FileNotFoundError, ManifestInvalidError):
        return None, None  # nothing had been placed yet
    try:
        envelope = read_bounded(f"{lease.path}/{ENVELOPE_NAME}", size_bytes_max=ENVELOPE_BYTES_MAX)
    except FileNotFoundError:
        return manifest, None
    return manifest, hashlib.sha256(envelope).hexdigest()
