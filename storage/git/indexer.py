"""Index a received pack: read it once, resolve its deltas, check every object on the way.

Each deflated byte is inflated once, what is inflated is hashed, checked and searched for links
while it is at hand, and deltas are applied by dulwich's native code. A pack is hostile until it is
indexed: nothing is allocated by a size that it declares, and every loop has a bound.
Source: gitformat-pack(5); git's builtin/index-pack.c.
"""

from __future__ import annotations

import hashlib
import mmap
import operator
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from storage.git.closure import Closure
from storage.git.errors import PackInvalidError, PackOutgrownError, PackTooLargeError
from storage.git.fsck import FsckRules, SpecialFile
from storage.git.object_checks import ObjectChecks
from storage.git.object_formats import OID_BYTES
from storage.git.objects import ObjectStore
from storage.git.pack import entry_head
from storage.git.pack_deltas import DeltaTrees
from storage.git.pack_doubles import DOUBLED, drop_doubles
from storage.git.pack_halves import scan_by_two
from storage.git.pack_index import (
    PACK_MODE,
    index_row,
    row_crc,
    row_offset,
    row_oid,
    row_oids,
    write_index,
    write_pack_file,
)
from storage.git.pack_scan import HEADER_BYTES, PackLimits, PackScan
from storage.git.pack_streams import PackStreams

ENTRY_BYTES_MIN = 9  # one byte of head and the shortest deflated stream


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A received pack that is in memory only, and where its index is to be written."""

    content: bytes
    index_path: Path


@dataclass(slots=True)
class IndexedPack:
    """A pack that is whole and has its index beside it.

    Attributes:
        name: hex digits behind `pack-`, or to be there.
        path, index_path: its two files.
        oids: its objects, sorted.
        closure: of all of them.
        commits, trees: (id, content) of each; empty if not `is_linked`.
        warnings: findings of fsck that do not refuse.
        special_files: whose content is still to be checked.
        completed: bases from the store, added to make a thin pack whole: no part of the closure,
            and outside of it if others link to them.
    """

    name: str
    path: Path
    index_path: Path
    oids: list[bytes]
    closure: Closure
    commits: list[tuple[bytes, bytes]]
    trees: list[tuple[bytes, bytes]]
    is_linked: bool
    warnings: list[str] = field(default_factory=list)
    special_files: set[SpecialFile] = field(default_factory=set)
    completed: frozenset[bytes] = frozenset()
    delta_count: int = 0

    def has(self, oid: bytes) -> bool:
        """Say whether an object came in it."""
        place = bisect_left(self.oids, oid)
        is_there = place < len(self.oids) and self.oids[place] == oid
        return is_there and oid not in self.completed


def index_pack(
    path: Path,
    *,
    bases: ObjectStore,
    limits: PackLimits,
    rules: FsckRules | None = None,
    may_fork: bool = False,
    unwritten: Unwritten | None = None,
) -> IndexedPack:
    """Check a pack, complete it if it is thin, and write its index beside it.

    One that has an object twice is written anew, with each of its objects once.
    The file becomes `pack-<checksum>.pack` in its own directory. Nothing is synced.

    Args:
        path: the received bytes, writable.
        bases: where a thin pack's bases are, and where objects of the same id may be already.
        limits: see `PackLimits`.
        rules: how strictly objects are checked; None checks only what links need.
        may_fork: use two cores for many objects. Only for a process without threads.
        unwritten: the received bytes, if they are no file yet: they are written to `path` as it is.

    Raises:
        PackInvalidError: it is no whole, well-formed pack, an object is refused by the rules, or
            differs from a stored one of the same id; or see `drop_doubles`.
        PackTooLargeError: it exceeds a bound.
        PackOutgrownError: it exceeds `memory_bytes_max`, or has an object twice where that is
            bounded; the file is as it was.
    """
    mapped = _mapped(path, limits) if unwritten is None else unwritten.content
    _require_header(mapped[:HEADER_BYTES], len(mapped), limits)
    checks = ObjectChecks(bases, rules)
    scan, trees = _read(mapped, limits, checks, may_fork=may_fork)
    rows = sorted(scan.all_rows)
    oids = row_oids(rows)
    if any(map(operator.eq, oids, oids[1:])):
        if limits.memory_bytes_max is not None or not isinstance(mapped, mmap.mmap):
            raise PackOutgrownError(DOUBLED)
        outside = {oid for oid, _, _ in trees.completed}
        drop_doubles(path, mapped, rows, bases=bases, outside=outside)
        return index_pack(path, bases=bases, limits=limits, rules=rules, may_fork=may_fork)
    completed = frozenset(oid for oid, _, _ in trees.completed)
    closure = scan.closure()  # before those are among its rows: who vouches for what they reach?
    end, trailer = scan.streams.end, mapped[scan.streams.end :]
    content = None
    if unwritten is not None:
        content = unwritten.content
        if trees.completed:
            content = _completed(content[:end], scan, trees.completed)
            trailer = content[-OID_BYTES:]
    elif trees.completed:
        trailer = _complete(path, end, scan, trees.completed)
    if completed:
        rows = sorted(scan.all_rows)
        oids = row_oids(rows)
    name = trailer.hex()
    if unwritten is not None and content is not None:
        index_path = unwritten.index_path
        write_pack_file(path, content)
    else:
        os.chmod(path, PACK_MODE)  # noqa: PTH101
        path = path.rename(path.with_name(f"pack-{name}.pack"))
        index_path = path.with_suffix(".idx")
    write_index(index_path, rows, trailer)
    return IndexedPack(
        name=name,
        path=path,
        index_path=index_path,
        oids=oids,
        closure=closure,
        commits=checks.commits,
        trees=checks.trees,
        is_linked=checks.is_linked,
        warnings=checks.warnings,
        special_files=checks.special_files,
        completed=completed,
        delta_count=scan.delta_count,
    )


def read_pack(
    mapped: mmap.mmap, *, limits: PackLimits, links: set[bytes], may_fork: bool = False
) -> Iterable[tuple[bytes, int, int]]:
    """Read all of a stored pack: the id, offset and CRC-32 of each entry, by offset.

    `links` is given what its objects link to; `may_fork` as for `index_pack`.

    Raises:
        PackInvalidError: it is not whole, or an object cannot be read.
    """
    _require_header(mapped[:HEADER_BYTES], len(mapped), limits)
    checks = ObjectChecks(ObjectStore.over([]), None)
    scan, _ = _read(mapped, limits, checks, may_fork=may_fork)
    links.update(*(noted.all() for noted in checks.links.values()))
    if scan.second is not None:  # what it links to within itself stands in the pack
        links.update(*scan.second.closure.outside.values())
    by_offset = sorted(scan.all_rows, key=row_offset)
    return ((row_oid(row), row_offset(row), row_crc(row)) for row in by_offset)


def _mapped(path: Path, limits: PackLimits) -> mmap.mmap:
    with path.open("rb") as file:
        _require_header(file.read(HEADER_BYTES), path.stat().st_size, limits)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _require_header(head: bytes, size: int, limits: PackLimits) -> None:
    if len(head) < 12:
        raise PackInvalidError(
            "pack is shorter than its header",
            unpack_status="eof before pack header was fully read",
        )
    magic, version, count = struct.unpack(">4sLL", head)
    if magic != b"PACK":
        raise PackInvalidError(
            "pack signature mismatch",
            unpack_status="protocol error (pack signature mismatch detected)",
        )
    if version not in (2, 3):
        raise PackInvalidError(
            f"pack version {version} unsupported",
            unpack_status="protocol error (pack version unsupported)",
        )
    if count > limits.objects_max:
        raise PackTooLargeError(
            f"pack has {count} objects; at most {limits.objects_max} are taken (git.objects_max): "
            "push older commits first"
        )
    if size < 12 + OID_BYTES or count > (size - 12 - OID_BYTES) // ENTRY_BYTES_MIN:
        raise PackInvalidError("early EOF")


def _read(
    mapped: mmap.mmap | bytes, limits: PackLimits, checks: ObjectChecks, *, may_fork: bool
) -> tuple[PackScan, DeltaTrees]:
    """Read all entries and resolve all deltas."""
    streams = PackStreams(mapped, len(mapped) - OID_BYTES)
    count: int = struct.unpack_from(">L", mapped, 8)[0]
    scan = PackScan(streams, limits, checks)
    if may_fork:
        scan_by_two(scan, count)
    else:
        streams.require_sum()
        scan.run(streams.end, count)
    if scan.entry_count < count:
        raise PackInvalidError("early EOF")
    if scan.at != streams.end:
        raise PackInvalidError("pack has junk at the end")
    trees = DeltaTrees(scan)
    trees.resolve()
    trees.resolve_from_outside(checks.bases)
    if trees.left():
        raise PackInvalidError("unresolved deltas left after unpacking")
    return scan, trees


# writing


def _complete(
    path: Path, end: int, scan: PackScan, completed: list[tuple[bytes, int, bytes]]
) -> bytes:
    """Append a thin pack's bases, so that it stands by itself; return its new checksum."""
    with path.open("r+b") as file:
        at = end
        file.seek(at)
        for entry in _entries(at, scan.rows, completed):
            file.write(entry)
            at += len(entry)
        file.truncate(at)
        file.seek(8)
        file.write(struct.pack(">L", scan.entry_count))
        file.flush()
        file.seek(0)
        digest = hashlib.sha1(usedforsecurity=False)
        while piece := file.read(1 << 20):
            digest.update(piece)
        file.seek(at)
        file.write(digest.digest())
    return digest.digest()


def _completed(head: bytes, scan: PackScan, completed: list[tuple[bytes, int, bytes]]) -> bytes:
    """Do so for a pack in memory, which is given without its checksum; return all of it."""
    entries = b"".join(_entries(len(head), scan.rows, completed))
    body = head[:8] + struct.pack(">L", scan.entry_count) + head[HEADER_BYTES:] + entries
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def _entries(
    at: int, rows: list[bytes], completed: list[tuple[bytes, int, bytes]]
) -> Iterable[bytes]:
    """Yield the entries of some objects, the first of them at `at`; each adds its row."""
    for oid, kind, data in completed:
        entry = entry_head(kind, len(data)) + zlib.compress(data)
        rows.append(index_row(oid, zlib.crc32(entry), at))
        at += len(entry)
        yield entry
