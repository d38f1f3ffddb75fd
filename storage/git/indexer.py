"""Index a received pack: read it once, resolve its deltas, check every object on the way.

Each deflated byte is inflated once, what is inflated is hashed, checked and searched for links
while it is at hand, and deltas are applied by dulwich's native code. A pack is hostile until it is
indexed: nothing is allocated by a size that it declares, and every loop has a bound.
Source: gitformat-pack(5); git's builtin/index-pack.c.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import re
import signal
import struct
import sys
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec

from storage.git.errors import (
    ObjectMissingError,
    PackInvalidError,
    PackOutgrownError,
    PackTooLargeError,
    RepositoryCorruptError,
)
from storage.git.fsck import FsckRules, Severity, findings, is_clean
from storage.git.object_formats import (
    BLOB,
    COMMIT,
    MODE_SUBMODULE,
    OFS_DELTA,
    OID_BYTES,
    REF_DELTA,
    TREE,
    TYPE_NAMES,
    Commit,
    parse_commit,
    parse_tag,
    tree_entries,
)
from storage.git.objects import DELTA_DEPTH_MAX, ObjectStore, delta_sizes, patched

ENTRY_BYTES_MIN = 9  # one byte of head and the shortest deflated stream
STREAMED_BYTES_MIN = 8 << 20  # blobs above are hashed in pieces
KEPT_OBJECT_BYTES_MAX = 64 << 10
KEPT_BYTES_MAX = 96 << 20  # inflated bases and deltas that wait for their turn
PENDING_BYTES_MAX = 768 << 20  # results on the way down a tree of deltas
LINKED_BYTES_MAX = 8 << 20  # trees and commits remembered for the connectivity check
STRUCTURED_BYTES_MAX = 128 << 20  # one commit, tree or tag
WARNINGS_MAX = 100
FORKED_DELTAS_MIN = 5_000  # fewer are resolved before another process would have begun
FORKED_PENDING_BYTES_MAX = 64 << 20
_PIECE_BYTES = 256 << 10
_HEADS = {kind: name + b" %d\0" for kind, name in TYPE_NAMES.items()}
_ENTRY = re.compile(rb"[0-7]+ [^\0]+\0(.{20})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PackLimits:
    """Bounds on a received pack.

    Attributes:
        objects_max: entries in it.
        object_bytes_max: one object, inflated.
        inflated_bytes_floor, inflated_ratio_max: all objects together may have the floor plus the
            pack's size times the ratio; a bomb reaches it soon, a real history does not.
        memory_bytes_max: objects and the bases that they need, all together, where memory is
            scarce; None for no such bound.
    """

    objects_max: int = 5_000_000
    object_bytes_max: int = 2 << 30
    inflated_bytes_floor: int = 4 << 30
    inflated_ratio_max: int = 500
    memory_bytes_max: int | None = None


@dataclass(slots=True)
class IndexedPack:
    """A pack that is whole and has its index beside it.

    Attributes:
        name: hex digits behind `pack-`; `path` is the pack's file.
        oids: its objects, unordered; `outside_*` are links that leave it.
        roots: its objects that none of its others links to.
        commits: links of its commits; complete, and `trees` too, only if `is_linked`.
        warnings: findings of fsck that do not refuse.
        completed_count: bases added to make a thin pack whole.
    """

    name: str
    path: Path
    oids: set[bytes]
    outside_commits: set[bytes]
    outside_objects: set[bytes]
    roots: set[bytes]
    commits: dict[bytes, Commit]
    trees: dict[bytes, bytes]
    is_linked: bool
    warnings: list[str] = field(default_factory=list)
    completed_count: int = 0
    delta_count: int = 0


def index_pack(
    path: Path,
    *,
    bases: ObjectStore,
    limits: PackLimits,
    rules: FsckRules | None = None,
    may_fork: bool = False,
) -> IndexedPack:
    """Check a pack, complete it if it is thin, and write its index beside it.

    The file becomes `pack-<checksum>.pack` in its own directory. Nothing is synced.

    Args:
        path: the received bytes, writable.
        bases: where a thin pack's bases are, and where objects of the same id may be already.
        limits: see `PackLimits`.
        rules: how strictly objects are checked; None checks only what links need.
        may_fork: use two cores for many deltas. Only for a process without threads.

    Raises:
        PackInvalidError: it is no whole, well-formed pack, an object is refused by the rules, or
            differs from a stored one of the same id.
        PackTooLargeError: it exceeds a bound.
        PackOutgrownError: it exceeds `memory_bytes_max`; the file is as it was.
    """
    with path.open("rb") as file:
        _require_header(file.read(12), path.stat().st_size, limits)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reading = _Reading(mapped, bases=bases, limits=limits, rules=rules)
    reading.scan()
    reading.resolve(may_fork=may_fork)
    if len(set(reading.oids)) != reading.count:
        raise PackInvalidError("the same object appears twice in the pack")
    trailer = reading.trailer
    if reading.completed:
        trailer = _complete(path, reading)
    _write_index(path.with_suffix(".idx"), reading, trailer)
    return _named(path, reading, trailer)


def read_pack(
    mapped: mmap.mmap, *, limits: PackLimits, links: set[bytes]
) -> Iterable[tuple[bytes, int, int]]:
    """Read all of a stored pack: the id, offset and CRC-32 of each entry, by offset.

    `links` is given what its objects link to.

    Raises:
        PackInvalidError: it is not whole, or an object cannot be read.
    """
    _require_header(mapped[:12], len(mapped), limits)
    reading = _Reading(mapped, bases=ObjectStore.over([]), limits=limits, rules=None)
    reading.object_links = reading.commit_links = links
    reading.scan()
    reading.resolve()
    return zip(reading.oids, reading.offsets, reading.crcs, strict=True)


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
        raise PackTooLargeError(f"pack has {count} objects; at most {limits.objects_max} are taken")
    if size < 12 + OID_BYTES or count > (size - 12 - OID_BYTES) // ENTRY_BYTES_MIN:
        raise PackInvalidError("early EOF")


class _Share(msgspec.Struct, frozen=True, array_like=True):
    """What one of two processes found; `entries` are native 32-bit numbers."""

    entries: bytes
    oids: bytes
    kinds: bytes
    object_links: list[bytes]
    commit_links: list[bytes]
    commits: dict[bytes, Commit]
    trees: dict[bytes, bytes]
    warnings: list[str]
    inflated_bytes: int
    linked_bytes: int


class _Reading:
    """The state of one pass over a pack. Lists are indexed by the order of the entries."""

    def __init__(
        self,
        mapped: mmap.mmap,
        *,
        bases: ObjectStore,
        limits: PackLimits,
        rules: FsckRules | None,
    ) -> None:
        self.mapped, self.view = mapped, memoryview(mapped)
        self.bases, self.limits, self.rules = bases, limits, rules
        self.count: int = struct.unpack_from(">L", mapped, 8)[0]
        self.end = len(mapped) - OID_BYTES
        self.trailer = mapped[self.end :]
        self.offsets = array("Q", bytes(8 * self.count))
        self.data_at = array("Q", bytes(8 * self.count))
        self.sizes = array("Q", bytes(8 * self.count))
        self.crcs = array("I", bytes(4 * self.count))
        self.kinds = bytearray(self.count)
        self.oids: list[bytes] = [b""] * self.count
        self.children: dict[int, list[int]] = defaultdict(list)  # offset of base -> entries
        self.children_by_oid: dict[bytes, list[int]] = defaultdict(list)
        self.delta_count = 0
        self.kept: dict[int, bytes] = {}
        self.kept_bytes = 0
        self.inflated_bytes = 0
        self.inflated_bytes_max = (
            limits.inflated_bytes_floor + limits.inflated_ratio_max * len(mapped)
            if limits.memory_bytes_max is None
            else limits.memory_bytes_max
        )
        self.completed: list[tuple[bytes, int, bytes]] = []
        self.commit_links: set[bytes] = set()
        self.object_links: set[bytes] = set()
        self.commits: dict[bytes, Commit] = {}
        self.trees: dict[bytes, bytes] = {}
        self.linked_bytes = 0
        self.pending_bytes_max = PENDING_BYTES_MAX
        self.warnings: list[str] = []
        self.may_exist = _existence(bases)

    # first pass: every entry once, in order

    def scan(self) -> None:
        """Read all entries; those that are no deltas get their ids."""
        mapped, view, end = self.mapped, self.view, self.end
        if hashlib.sha1(view[:end], usedforsecurity=False).digest() != self.trailer:
            raise PackInvalidError("final sha1 did not match")
        at = 12
        children, crc32 = self.children, zlib.crc32
        offsets, data_at, kinds, crcs = self.offsets, self.data_at, self.kinds, self.crcs
        try:
            for entry in range(self.count):
                offset = at
                byte = mapped[at]
                at += 1
                kind, size, shift = (byte >> 4) & 7, byte & 15, 4
                while byte & 128:
                    byte = mapped[at]
                    at += 1
                    size |= (byte & 127) << shift
                    shift += 7
                if kind == OFS_DELTA:
                    byte = mapped[at]
                    at += 1
                    distance = byte & 127
                    while byte & 128:
                        byte = mapped[at]
                        at += 1
                        distance = ((distance + 1) << 7) | (byte & 127)
                    if not 0 < distance <= offset - 12:
                        raise PackInvalidError("delta base offset is out of bound")
                    children[offset - distance].append(entry)
                    self.delta_count += 1
                elif kind == REF_DELTA:
                    self.children_by_oid[mapped[at : at + OID_BYTES]].append(entry)
                    self.delta_count += 1
                    at += OID_BYTES
                elif kind not in TYPE_NAMES:
                    raise PackInvalidError(f"bad object type {kind} at offset {offset}")
                offsets[entry], kinds[entry] = offset, kind
                data_at[entry] = at
                at = self._read_entry(entry, kind, size, at)
                crcs[entry] = crc32(view[offset:at])
        except IndexError as error:
            raise PackInvalidError("early EOF") from error
        if at != end:
            raise PackInvalidError("pack has junk at the end")

    def _read_entry(self, entry: int, kind: int, size: int, at: int) -> int:
        if size > self.limits.object_bytes_max:
            raise PackTooLargeError(
                f"an object has {size} bytes; at most {self.limits.object_bytes_max} are taken"
            )
        self.sizes[entry] = size
        self.inflated_bytes += size
        if self.inflated_bytes > self.inflated_bytes_max:
            self._count_inflated(0)
        if size < KEPT_OBJECT_BYTES_MAX:
            # What nearly all objects are: one call inflates all of it.
            inflater = zlib.decompressobj()
            stop = min(at + size + 64, self.end)
            try:
                data = inflater.decompress(self.view[at:stop], size + 1)
            except zlib.error as error:
                raise PackInvalidError(f"inflate: data stream error ({error})") from error
            if inflater.eof and len(data) == size:
                at = stop - len(inflater.unused_data)
            else:
                data, at = self._inflate(size, at)
        elif kind == BLOB and size > STREAMED_BYTES_MIN:
            return self._hash_streamed(entry, size, at)
        elif size > STRUCTURED_BYTES_MAX:
            raise PackTooLargeError(f"an object of {size} bytes is neither blob nor readable")
        else:
            data, at = self._inflate(size, at)
        if kind < OFS_DELTA:
            self.oids[entry] = self._named(kind, data)
        if size < KEPT_OBJECT_BYTES_MAX and self.kept_bytes < KEPT_BYTES_MAX:
            self.kept[entry] = data
            self.kept_bytes += size
        return at

    def _count_inflated(self, size: int) -> None:
        self.inflated_bytes += size
        if self.inflated_bytes <= self.inflated_bytes_max:
            return
        if self.limits.memory_bytes_max is not None:
            raise PackOutgrownError("the pack's objects are too large for memory")
        raise PackTooLargeError("the pack's objects are too large in sum for its size")

    def _inflate(self, size: int, at: int) -> tuple[bytes, int]:
        view, end = self.view, self.end
        inflater = zlib.decompressobj()
        take = size + 64 if size < 65536 else 65536 + size // 4
        stop = min(at + take, end)
        try:
            data = inflater.decompress(view[at:stop], size + 1)
            at = stop
            while not inflater.eof:
                if inflater.unconsumed_tail or len(data) > size:
                    raise PackInvalidError("inflate: object is larger than its head says")
                if at >= end:
                    raise PackInvalidError("early EOF")
                stop = min(at + 65536, end)
                data += inflater.decompress(view[at:stop], size + 1 - len(data))
                at = stop
        except zlib.error as error:
            raise PackInvalidError(f"inflate: data stream error ({error})") from error
        if len(data) != size:
            raise PackInvalidError(f"inflate: object has {len(data)} bytes, its head says {size}")
        return data, at - len(inflater.unused_data)

    def _hash_streamed(self, entry: int, size: int, at: int) -> int:
        digest = hashlib.sha1(_HEADS[BLOB] % size, usedforsecurity=False)
        got, at = self._pieces(at, size, digest.update)
        if got != size:
            raise PackInvalidError(f"inflate: object has {got} bytes, its head says {size}")
        oid = self.oids[entry] = digest.digest()
        if self.may_exist is not None and self.may_exist(oid):
            self._compare_streamed(oid, self.data_at[entry], size)
        return at

    def _pieces(self, at: int, size: int, take: Callable[[bytes], object]) -> tuple[int, int]:
        inflater = zlib.decompressobj()
        got = 0
        try:
            while not inflater.eof:
                if at >= self.end:
                    raise PackInvalidError("early EOF")
                rest: bytes | memoryview = self.view[at : min(at + _PIECE_BYTES, self.end)]
                at += len(rest)
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, 4 * _PIECE_BYTES)
                    rest = inflater.unconsumed_tail
                    got += len(piece)
                    if got > size:
                        raise PackInvalidError("inflate: object is larger than its head says")
                    take(piece)
        except zlib.error as error:
            raise PackInvalidError(f"inflate: data stream error ({error})") from error
        return got, at - len(inflater.unused_data)

    # second pass: deltas, from each base downwards

    def resolve(self, *, may_fork: bool = False) -> None:
        """Apply all deltas; every entry has its id afterwards."""
        families = []
        for entry in range(self.count):
            if self.kinds[entry] < OFS_DELTA:
                if self._has_children(self.offsets[entry], self.oids[entry]):
                    families.append(entry)
                else:
                    self._forget(entry)
        if may_fork and self.delta_count >= FORKED_DELTAS_MIN and not self.children_by_oid:
            self._resolve_by_two(families)
        else:
            self._resolve_families(families)
        for oid in list(self.children_by_oid):
            if oid in self.children_by_oid:
                self._resolve_from_outside(oid)
        if self.children or self.children_by_oid:
            raise PackInvalidError("unresolved deltas left after unpacking")

    def _resolve_families(self, families: Iterable[int]) -> None:
        for entry in families:
            offset, oid = self.offsets[entry], self.oids[entry]
            if self._has_children(offset, oid):
                self._descend(offset, oid, self.kinds[entry], entry)
            self._forget(entry)

    # the second pass on two cores

    def _resolve_by_two(self, families: list[int]) -> None:
        """Let a copy of this process take half of the families, which share nothing.

        Whatever goes wrong there is done again here, and so refused in the same words as ever.
        """
        ours, others = families[::2], families[1::2]
        gc.freeze()
        out, into = os.pipe()
        child = os.fork()
        if not child:
            self._be_the_other(others, into)
        os.close(into)
        try:
            with open(out, "rb") as pipe:  # noqa: PTH123 -- a descriptor
                self._resolve_families(ours)
                data = pipe.read()
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
            gc.unfreeze()
        if status == 0:
            self._take_over(others, msgspec.msgpack.decode(data, type=_Share))
        else:
            self._resolve_families(others)

    def _be_the_other(self, families: list[int], into: int) -> NoReturn:
        """Resolve families, write what was found, and end. Never returns, never raises."""
        try:
            os.closerange(0, into)
            os.closerange(into + 1, 256)
            self.object_links, self.commit_links = set(), set()
            self.commits, self.trees, self.warnings = {}, {}, []
            before_bytes, before_linked = self.inflated_bytes, self.linked_bytes
            self.pending_bytes_max = FORKED_PENDING_BYTES_MAX
            is_named = [bool(oid) for oid in self.oids]
            self._resolve_families(families)
            entries = [n for n, oid in enumerate(self.oids) if oid and not is_named[n]]
            share = _Share(
                entries=array("I", entries).tobytes(),
                oids=b"".join([self.oids[entry] for entry in entries]),
                kinds=bytes([self.kinds[entry] for entry in entries]),
                object_links=list(self.object_links),
                commit_links=list(self.commit_links),
                commits=self.commits,
                trees=self.trees,
                warnings=self.warnings,
                inflated_bytes=self.inflated_bytes - before_bytes,
                linked_bytes=self.linked_bytes - before_linked,
            )
            with open(into, "wb") as pipe:
                pipe.write(msgspec.msgpack.encode(share))
            os._exit(0)
        finally:
            os._exit(1)

    def _take_over(self, families: list[int], share: _Share) -> None:
        """Note what the other process found."""
        entries, oids = array("I", share.entries), share.oids
        for number, entry in enumerate(entries):
            at = number * OID_BYTES
            self.oids[entry] = oids[at : at + OID_BYTES]
            self.kinds[entry] = share.kinds[number]
            self.children.pop(self.offsets[entry], None)
            self._forget(entry)
        for entry in families:
            self.children.pop(self.offsets[entry], None)
            self._forget(entry)
        self._count_inflated(share.inflated_bytes)
        self.object_links.update(share.object_links)
        self.commit_links.update(share.commit_links)
        self.commits |= share.commits
        self.trees |= share.trees
        self.linked_bytes += share.linked_bytes
        self.warnings += share.warnings[: WARNINGS_MAX - len(self.warnings)]

    def _has_children(self, offset: int, oid: bytes) -> bool:
        return offset in self.children or oid in self.children_by_oid

    def _take_children(self, offset: int, oid: bytes) -> list[int]:
        found = self.children.pop(offset, [])
        if self.children_by_oid:
            found = found + self.children_by_oid.pop(oid, [])
        return found

    def _forget(self, entry: int) -> None:
        data = self.kept.pop(entry, None)
        if data is not None:
            self.kept_bytes -= len(data)

    def _content(self, entry: int) -> bytes:
        data = self.kept.pop(entry, None)
        if data is not None:
            self.kept_bytes -= len(data)
            return data
        return self._inflate(self.sizes[entry], self.data_at[entry])[0]

    def _descend(
        self, offset: int, oid: bytes, kind: int, entry: int | None, data: bytes = b""
    ) -> None:
        if entry is not None:
            data = self._content(entry)
        stack = [(data, self._take_children(offset, oid))]
        pending = len(data)
        while stack:
            base, children = stack[-1]
            child = children.pop()
            if not children:  # the last one: its base is not needed any longer
                stack.pop()
                pending -= len(base)
            result = self._patch(base, child)
            oid = self.oids[child] = self._named(kind, result)
            self.kinds[child] = kind
            if self._has_children(self.offsets[child], oid):
                stack.append((result, self._take_children(self.offsets[child], oid)))
                pending += len(result)
                if pending > self.pending_bytes_max or len(stack) > DELTA_DEPTH_MAX:
                    raise PackTooLargeError("the pack's deltas need too much memory")

    def _patch(self, base: bytes, child: int) -> bytes:
        delta = self._content(child)
        try:
            base_size, result_size = delta_sizes(delta)
            if result_size > min(self.limits.object_bytes_max, self.pending_bytes_max):
                raise PackTooLargeError(f"a delta makes an object of {result_size} bytes")
            self._count_inflated(result_size)
            if base_size != len(base):
                raise PackInvalidError("delta does not fit its base")
            return patched(base, delta)
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"failed to apply delta: {error}") from error

    def _resolve_from_outside(self, oid: bytes) -> None:
        try:
            self._count_inflated(self.bases.kind_and_size(oid)[1])
            kind, data = self.bases.get(oid)
        except ObjectMissingError:
            return
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"the base {oid.hex()} cannot be read: {error}") from error
        self.completed.append((oid, kind, data))
        self._descend(-1, oid, kind, None, data)

    # every object

    def _named(self, kind: int, data: bytes) -> bytes:
        """Hash, check and search one object; return its id."""
        digest = hashlib.sha1(_HEADS[kind] % len(data), usedforsecurity=False)
        digest.update(data)
        oid = digest.digest()
        if self.may_exist is not None and self.may_exist(oid):
            self._compare(oid, kind, data)
        if kind != BLOB:
            self._link(oid, kind, data)
            if self.rules is not None and not is_clean(kind, data):
                self._check(oid, kind, data)
        return oid

    def _link(self, oid: bytes, kind: int, data: bytes) -> None:
        try:
            if kind == TREE:
                # Split by its entries, a tree leaves its links and nothing between them.
                pieces = _ENTRY.split(data)
                if any(pieces[::2]):
                    raise PackInvalidError(
                        f"object {oid.hex()}: badTree: cannot be parsed as a tree"
                    )
                links = pieces[1::2]
                if b"160000 " in data:
                    entries = tree_entries(data)
                    links = [link for mode, _, link in entries if mode != MODE_SUBMODULE]
                self.object_links.update(links)
                if self.linked_bytes <= LINKED_BYTES_MAX:
                    self.trees[oid] = data
                    self.linked_bytes += len(data)
            elif kind == COMMIT:
                commit = parse_commit(data)
                self.object_links.add(commit.tree)
                self.commit_links.update(commit.parents)
                if self.linked_bytes <= LINKED_BYTES_MAX:
                    self.commits[oid] = commit
                    self.linked_bytes += 300
            else:
                target, target_kind = parse_tag(data)
                (self.commit_links if target_kind == COMMIT else self.object_links).add(target)
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"object {oid.hex()}: {error}") from error

    def _check(self, oid: bytes, kind: int, data: bytes) -> None:
        assert self.rules is not None
        for finding in findings(kind, data):
            severity = self.rules.severity(finding)
            if oid in self.rules.skip or severity is Severity.IGNORE:
                continue
            text = f"object {oid.hex()}: {finding.id}: {finding.message}"
            if severity is Severity.ERROR:
                raise PackInvalidError(text)
            if len(self.warnings) < WARNINGS_MAX:
                self.warnings.append(text)

    def _compare(self, oid: bytes, kind: int, data: bytes) -> None:
        """Refuse an object that has a stored one's id and another content."""
        try:
            is_equal = (
                self.bases.kind_and_size(oid) == (kind, len(data))
                and self.bases.get(oid)[1] == data
            )
        except RepositoryCorruptError:  # a damaged object is better replaced
            return
        if not is_equal:
            raise PackInvalidError(f"SHA1 COLLISION FOUND WITH {oid.hex()} !")

    def _compare_streamed(self, oid: bytes, at: int, size: int) -> None:
        def digest() -> hashlib._Hash:
            return hashlib.sha256()

        received, stored = digest(), digest()
        self._pieces(at, size, received.update)
        try:
            for piece in self.bases.stream(oid):
                stored.update(piece)
        except RepositoryCorruptError:
            return
        if received.digest() != stored.digest():
            raise PackInvalidError(f"SHA1 COLLISION FOUND WITH {oid.hex()} !")


def _existence(bases: ObjectStore) -> Callable[[bytes], bool] | None:
    """Return a quick test for objects that are stored already; None when none are."""
    locate = bases.locate
    loose = bases.loose_directories()
    if not bases.packs() and not loose:
        return None
    if not loose:
        return lambda oid: locate(oid) is not None
    return lambda oid: locate(oid) is not None or (oid[0] in loose and bases.contains(oid))


# writing


def _complete(path: Path, reading: _Reading) -> bytes:
    """Append a thin pack's bases, so that it stands by itself; return its new checksum."""
    with path.open("r+b") as file:
        at = reading.end
        file.seek(at)
        for oid, kind, data in reading.completed:
            entry = entry_head(kind, len(data)) + zlib.compress(data)
            reading.offsets.append(at)
            reading.crcs.append(zlib.crc32(entry))
            reading.oids.append(oid)
            file.write(entry)
            at += len(entry)
        file.truncate(at)
        file.seek(8)
        file.write(struct.pack(">L", len(reading.oids)))
        file.flush()
        file.seek(0)
        digest = hashlib.sha1(usedforsecurity=False)
        while piece := file.read(1 << 20):
            digest.update(piece)
        file.seek(at)
        file.write(digest.digest())
    return digest.digest()


def entry_head(kind: int, size: int) -> bytes:
    """Encode the head of a pack entry: type and inflated size."""
    byte = (kind << 4) | (size & 15)
    size >>= 4
    head = bytearray()
    while size:
        head.append(byte | 128)
        byte = size & 127
        size >>= 7
    head.append(byte)
    return bytes(head)


def _write_index(path: Path, reading: _Reading, trailer: bytes) -> None:
    write_index(path, reading.oids, reading.crcs, reading.offsets, trailer)


def write_index(
    path: Path, oids: list[bytes], crcs: array[int], offsets: array[int], trailer: bytes
) -> None:
    """Write a version 2 index. The three sequences are in the same order, any order."""
    order = sorted(range(len(oids)), key=oids.__getitem__)
    in_order = [oids[entry] for entry in order]
    counts = [0] * 256
    for oid in in_order:
        counts[oid[0]] += 1
    total = 0
    fanout = [total := total + count for count in counts]
    far: list[int] = []
    near = array("I", bytes(4 * len(order)))
    for rank, entry in enumerate(order):
        offset = offsets[entry]
        if offset >= 1 << 31:
            near[rank] = (1 << 31) | len(far)
            far.append(offset)
        else:
            near[rank] = offset
    sorted_crcs = array("I", (crcs[entry] for entry in order))
    if sys.byteorder == "little":
        near.byteswap()
        sorted_crcs.byteswap()
    body = b"".join(
        (
            b"\377tOc\0\0\0\2",
            struct.pack(">256L", *fanout),
            *in_order,
            sorted_crcs.tobytes(),
            near.tobytes(),
            struct.pack(f">{len(far)}Q", *far),
            trailer,
        )
    )
    with path.open("wb") as file:
        file.write(body)
        file.write(hashlib.sha1(body, usedforsecurity=False).digest())


def _named(path: Path, reading: _Reading, trailer: bytes) -> IndexedPack:
    name = trailer.hex()
    final = path.with_name(f"pack-{name}.pack")
    os.chmod(path, 0o444)  # noqa: PTH101 -- as git leaves packs
    os.chmod(path.with_suffix(".idx"), 0o444)  # noqa: PTH101
    path.rename(final)
    path.with_suffix(".idx").rename(final.with_suffix(".idx"))
    oids = set(reading.oids)
    return IndexedPack(
        name=name,
        path=final,
        oids=oids,
        outside_commits=reading.commit_links - oids,
        outside_objects=reading.object_links - oids,
        roots=oids - reading.object_links - reading.commit_links,
        commits=reading.commits,
        trees=reading.trees,
        is_linked=reading.linked_bytes <= LINKED_BYTES_MAX,
        warnings=reading.warnings,
        completed_count=len(reading.completed),
        delta_count=reading.delta_count,
    )
