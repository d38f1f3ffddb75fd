"""A check of the artifact store: what the records say against what lies on disk."""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH208

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from storage.blobs import blob_path, entry_key, is_executable
from storage.digest import DIGEST_BYTES, Digest
from storage.errors import ArtifactError, StorageError
from storage.files import mapped_errors, open_regular
from storage.gate import Gate
from storage.layout import SHARDED, SHARDS, Layout, blob_mode, blob_mtime
from storage.manifest import FileEntry
from storage.reader import StoreReader
from storage.records import blobs as rows
from storage.records import release_statements
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.records.release_statements import CurrentStatement

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        blobs: How many live blobs were read and hashed; so with `trees` and `envelopes`, which are
            those of provenance and of current releases.
        size_bytes: Of those blobs together.
        problems: A sentence for each thing that is not as it must be; sorted.
        leftovers: Files that nothing refers to: they cost room and nothing else; paths
            below the root, sorted.
    """

    blobs: int
    trees: int
    envelopes: int
    size_bytes: int
    problems: tuple[str, ...]
    leftovers: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.problems


def check_store(root: Path, records: Records) -> Report:
    """Read every blob, manifest and envelope, and hold them against the records.

    Safe while the store is in use; changes nothing. Takes as long as reading it all.

    Raises:
        StorageIoError: The system refused to list a folder.
        RecordsError: The database refused.
    """
    with mapped_errors(f"check the store {root}"), mapped_record_errors():
        return _check(root, records)


def _check(root: Path, records: Records) -> Report:
    layout = Layout(root)
    reader = StoreReader(root)
    db = records.reader()
    # Rows first, then files: a row is written after its file.
    live = rows.each_live(db)
    trees = [Digest(digest) for digest in rows.each_tree(db)]
    attestations = rows.each_attestation(db)
    current = release_statements.each_current(db)
    problems = [p for key, size in live if (p := _blob_problem(layout, key, size))]
    problems += [p for digest in trees if (p := _tree_problem(reader, records, digest))]
    problems += [p for item in attestations if (p := _envelope_problem(reader, *item))]
    problems += [p for statement in current if (p := _release_problem(reader, statement))]
    leftovers = _leftovers(layout, records)
    return Report(
        blobs=len(live),
        trees=len(trees),
        envelopes=len(attestations) + len(current),
        size_bytes=sum(size for _, size in live),
        problems=tuple(sorted(problems)),
        leftovers=tuple(sorted(os.path.relpath(path, root) for path in leftovers)),
    )


def _blob_problem(layout: Layout, key: bytes, size_bytes: int) -> str | None:
    digest = Digest(key[:DIGEST_BYTES])
    try:
        fd = open_regular(blob_path(layout, key))
    except OSError as error:
        return f"blob {digest}: {error.strerror}"
    try:
        status = os.fstat(fd)
        if status.st_size != size_bytes:
            return f"blob {digest}: has {status.st_size} bytes instead of {size_bytes}"
        if stat.S_IMODE(status.st_mode) != blob_mode(executable=is_executable(key)):
            return f"blob {digest}: has the mode {stat.S_IMODE(status.st_mode):04o}"
        if int(status.st_mtime) != blob_mtime(digest):
            return f"blob {digest}: was written to"
        hasher = blake3()
        while data := os.read(fd, _PIECE_BYTES):
            hasher.update(data)
    except OSError as error:
        return f"blob {digest}: {error.strerror}"
    finally:
        os.close(fd)
    return None if hasher.digest() == digest else f"blob {digest}: has other bytes"


def _tree_problem(reader: StoreReader, records: Records, digest: Digest) -> str | None:
    try:
        manifest = reader.manifest(digest)
    except StorageError as error:
        return f"tree {digest}: {error}"
    keys = {bytes(entry_key(e)) for e in manifest.entries if isinstance(e, FileEntry)}
    if keys != rows.referred(records.reader(), digest):
        return f"tree {digest}: the records refer to other blobs than the manifest"
    return None


def _envelope_problem(reader: StoreReader, sha256: str, digest: str | None) -> str | None:
    try:
        if digest is None:
            reader.envelope(sha256)
        else:
            reader.verify(Digest.parse(digest), sha256)
    except ArtifactError as error:
        return f"envelope {sha256}: {error}"
    return None


def _release_problem(reader: StoreReader, statement: CurrentStatement) -> str | None:
    try:
        data = reader.envelope(statement.envelope_sha256)
        verified = reader.verify(Digest.parse(statement.digest), statement.provenance_sha256)
        now_ms = time.time_ns() // 1_000_000
        reader.verify_release(data, verified, env_id=statement.env_id, above=None, now_ms=now_ms)
    except ArtifactError as error:
        return f"release of {statement.environment}: {error}"
    return None


def _leftovers(layout: Layout, records: Records) -> list[str]:
    known = _known_paths(layout, records)
    found = [path for path in _each_path(layout) if path not in known]
    if not found:
        return []
    # An ingest in progress places files before their rows; none is while the gate is ours.
    with Gate(layout).collecting():
        known = _known_paths(layout, records)
        return [path for path in found if path not in known and os.path.lexists(path)]


def _known_paths(layout: Layout, records: Records) -> set[str]:
    db = records.reader()
    paths = {blob_path(layout, key) for key in rows.each_key(db)}
    paths.update(layout.tree(Digest(digest)) for digest in rows.each_known_tree(db))
    paths.update(layout.envelope(sha256) for sha256, _ in rows.each_attestation(db))
    paths.update(layout.envelope(sha256) for sha256 in release_statements.each_name(db))
    return paths


def _each_path(layout: Layout) -> Iterator[str]:
    for kind in SHARDED:
        for shard in SHARDS:
            folder = f"{layout.root}/{kind}/{shard}"
            yield from (f"{folder}/{name}" for name in os.listdir(folder))
