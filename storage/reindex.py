"""The index anew: what the records say of blobs, trees and statements, made again from the files.

Manifests say which blobs a tree has, and the files whether they are what their names say; what is
not becomes damage. Statements of successful builds that the records lost are known again. What no
file says (sites, environments, keys, the history) is not made here: a backup has it.
"""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from storage.artifacts import ArtifactStore
from storage.blobs import BlobKey, blob_sizes
from storage.digest import Digest
from storage.envelope import signature_by, subject_digest
from storage.errors import ArtifactError
from storage.files import mapped_errors, sync_filesystem
from storage.gate import Gate
from storage.ids import artifact_id
from storage.inspector import Inspector, from_medium
from storage.layout import SHARDS
from storage.manifest import Manifest
from storage.model import Artifact, Attestation
from storage.parts import Part
from storage.reader import StoreReader
from storage.records import blobs as rows
from storage.records import index
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.repair import Repairer
from storage.timestamps import now_ms

_ENVELOPE = re.compile(r"([0-9a-f]{64})\.dsse\.json")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did.

    Attributes:
        trees: How many trees were gone through; `changed` are those of which the records said
            otherwise.
        damaged: How many parts are damaged or missing, that the records had for whole.
        statements: How many statements of builds are known again.
    """

    trees: int = 0
    changed: int = 0
    damaged: int = 0
    statements: int = 0


def rebuild_index(store: ArtifactStore, records: Records) -> Rebuilt:
    """Make the index again. Reads everything; safe while the store is in use.

    What nobody keeps any more is left to the collector.

    Raises:
        StorageError: The system or the database refused.
    """
    with mapped_errors("rebuild the index"), mapped_record_errors():
        return _Rebuild(store, records).run()


class _Rebuild:
    def __init__(self, store: ArtifactStore, records: Records) -> None:
        self._layout = store.layout
        self._records = records
        self._reader = StoreReader(store.layout.root)
        self._inspector = Inspector(store.layout)
        self._gate = Gate(store.layout)
        self._repairer = Repairer(store, records)
        self._looked: dict[BlobKey, bool] = {}
        self._suspects: list[Part] = []

    def run(self) -> Rebuilt:
        self._sync()
        self._records.write(index.reindex)
        statements = self._add_statements()
        wanted = index.wanted_trees(self._records.reader())
        changed = sum(self._index_tree(digest) for digest in wanted)
        damaged = self._repairer.condemn(self._suspects)
        return Rebuilt(len(wanted), changed, len(damaged), statements)

    def _sync(self) -> None:
        """Let nothing wait in memory any more: what is read here counts from then on, and whoever
        wrote it may have ended before the disk had it.
        """
        fd = os.open(self._layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)

    # -- trees ----------------------------------------------------------------------------------

    def _index_tree(self, digest: Digest) -> bool:
        """Make the rows of one tree again; say if any changed."""
        try:
            manifest = self._manifest(digest)
        except ArtifactError:
            self._records.write(lambda db: index.miss_tree(db, digest))
            self._suspects.append(Part.of_tree(digest))
            return False
        sizes = blob_sizes(manifest)
        for key, size_bytes in sizes.items():
            if key not in self._looked:
                self._looked[key] = self._is_whole(key, size_bytes, reads=True)
        with self._gate.collecting():
            db = self._records.reader()
            if not index.is_wanted(db, digest):
                return False  # collected meanwhile
            whole = {bytes(key) for key, size in sizes.items() if self._is_there(db, key, size)}
            self._suspects += [Part.of_blob(key) for key in sizes if key not in whole]
            row = index.row_of(manifest)
            at = now_ms()
            return self._records.write(lambda db: index.put_tree(db, row, sizes, whole, at))

    def _manifest(self, digest: Digest) -> Manifest:
        self._inspector.fault(Part.of_tree(digest), None, pace=from_medium)
        return self._reader.manifest(digest)  # as it was just read

    def _is_whole(self, key: BlobKey, size_bytes: int, *, reads: bool) -> bool:
        fault = self._inspector.blob_fault(key, size_bytes, reads=reads, pace=from_medium)
        return fault is None or not fault.is_of_bytes

    def _is_there(self, db: sqlite3.Connection, key: BlobKey, size_bytes: int) -> bool:
        """Whether a blob is whole, alone behind the gate: it was read before that."""
        if not self._looked[key]:
            return self._is_whole(key, size_bytes, reads=True)  # somebody may have brought it
        # With a live row nobody took it away; without one, somebody may have.
        is_live = rows.size_of_live(db, key) is not None
        return is_live or self._is_whole(key, size_bytes, reads=False)

    # -- statements -----------------------------------------------------------------------------

    def _add_statements(self) -> int:
        """Let the records know of envelopes again that prove builds which they know."""
        found = []
        for sha256 in self._each_envelope():
            if not rows.is_attested(self._records.reader(), sha256):
                with contextlib.suppress(ArtifactError):
                    found.append(self._statement(sha256))
        return self._records.write(lambda db: index.add_statements(db, found)) if found else 0

    def _statement(self, sha256: str) -> tuple[Artifact, Attestation]:
        """Read an envelope of provenance, and what it is about.

        Raises:
            ArtifactError: It is none, does not hold, or its manifest does not.
        """
        self._inspector.fault(Part.of_envelope(sha256), None, pace=from_medium)
        data = self._reader.envelope(sha256)  # as it was just read
        manifest = self._manifest(subject_digest(data))
        verified = self._reader.vouched(manifest, sha256)
        provenance = verified.provenance
        at = _milliseconds(provenance.finished_at)
        artifact = Artifact(
            artifact_id(manifest.digest),
            str(manifest.digest),
            manifest.sha256,
            manifest.files,
            manifest.size_bytes,
            at,
        )
        attestation = Attestation(
            envelope_sha256=sha256,
            artifact_id=artifact.id,
            site_id="",
            build_id=provenance.build_id,
            key_id=verified.key_id,
            signature=signature_by(data, verified.key_id),
            profile=provenance.profile,
            ref=provenance.ref,
            commit=provenance.commit,
            created_at=at,
        )
        return artifact, attestation

    def _each_envelope(self) -> Iterator[str]:
        for shard in SHARDS:
            for name in sorted(os.listdir(f"{self._layout.root}/attest/{shard}")):
                if match := _ENVELOPE.fullmatch(name):
                    yield match[1]


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
