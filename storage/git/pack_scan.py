"""The first reading of a received pack: each entry once, in its order.

Each deflated byte is inflated once, and what comes out is named and checked while it is at hand.
So is what a delta makes of its base, when the base was read before and is still in memory; the
other deltas are put off.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

from storage.git.closure import Closure
from storage.git.delta_formats import DELTA_DEPTH_MAX, delta_head, patched_anew
from storage.git.errors import (
    PackInvalidError,
    PackOutgrownError,
    PackTooLargeError,
    RepositoryCorruptError,
)
from storage.git.object_checks import ObjectChecks
from storage.git.object_formats import BLOB, TYPE_NAMES
from storage.git.pack import read_entry_head
from storage.git.pack_index import index_row
from storage.git.pack_streams import PackStreams, damaged

HEADER_BYTES = 12
STREAMED_BYTES_MIN = 8 << 20  # blobs above are hashed in pieces
STRUCTURED_BYTES_MAX = 128 << 20  # one commit, tree or tag
KEPT_OBJECT_BYTES_MAX = 64 << 10
KEPT_BYTES_MAX = 64 << 20  # of objects that may be bases of what comes, and of deltas put off
_SLACK_BYTES = 64  # a stream may be so much longer than what it makes


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


class Delta(NamedTuple):
    """A delta that is put off. `base` is the offset of its base's entry, or the base's id."""

    offset: int
    base: int | bytes
    data_at: int
    size: int
    crc: int


Kept = tuple[int, bytes, int]
"""An object in memory: its type and content, and how many deltas lie between it and one that is
stored whole."""


@dataclass(frozen=True, slots=True)
class SecondPart:
    """The objects that another process has named: their rows, sorted, and their closure."""

    rows: list[bytes]
    closure: Closure


class PackScan:
    """A reading of a pack, or of the part of it that begins at `at`.

    Attributes:
        at: the next entry's offset.
        rows: of the objects that are named, see `index_row`.
        put_off: deltas; none of them has a base that was itself made by one and is not `kept`.
        kept: objects by offset.
        waiting: deltas that are put off, by offset, as far as there is memory.
        foreign: offsets before the part's begin from which bases were read.
        second: what another process made of the part behind this one, if one did.
        delta_count: with those put off.
    """

    def __init__(
        self, streams: PackStreams, limits: PackLimits, checks: ObjectChecks, at: int = HEADER_BYTES
    ) -> None:
        self.streams, self.limits, self.checks = streams, limits, checks
        self.at = self._begin = at
        self.rows: list[bytes] = []
        self.put_off: list[Delta] = []
        self.kept: dict[int, Kept] = {}
        self.waiting: dict[int, bytes] = {}
        self.foreign: list[int] = []
        self.second: SecondPart | None = None
        self._closure: tuple[int, Closure] | None = None  # of so many rows
        self.delta_count = 0
        self._kept_bytes = 0
        self._made_bytes_max = min(KEPT_OBJECT_BYTES_MAX - 1, limits.object_bytes_max)
        self.inflated_bytes = 0
        self._inflated_bytes_max = (
            limits.inflated_bytes_floor + limits.inflated_ratio_max * len(streams.mapped)
            if limits.memory_bytes_max is None
            else limits.memory_bytes_max
        )

    @property
    def entry_count(self) -> int:
        second = len(self.second.rows) if self.second is not None else 0
        return len(self.rows) + len(self.put_off) + second

    @property
    def all_rows(self) -> list[bytes]:
        """The rows of all objects that are named."""
        return self.rows if self.second is None else self.rows + self.second.rows

    def note_closure(self) -> None:
        """Find the closure of the rows so far."""
        self._closure = len(self.rows), self.checks.closure()

    def closure(self) -> Closure:
        """Return the closure of all objects that are named."""
        if self._closure is None or self._closure[0] != len(self.rows):
            self.note_closure()
        assert self._closure is not None
        closure = self._closure[1]
        return closure if self.second is None else closure.joined(self.second.closure)

    def run(self, stop: int, count_max: int) -> None:
        """Read entries until `stop`, or as many.

        Raises:
            PackInvalidError, PackTooLargeError, PackOutgrownError: see `index_pack`.
        """
        mapped, view, at = self.streams.mapped, self.streams.view, self.at
        object_bytes_max = self.limits.object_bytes_max
        decompressobj, crc32, named = zlib.decompressobj, zlib.crc32, self.checks.named
        rows, inflated_bytes_max = self.rows, self._inflated_bytes_max
        try:
            for _ in range(count_max):
                if at >= stop:
                    break
                offset = at
                kind, size, base, data_at = read_entry_head(mapped, offset)
                at = data_at
                if base is None and kind not in TYPE_NAMES:
                    raise PackInvalidError(f"bad object type {kind} at offset {offset}")
                if size > object_bytes_max:
                    raise PackTooLargeError(
                        f"an object has {size} bytes; at most {object_bytes_max} are taken "
                        "(git.object_bytes_max): leave it out of the commits"
                    )
                self.inflated_bytes += size
                if self.inflated_bytes > inflated_bytes_max:
                    self.count_inflated(0)
                if 0 < size < KEPT_OBJECT_BYTES_MAX:
                    # What nearly all objects are: one call inflates all of it.
                    piece = view[at : at + size + _SLACK_BYTES]
                    inflater = decompressobj()
                    data = inflater.decompress(piece, size)
                    if inflater.eof and len(data) == size:
                        at += len(piece) - len(inflater.unused_data)
                    else:
                        data, at = self.streams.whole(at, size)
                elif kind == BLOB and size > STREAMED_BYTES_MIN:
                    oid, at = self.checks.named_blob(self.streams, at, size)
                    self.rows.append(index_row(oid, crc32(view[offset:at]), offset))
                    continue
                elif size > STRUCTURED_BYTES_MAX:
                    raise PackTooLargeError(
                        f"an object of {size} bytes is neither blob nor readable"
                    )
                else:
                    data, at = self.streams.whole(at, size)
                crc = crc32(view[offset:at])
                if base is None:
                    rows.append(index_row(named(kind, data), crc, offset))
                    self._keep(offset, kind, data)
                elif not self._take_delta(offset, base, data, crc):
                    self._put_off(Delta(offset, base, data_at, size, crc), data)
        except IndexError as error:
            raise PackInvalidError("early EOF") from error
        except ValueError as error:
            raise PackInvalidError(str(error)) from error
        except zlib.error as error:
            raise damaged(error) from error
        self.at = at

    def _keep(self, offset: int, kind: int, data: bytes) -> bool:
        size = len(data)
        if size >= KEPT_OBJECT_BYTES_MAX or self._kept_bytes + size > KEPT_BYTES_MAX:
            return False
        self._kept_bytes += size
        self.kept[offset] = kind, data, 0
        return True

    def count_inflated(self, size: int) -> None:
        """Note that so many bytes are there more.

        Raises:
            PackTooLargeError: all together are too many for the pack's size.
            PackOutgrownError: they are too many for memory.
        """
        self.inflated_bytes += size
        if self.inflated_bytes <= self._inflated_bytes_max:
            return
        if self.limits.memory_bytes_max is not None:
            raise PackOutgrownError("the pack's objects are too large for memory")
        raise PackTooLargeError("the pack's objects are too large in sum for its size")

    # deltas

    def _take_delta(self, offset: int, base_at: int | bytes, data: bytes, crc: int) -> bool:
        """Apply a delta and name what it makes; false when it is to be put off."""
        self.delta_count += 1
        if isinstance(base_at, bytes):
            return False
        base = self.kept.get(base_at)
        if base is None and base_at < self._begin:
            base = self._foreign(base_at)
        made = None if base is None else self._made(base, data)
        if made is None:
            return False
        self.kept[offset] = made
        kind, content, _ = made
        self.inflated_bytes += len(content)
        if self.inflated_bytes > self._inflated_bytes_max:
            self.count_inflated(0)
        self.rows.append(index_row(self.checks.named(kind, content), crc, offset))
        return True

    def _put_off(self, delta: Delta, data: bytes) -> None:
        self.put_off.append(delta)
        if self._kept_bytes + delta.size <= KEPT_BYTES_MAX:
            self._kept_bytes += delta.size
            self.waiting[delta.offset] = data

    def _made(self, base: Kept, delta: bytes) -> Kept | None:
        """Return what a delta makes of a base; None when that is too large to be kept."""
        kind, content, depth = base
        try:
            head = delta_head(delta)
            if head[0] != len(content):
                raise PackInvalidError("delta does not fit its base")
            size = head[2]
            if size > self._made_bytes_max or self._kept_bytes + size > KEPT_BYTES_MAX:
                return None
            if depth >= DELTA_DEPTH_MAX:
                require_depth(depth + 1)
            self._kept_bytes += size
            return kind, patched_anew(content, delta, head), depth + 1
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"failed to apply delta: {error}") from error

    def _foreign(self, offset: int) -> Kept | None:
        """Read an object from before this part and keep it; None when that cannot be.

        Whoever reads the other part sees whether an entry begins there at all.
        """
        chain: list[tuple[int, int, int]] = []
        while (found := self.kept.get(offset)) is None:
            try:
                kind, size, base, data_at = read_entry_head(self.streams.mapped, offset)
            except (IndexError, ValueError):
                return None
            if size >= KEPT_OBJECT_BYTES_MAX or len(chain) > DELTA_DEPTH_MAX:
                return None
            self.foreign.append(offset)
            if isinstance(base, int):
                chain.append((offset, data_at, size))
                offset = base
            elif kind not in TYPE_NAMES or not self._keep(
                offset, kind, self.streams.whole(data_at, size)[0]
            ):
                return None
        for at, data_at, size in reversed(chain):
            made = self._made(found, self.streams.whole(data_at, size)[0])
            if made is None:
                return None
            found = self.kept[at] = made
        return found


def require_depth(depth: int) -> None:
    """Refuse a chain of deltas that is too long to be read again.

    Raises:
        PackTooLargeError: it is.
    """
    if depth > DELTA_DEPTH_MAX:
        raise PackTooLargeError(f"a chain of deltas is longer than {DELTA_DEPTH_MAX}")
