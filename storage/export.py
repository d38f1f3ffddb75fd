"""Exporting: an artifact with its proof, read from the store as one archive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.artifacts import ArtifactStore
from storage.digest import Digest
from storage.proof_archive import proof_bytes, write_proof
from storage.reader import StoreReader
from storage.records.release_statements import IssuedStatement


@dataclass(frozen=True, slots=True)
class Export:
    """An archive to be read once. `pieces` are its bytes; getting one may block.

    While iterating it raises ArtifactCorruptError or OSError when a stored file is not what it must
    be: what was given until then is no archive.
    """

    size_bytes: int
    pieces: Iterator[bytes]


@contextlib.contextmanager
def exporting(
    store: ArtifactStore,
    reader: StoreReader,
    digest: Digest,
    *,
    provenance: Sequence[str],
    releases: Sequence[IssuedStatement],
) -> Iterator[Export]:
    """Hold an artifact while it is exported: nothing of it is collected meanwhile.

    `provenance`: names of envelopes. `releases`: those by keys that were revoked are left out.
    Blocking.

    Raises:
        ArtifactError: Something of it is not in the store, or not what it must be.
        StorageError: The system refused.
    """
    with store.reading(digest) as manifest:
        revoked = reader.keyring().revoked
        envelopes = [one.envelope.encode() for one in releases if one.key_id not in revoked]
        parts = reader.proof(manifest, provenance, envelopes)
        size_bytes = proof_bytes(parts, with_files=True)
        yield Export(size_bytes, write_proof(parts, files=reader.layout))
