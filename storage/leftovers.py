"""Leftovers: files of a store that no row knows. They cost room, and nothing relies on them.

A crash or a power cut leaves them: a file that was placed and never made to count, or one whose row
is gone and whose removal did not reach the disk. Such are few. Many of them, or whole artifacts,
say that the records are not those of this store any more.
"""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH208

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage.counted import counted
from storage.envelope import subject_digest
from storage.errors import CollectionRefusedError, StorageError
from storage.files import Remover, is_draft, mapped_errors, remove_draft
from storage.gate import Gate
from storage.ids import artifact_id
from storage.layout import SHARDS, Layout
from storage.reader import StoreReader
from storage.records import artifacts, garbage, index
from storage.records import blobs as rows
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors

_BLOB = re.compile(r"([0-9a-f]{62})(\.x)?")
_TREE = re.compile(r"[0-9a-f]{62}")
_ENVELOPE = re.compile(r"([0-9a-f]{64})\.dsse\.json")

# More than half of all is no ordinary garbage: somebody should look first. Small stores change a
# lot without it.
FUSE_SHARE = 0.5
FUSE_COUNT_MIN = 1000

# Given the database, a shard and names in it, say which of them no row knows.
_Strangers = Callable[[sqlite3.Connection, str, list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Removed:
    files: int
    size_bytes: int


def remove_leftovers(
    layout: Layout,
    records: Records,
    gate: Gate,
    remover: Remover,
    *,
    is_stopped: Callable[[], bool],
) -> Removed:
    """Remove the leftovers of a store, folder by folder. Others may use it meanwhile.

    Files with names that no store gives are not touched.

    Raises:
        StorageError: The system or the database refused.
    """
    files = size_bytes = 0
    with mapped_errors("remove leftovers"), mapped_record_errors():
        for kind, strangers in _KINDS:
            for shard in SHARDS:
                if is_stopped():
                    break
                folder = f"{layout.root}/{kind}/{shard}"
                names = os.listdir(folder)
                for name in filter(is_draft, names):
                    size = _remove_draft(f"{folder}/{name}")
                    size_bytes += size or 0
                    files += size is not None
                found = strangers(records.reader(), shard, names)
                if not found:
                    continue
                # Someone who takes a tree in places files before their rows; nobody does while the
                # gate is ours, and whose commit failed before will not have rows after this one.
                with gate.collecting():
                    records.settle()
                    for name in strangers(records.reader(), shard, found):
                        size = _remove(f"{folder}/{name}", remover)
                        size_bytes += size or 0
                        files += size is not None
    return Removed(files, size_bytes)


def check_leftovers(layout: Layout, records: Records, gate: Gate, *, is_forced: bool) -> None:
    """See that what no row knows looks like what crashes leave. Changes nothing.

    `is_forced`: only what the records know themselves to have lost is looked for.

    Raises:
        CollectionRefusedError: It is more than half of all files, or there are artifacts in it that
            the records never knew, or statements of builds that they know.
        StorageError: The system or the database refused.
    """
    if doubt := doubt_of_leftovers(layout, records, gate, is_forced=is_forced):
        raise CollectionRefusedError(doubt)


def doubt_of_leftovers(
    layout: Layout, records: Records, gate: Gate, *, is_forced: bool
) -> str | None:
    """What `check_leftovers` would say; None when nothing speaks against it."""
    with mapped_errors("look for leftovers"), mapped_record_errors():
        proofs = list(_proofs(layout, records))
        doubt = _doubt(layout, records, proofs, is_forced=is_forced)
        if doubt is not None:
            # Placed by somebody who takes a tree in, and not known yet? Not while the gate is ours.
            # Others wait meanwhile: no statement is verified again.
            with gate.collecting():
                db = records.reader()
                proofs = [one for one in proofs if one.is_strange(db, layout)]
                doubt = _doubt(layout, records, proofs, is_forced=is_forced)
    return doubt


@dataclass(frozen=True, slots=True)
class _Proof:
    """A signed statement without a row: of an artifact that the records do not know, or of a build
    that they know.
    """

    envelope_sha256: str
    artifact_id: str
    build_id: str
    commit: str

    def is_strange(self, db: sqlite3.Connection, layout: Layout) -> bool:
        """Whether it lies there still, and no row knows it."""
        if rows.is_attested(db, self.envelope_sha256):
            return False
        return os.path.lexists(layout.envelope(self.envelope_sha256))

    def is_unknown(self, db: sqlite3.Connection) -> bool:
        """Whether the records never knew its artifact, or lost the row."""
        return artifacts.get(db, self.artifact_id) is None

    def is_lost(self, db: sqlite3.Connection) -> bool:
        """Whether it is of a build that the records know, and should be known itself."""
        site_id = index.site_of_lost(
            db, self.build_id, artifact_id=self.artifact_id, commit=self.commit
        )
        return site_id is not None


def _proofs(layout: Layout, records: Records) -> Iterator[_Proof]:
    """Verify the statements that no row knows. Each has a manifest, which may be large."""
    db = records.reader()
    reader = StoreReader(layout.root)
    for shard in SHARDS:
        for name in _envelopes(db, shard, os.listdir(f"{layout.root}/attest/{shard}")):
            proof = _proof(reader, name[:64])
            if proof is not None and (proof.is_unknown(db) or proof.is_lost(db)):
                yield proof


def _proof(reader: StoreReader, envelope_sha256: str) -> _Proof | None:
    """What an envelope vouches for, if that lies there."""
    try:
        digest = subject_digest(reader.envelope(envelope_sha256))
        said = reader.verify(digest, envelope_sha256).provenance
    except StorageError:  # no statement, or of nothing that is there
        return None
    return _Proof(envelope_sha256, artifact_id(digest), said.build_id, said.commit)


def _doubt(
    layout: Layout, records: Records, proofs: Sequence[_Proof], *, is_forced: bool
) -> str | None:
    """Say what speaks against it that the leftovers are such."""
    db = records.reader()
    if lost := sum(one.is_lost(db) for one in proofs):
        return (
            f"the records have lost {counted(lost, 'statement')} in the store, of builds that they "
            "know. No file without a row was removed. Run gitd check --rebuild-index."
        )
    if is_forced:
        return None
    strangers_count, count = _count_strangers(layout, db)
    if strangers_count > FUSE_COUNT_MIN and strangers_count > FUSE_SHARE * count:
        found_wrong = f"no row knows {strangers_count} of {count} files in the store"
    elif unknown := sum(one.is_unknown(db) for one in proofs):
        found_wrong = (
            f"the store has {counted(unknown, 'signed artifact')} that the records never knew"
        )
    else:
        return None
    return (
        f"{found_wrong}: were the records lost, or replaced by older ones? No file without a row "
        "was removed. Put the newest records back, or run gitd check --rebuild-index; gitd gc "
        "--force removes the files."
    )


def _count_strangers(layout: Layout, db: sqlite3.Connection) -> tuple[int, int]:
    """How many files no row knows, and how many there are."""
    strangers_count = count = 0
    for kind, strangers in _KINDS:
        for shard in SHARDS:
            names = os.listdir(f"{layout.root}/{kind}/{shard}")
            strangers_count += len(strangers(db, shard, names))
            count += len(names)
    return strangers_count, count


def _blobs(db: sqlite3.Connection, shard: str, names: list[str]) -> list[str]:
    known = garbage.blob_keys_of_shard(db, bytes.fromhex(shard))
    found = []
    for name in names:
        match = _BLOB.fullmatch(name)
        if match and bytes.fromhex(shard + match[1]) + (b"x" if match[2] else b"f") not in known:
            found.append(name)
    return found


def _trees(db: sqlite3.Connection, shard: str, names: list[str]) -> list[str]:
    known = garbage.trees_of_shard(db, bytes.fromhex(shard))
    return [n for n in names if _TREE.fullmatch(n) and bytes.fromhex(shard + n) not in known]


def _envelopes(db: sqlite3.Connection, _: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if (match := _ENVELOPE.fullmatch(name)) and not rows.is_attested(db, match[1])
    ]


_KINDS: tuple[tuple[str, _Strangers], ...] = (
    ("blobs", _blobs),
    ("trees", _trees),
    ("attest", _envelopes),
)


def _remove_draft(path: str) -> int | None:
    """Remove what a broken-off writer left; return its size, None when the writer lives."""
    try:
        size = os.lstat(path).st_size
    except FileNotFoundError:
        return None
    return size if remove_draft(path) else None


def _remove(path: str, remover: Remover) -> int | None:
    """Remove a leftover; return its size, None when it is there still."""
    try:
        size = os.lstat(path).st_size
    except OSError:
        size = 0
    return size if remover.remove(path) else None
