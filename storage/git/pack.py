"""One pack with its index, mapped into memory and read where it lies.

Source: gitformat-pack(5). Only index version 2 is read, which git writes since 1.6.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import struct
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

from storage.git.errors import RepositoryCorruptError
from storage.git.object_formats import OFS_DELTA, OID_BYTES, REF_DELTA

PACK_HEADER_BYTES, TRAILER_BYTES = 12, 20
CHUNK_BYTES = 256 * 1024
SIZE_SHIFT_MAX = 60  # of a number's last seven bits: more make no size, and cost without end
INFLATED_RATIO_MAX = 1032  # how many times its own bytes zlib's form makes at most
SIZE_OUT_OF_BOUND = "the size of an object is out of bound"
_INDEX_MAGIC = b"\377tOc\0\0\0\2"
_FANOUT_BYTES = 256 * 4
_OIDS_AT = len(_INDEX_MAGIC) + _FANOUT_BYTES
_FAR_OFFSET = 1 << 31  # this bit of an offset says: look into the table of 64-bit offsets
_SCAN_COUNT_MAX = 512  # ids in one fan-out bucket up to which a memory search beats bisection
_serials = itertools.count(1)


def _map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise RepositoryCorruptError(f"{path.name} is empty") from error
    finally:
        os.close(descriptor)


class Pack:
    """A pack and its index. Reading is safe from any thread; the maps live as long as the object.

    Attributes:
        serial: unique among the packs of this process, a key for caches.
        count: objects in the pack.
        end: offset at which the trailer begins.
        damaged: ids whose entries here cannot be read, and which are whole elsewhere.
    """

    def __init__(self, index_path: Path, pack_path: Path | None = None) -> None:
        self.path = pack_path or index_path.with_suffix(".pack")
        self.serial = next(_serials)
        self._index = _map(index_path)
        self.bytes_map = _map(self.path)
        self.view = memoryview(self.bytes_map)
        self.end = len(self.bytes_map) - TRAILER_BYTES
        if self._index[:8] != _INDEX_MAGIC or self.bytes_map[:4] != b"PACK":
            raise RepositoryCorruptError(f"{index_path.name}: not a version 2 index with its pack")
        if self._index[-2 * TRAILER_BYTES : -TRAILER_BYTES] != self.bytes_map[self.end :]:
            # Seen for a moment when a repack replaces both files under one name.
            raise RepositoryCorruptError(f"{index_path.name} is not of its pack")
        self._fanout = struct.unpack_from(">256L", self._index, len(_INDEX_MAGIC))
        self.count = self._fanout[255]
        self._crcs_at = _OIDS_AT + OID_BYTES * self.count
        self._offsets_at = self._crcs_at + 4 * self.count
        self._far_at = self._offsets_at + 4 * self.count
        if len(self._index) < self._far_at + 2 * TRAILER_BYTES:
            raise RepositoryCorruptError(f"{index_path.name} is too short")
        self.damaged: set[bytes] = set()
        self._offsets: array[int] | None = None
        self._sorted_offsets: array[int] | None = None
        self._oids_by_offset: dict[int, bytes] | None = None
        self._whole = bytearray(self.count)  # by order: entries that were held against their sums

    # lookup

    def find(self, oid: bytes) -> int | None:
        """Return the offset of an object in this pack, or None."""
        rank = self.rank(oid)
        return None if rank is None else self.offset_at(rank)

    def rank(self, oid: bytes) -> int | None:
        """Return the place of an id among all of this pack, ascending, or None.

        Of several, as a pack of others may have them, the first.
        """
        first = oid[0]
        low, high = self._fanout[first - 1] if first else 0, self._fanout[first]
        if high - low > _SCAN_COUNT_MAX:
            low, high = self._narrow(oid, low, high)
        at, stop = _OIDS_AT + OID_BYTES * low, _OIDS_AT + OID_BYTES * high
        while True:
            at = self._index.find(oid, at, stop)
            if at < 0:
                return None
            if (at - _OIDS_AT) % OID_BYTES == 0:
                return (at - _OIDS_AT) // OID_BYTES
            at += 1

    def _narrow(self, oid: bytes, low: int, high: int) -> tuple[int, int]:
        while high - low > 16:
            middle = (low + high) // 2
            if self.oid_at(middle) < oid:
                low = middle
            else:
                high = middle + 1
        return low, high

    def oid_at(self, rank: int) -> bytes:
        """Return the id of a rank."""
        at = _OIDS_AT + OID_BYTES * rank
        return self._index[at : at + OID_BYTES]

    def offset_at(self, rank: int) -> int:
        """Return where the entry of a rank begins."""
        at = self._offsets_at + 4 * rank
        offset: int = struct.unpack_from(">L", self._index, at)[0]
        return self._far(offset) if offset & _FAR_OFFSET else offset

    def _far(self, offset: int) -> int:
        at = self._far_at + 8 * (offset & (_FAR_OFFSET - 1))
        far: int = struct.unpack_from(">Q", self._index, at)[0]
        return far

    def oids(self) -> Iterator[bytes]:
        """Yield every id in the pack, ascending."""
        table = self._index[_OIDS_AT : self._crcs_at]
        return (table[at : at + OID_BYTES] for at in range(0, len(table), OID_BYTES))

    def between(self, low: bytes, high: bytes) -> Iterator[bytes]:
        """Yield the ids from `low` to `high`, both included, ascending."""
        rank, stop = 0, self.count
        while rank < stop:
            middle = (rank + stop) // 2
            if self.oid_at(middle) < low:
                rank = middle + 1
            else:
                stop = middle
        while rank < self.count and (oid := self.oid_at(rank)) <= high:
            yield oid
            rank += 1

    @property
    def said_count(self) -> int:
        """Return how many objects the pack's own head says it has."""
        count: int = struct.unpack_from(">L", self.bytes_map, 8)[0]
        return count

    def has_only_indexed(self) -> bool:
        """Say whether the indexed entries, whole each, are all that is in it. Reads all of it."""
        if not self.is_index_whole():
            return False
        at = PACK_HEADER_BYTES
        for offset, oid in sorted(zip(self.offsets(), self.oids(), strict=True)):
            stop = self.next_offset(offset)
            if offset != at or zlib.crc32(self.view[at:stop]) != self.crc(oid):
                return False
            at = stop
        return at == self.end

    def is_index_whole(self) -> bool:
        """Say whether the index is as it was written. Reads all of it."""
        with memoryview(self._index) as view:
            digest = hashlib.sha1(view[:-TRAILER_BYTES], usedforsecurity=False).digest()
        return digest == self._index[-TRAILER_BYTES:]

    # entries

    def header(self, offset: int) -> tuple[int, int, int | bytes | None, int]:
        """Read an entry's head: (type, inflated size, base, offset of the deflated bytes).

        `base` is an offset for an OFS_DELTA, an oid for a REF_DELTA, else None.

        Raises:
            RepositoryCorruptError: the offsets lie outside of the pack, or it has no such size.
        """
        # As `read_entry_head`, whose call would cost a walk of a large history a tenth.
        data, at = self.bytes_map, offset
        try:
            byte = data[at]
            at += 1
            kind, size, shift = (byte >> 4) & 7, byte & 15, 4
            while byte & 128:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                # No pack inflates to so much; and zlib takes no number beyond 63 bits.
                if shift > 32 and (
                    shift > SIZE_SHIFT_MAX + 7 or size > INFLATED_RATIO_MAX * len(data)
                ):
                    raise RepositoryCorruptError(f"{self.path.name}: {SIZE_OUT_OF_BOUND}")
            if kind == OFS_DELTA:
                byte = data[at]
                at += 1
                distance = byte & 127
                while byte & 128:
                    byte = data[at]
                    at += 1
                    distance = ((distance + 1) << 7) | (byte & 127)
                    if distance > offset:
                        break
                if not 0 < distance <= offset - PACK_HEADER_BYTES:
                    raise RepositoryCorruptError(f"{self.path.name}: delta base out of bounds")
                return kind, size, offset - distance, at
            if kind == REF_DELTA:
                return kind, size, data[at : at + OID_BYTES], at + OID_BYTES
        except IndexError as error:
            raise RepositoryCorruptError(f"{self.path.name}: entry out of bounds") from error
        return kind, size, None, at

    def inflate(self, at: int, size: int) -> bytes:
        """Inflate the `size` bytes whose deflated form begins at `at`, whole.

        Raises:
            RepositoryCorruptError: they do not inflate to exactly that many.
        """
        inflater = zlib.decompressobj()
        take = size + 64
        try:
            data = inflater.decompress(self.view[at : at + take], size + 1)
            while not inflater.eof:
                # What is left over had no room: asked for no bytes more, zlib would give all.
                if inflater.unconsumed_tail or len(data) > size:
                    break
                at, take = at + take, CHUNK_BYTES
                rest = self.view[at : at + take]
                if not rest:
                    break
                data += inflater.decompress(rest, size + 1 - len(data))
        except zlib.error as error:
            raise RepositoryCorruptError(f"{self.path.name}: {error}") from error
        if len(data) != size or not inflater.eof:
            raise RepositoryCorruptError(f"{self.path.name}: an entry has the wrong size")
        return data

    def beginning(self, at: int) -> bytes:
        """Inflate some 32 bytes of an entry, or all if it has fewer."""
        try:
            return zlib.decompressobj().decompress(self.view[at : at + 1024], 32)
        except zlib.error as error:
            raise RepositoryCorruptError(f"{self.path.name}: {error}") from error

    def chunks(self, at: int, size: int) -> Iterator[bytes]:
        """Inflate the entry whose deflated bytes begin at `at` in bounded pieces.

        Raises:
            RepositoryCorruptError: it is damaged, or has another size; perhaps only at its end.
        """
        inflater = zlib.decompressobj()
        left_bytes = size
        try:
            while not inflater.eof and at < self.end:
                rest: bytes | memoryview = self.view[at : at + CHUNK_BYTES]
                at += CHUNK_BYTES
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, CHUNK_BYTES)
                    rest = inflater.unconsumed_tail
                    left_bytes -= len(piece)
                    if left_bytes < 0:
                        break
                    if piece:
                        yield piece
                if left_bytes < 0:
                    break
        except zlib.error as error:
            raise RepositoryCorruptError(f"{self.path.name}: {error}") from error
        if left_bytes or not inflater.eof:
            raise RepositoryCorruptError(f"{self.path.name}: an entry has the wrong size")

    # the order of the entries, for copying

    def offsets(self) -> array[int]:
        """Return all offsets by rank of oid. Built once, 8 bytes each."""
        if self._offsets is None:
            near = array("I", self._index[self._offsets_at : self._far_at])
            if sys.byteorder == "little":
                near.byteswap()
            self._offsets = array(
                "Q", (self._far(offset) if offset & _FAR_OFFSET else offset for offset in near)
            )
        return self._offsets

    @property
    def is_ordered(self) -> bool:
        """Say whether it is already known where the entries end."""
        return self._sorted_offsets is not None

    def next_offset(self, offset: int) -> int:
        """Return where the entry at `offset` ends."""
        if self._sorted_offsets is None:
            self._sorted_offsets = array("Q", sorted(self.offsets()))
        rank = bisect_right(self._sorted_offsets, offset)
        return self._sorted_offsets[rank] if rank < self.count else self.end

    def order_of(self, offset: int) -> int:
        """Return which entry of the pack begins at `offset`, counted from 0."""
        self.next_offset(offset)
        assert self._sorted_offsets is not None
        return bisect_left(self._sorted_offsets, offset)

    def is_entry_whole(self, offset: int) -> bool:
        """Say whether an entry begins at `offset` and is as its sum in the index; once each."""
        order = self.order_of(offset)
        if order == self.count:
            return False
        if not self._whole[order]:
            try:
                crc = self.crc(self.oid_of(offset))
            except KeyError:
                return False
            self._whole[order] = zlib.crc32(self.view[offset : self.next_offset(offset)]) == crc
        return bool(self._whole[order])

    def note_whole(self, offset: int) -> None:
        """Take the entry at `offset` for whole, whatever its sum."""
        self._whole[self.order_of(offset)] = 1

    def oid_of(self, offset: int) -> bytes:
        """Return the id of the entry at `offset`. Raises KeyError when none begins there."""
        if self._oids_by_offset is None:
            self._oids_by_offset = dict(zip(self.offsets(), self.oids(), strict=True))
        return self._oids_by_offset[offset]

    def crc(self, oid: bytes) -> int:
        """Return the CRC-32 of an object's entry as the index has it."""
        rank = self.rank(oid)
        assert rank is not None
        return self.crc_at(rank)

    def crc_at(self, rank: int) -> int:
        """Return the CRC-32 of the entry of a rank as the index has it."""
        crc: int = struct.unpack_from(">L", self._index, self._crcs_at + 4 * rank)[0]
        return crc

    @property
    def trailer(self) -> bytes:
        """Return the pack's own checksum."""
        return self.bytes_map[self.end :]


def read_entry_head(
    data: mmap.mmap | bytes, offset: int
) -> tuple[int, int, int | bytes | None, int]:
    """Read an entry's head: (type, inflated size, base, offset of the deflated bytes).

    `base` is an offset for an OFS_DELTA, an oid for a REF_DELTA, else None.

    Raises:
        IndexError: it goes on behind the end.
        ValueError: its size is none, or its base lies outside of the pack.
    """
    byte = data[offset]
    at = offset + 1
    kind, size, shift = (byte >> 4) & 7, byte & 15, 4
    while byte & 128:
        if shift > SIZE_SHIFT_MAX:
            raise ValueError(SIZE_OUT_OF_BOUND)
        byte = data[at]
        at += 1
        size |= (byte & 127) << shift
        shift += 7
    if kind == OFS_DELTA:
        byte = data[at]
        at += 1
        distance = byte & 127
        while byte & 128:
            byte = data[at]
            at += 1
            distance = ((distance + 1) << 7) | (byte & 127)
            if distance > offset:  # digits go on for as long as somebody likes
                break
        if not 0 < distance <= offset - PACK_HEADER_BYTES:
            raise ValueError("delta base offset is out of bound")
        return kind, size, offset - distance, at
    if kind == REF_DELTA:
        return kind, size, data[at : at + OID_BYTES], at + OID_BYTES
    return kind, size, None, at


def entry_head(kind: int, size: int) -> bytes:
    """Encode the head of an entry: type and inflated size."""
    byte = (kind << 4) | (size & 15)
    size >>= 4
    head = bytearray()
    while size:
        head.append(byte | 128)
        byte = size & 127
        size >>= 7
    head.append(byte)
    return bytes(head)
