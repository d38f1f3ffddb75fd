"""Leftovers: files of a store that no row knows. They cost room, and nothing relies on them.

A crash or a power cut leaves them: a file that was placed and never made to count, or one whose row
is gone and whose removal did not reach the disk.
"""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH108, PTH208

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from storage.files import is_draft, mapped_errors, remove_draft
from storage.gate import Gate
from storage.layout import SHARDS, Layout
from storage.records import blobs as rows
from storage.records import garbage
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors

_BLOB = re.compile(r"([0-9a-f]{62})(\.x)?")
_TREE = re.compile(r"[0-9a-f]{62}")
_ENVELOPE = re.compile(r"([0-9a-f]{64})\.dsse\.json")

# Given the database, a shard and names in it, say which of them no row knows.
_Strangers = Callable[[sqlite3.Connection, str, list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Removed:
    files: int
    size_bytes: int


def remove_leftovers(
    layout: Layout, records: Records, gate: Gate, *, is_stopped: Callable[[], bool]
) -> Removed:
    """Remove the leftovers of a store, folder by folder. Others may use it meanwhile.

    Files with names that no store gives are not touched.

    Raises:
        StorageError: The system or the database refused.
    """
    files = size_bytes = 0
    kinds = (("blobs", _blobs), ("trees", _trees), ("attest", _envelopes))
    with mapped_errors("remove leftovers"), mapped_record_errors():
        for kind, strangers in kinds:
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
                # gate is ours.
                with gate.collecting():
                    for name in strangers(records.reader(), shard, found):
                        size_bytes += _remove(f"{folder}/{name}")
                        files += 1
    return Removed(files, size_bytes)


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


def _remove_draft(path: str) -> int | None:
    """Remove what a broken-off writer left; return its size, None when the writer lives."""
    try:
        size = os.lstat(path).st_size
    except FileNotFoundError:
        return None
    return size if remove_draft(path) else None


def _remove(path: str) -> int:
    try:
        size = os.lstat(path).st_size
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return size
