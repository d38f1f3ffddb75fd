"""Write a pack of chosen objects, out of what is stored: bytes and deltas are copied as they lie.

Only where a stored delta cannot be used (its base is not sent, and the client lacks it), or an
object lies loose, is it inflated, and then a quick delta against the client's own version of the
same path is tried.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from storage.git.delta import line_delta
from storage.git.errors import PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import OFS_DELTA, OID_BYTES, REF_DELTA, TREE
from storage.git.objects import ObjectStore
from storage.git.pack import Pack, entry_head
from storage.git.pack_entries import DELTA_BYTES_MAX
from storage.git.selection import Selection

TWIN_BYTES_MIN, TWIN_BYTES_MAX = 96, 1 << 20
FAST_COMPRESSION, GOOD_COMPRESSION = 1, 6
GOOD_COMPRESSION_BYTES_MAX = 256 << 10
_PIECE_BYTES = 1 << 20

Sink = Callable[[bytes | memoryview], object]
_Entry = tuple[int, int, bytes]  # offset, CRC-32, id


@dataclass(slots=True)
class WrittenPack:
    """What was written."""

    size_bytes: int = 0
    object_count: int = 0
    delta_count: int = 0
    reused_count: int = 0


def find_verbatim(objects: ObjectStore, oids: list[bytes]) -> Pack | None:
    """Return a stored pack that holds exactly these objects, or None."""
    for pack in objects.packs():
        if pack.count == len(oids):
            if all(pack.find(oid) is not None for oid in oids):
                return pack
            return None
    return None


class PackWriter:
    """Writes one pack.

    Args:
        selection: what to write.
        may_thin: deltas may have bases that the client has.
        may_offset: the client knows OFS_DELTA.
        sink: takes the bytes.
        inflated_bytes_max: bound on an object that is inflated; None for none.
    """

    def __init__(
        self,
        objects: ObjectStore,
        selection: Selection,
        sink: Sink,
        *,
        may_thin: bool = False,
        may_offset: bool = True,
        inflated_bytes_max: int | None = None,
    ) -> None:
        self._objects = objects
        self._selection = selection
        self._sink = sink
        self._may_thin = may_thin
        self._may_offset = may_offset
        self._inflated_bytes_max = inflated_bytes_max
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._at = 0
        self._written: dict[bytes, int] = {}  # oid -> offset in the new pack
        self._run: tuple[Pack, int, int] | None = None  # bytes to copy that lie side by side
        self.result = WrittenPack(object_count=len(selection.oids))

    def write(self) -> WrittenPack:
        """Write all of it.

        What lies in a pack is held against the sum in its index before it is used.

        Raises:
            PackOutgrownError: an object is too large to be inflated here.
            RepositoryCorruptError: an object is missing or damaged.
        """
        self._put(b"PACK" + struct.pack(">LL", 2, len(self._selection.oids)))
        packed, loose = self._by_pack()
        for pack, entries in packed:
            entries.sort()
            for offset, crc, oid in entries:
                self._write_packed(pack, offset, crc, oid)
            self._flush_run()
        for oid in loose:
            if not self._write_against_twin(oid):
                self._write_inflated(oid)
        self._sink(self._digest.digest())
        self.result.size_bytes = self._at + OID_BYTES
        return self.result

    def _by_pack(self) -> tuple[list[tuple[Pack, list[_Entry]]], list[bytes]]:
        packed: dict[int, tuple[Pack, list[_Entry]]] = {}
        loose = []
        packs = self._objects.packs()
        for oid in self._selection.oids:
            for pack in packs:
                rank = pack.rank(oid)
                if rank is not None and oid not in pack.damaged:
                    _, entries = packed.setdefault(pack.serial, (pack, []))
                    entries.append((pack.offset_at(rank), pack.crc_at(rank), oid))
                    break
            else:
                loose.append(oid)
        return list(packed.values()), loose

    # bytes

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._sink(data)
        self._at += len(data)

    def _flush_run(self) -> None:
        if self._run is not None:
            pack, start, stop = self._run
            self._run = None
            for at in range(start, stop, _PIECE_BYTES):
                self._put(pack.view[at : min(at + _PIECE_BYTES, stop)])

    def _position(self) -> int:
        """Return where the next entry will begin."""
        return self._at + (self._run[2] - self._run[1] if self._run is not None else 0)

    # entries

    def _write_packed(self, pack: Pack, offset: int, crc: int, oid: bytes) -> None:
        stop = pack.next_offset(offset)
        if zlib.crc32(pack.view[offset:stop]) != crc:  # git looks before it copies, too
            found = self._objects.entries.of_its_name(
                pack, offset, oid, self._inflated_bytes_max or DELTA_BYTES_MAX
            )
            if found is not None:  # it is the sum that is damaged
                self._write_content(oid, found[0], len(found[1]), (found[1],))
                return
            damage = RepositoryCorruptError(f"object {oid.hex()} is damaged in {pack.path.name}")
            self._objects.look_elsewhere(pack, oid, self._inflated_bytes_max, damage)
            if not self._write_against_twin(oid):
                self._write_inflated(oid)
            return
        kind, size, base, data_at = pack.header(offset)
        position = self._position()
        if base is None:
            if size >= TWIN_BYTES_MIN and self._write_against_twin(oid):
                return
            self._copy(pack, offset, stop, oid, position)
            return
        base_oid = pack.oid_of(base) if isinstance(base, int) else base
        base_at = self._written.get(base_oid)
        if base_at is not None and self._may_offset:
            if kind == OFS_DELTA and isinstance(base, int) and position - base_at == offset - base:
                self._copy(pack, offset, stop, oid, position)
            else:
                head = entry_head(OFS_DELTA, size) + offset_distance(position - base_at)
                self._copy_delta(pack, data_at, stop, oid, head)
        elif base_at is not None or (self._may_thin and base_oid in self._selection.had):
            head = entry_head(REF_DELTA, size) + base_oid
            self._copy_delta(pack, data_at, stop, oid, head)
        elif not self._write_against_twin(oid):
            self._write_inflated(oid)

    def _copy(self, pack: Pack, start: int, stop: int, oid: bytes, position: int) -> None:
        self._written[oid] = position
        self.result.reused_count += 1
        if self._run is not None and self._run[0] is pack and self._run[2] == start:
            self._run = (pack, self._run[1], stop)
        else:
            self._flush_run()
            self._run = (pack, start, stop)

    def _copy_delta(self, pack: Pack, data_at: int, stop: int, oid: bytes, head: bytes) -> None:
        self._flush_run()
        self._written[oid] = self._at
        self.result.delta_count += 1
        self.result.reused_count += 1
        self._put(head)
        self._put(pack.view[data_at:stop])

    def _write_against_twin(self, oid: bytes) -> bool:
        twin = self._selection.twins.get(oid)
        if twin is None or not self._may_thin or twin in self._written:
            return False
        if twin not in self._selection.had or oid in self._selection.had:
            return False
        if max(self._objects.kind_and_size(o)[1] for o in (oid, twin)) > TWIN_BYTES_MAX:
            return False
        kind, data = self._objects.get(oid)
        twin_kind, twin_data = self._objects.get(twin)
        delta = None
        if twin_kind == kind and len(data) >= TWIN_BYTES_MIN:
            delta = line_delta(twin_data, data, is_tree=kind == TREE)
        if delta is None:
            return False
        self._flush_run()
        self._written[oid] = self._at
        self.result.delta_count += 1
        self._put(entry_head(REF_DELTA, len(delta)) + twin + zlib.compress(delta))
        return True

    def _write_inflated(self, oid: bytes) -> None:
        chunks: Iterable[bytes]
        if self._objects.is_delta(oid):  # in memory anyhow, and its bases are not yet looked at
            kind, data = self._objects.get(oid, self._inflated_bytes_max)
            size, chunks = len(data), (data,)
        else:
            kind, size = self._objects.kind_and_size(oid)
            chunks = self._objects.stream(oid)
        if self._inflated_bytes_max is not None and size > self._inflated_bytes_max:
            raise PackOutgrownError(f"object {oid.hex()} is too large for memory")
        self._write_content(oid, kind, size, chunks)

    def _write_content(self, oid: bytes, kind: int, size: int, chunks: Iterable[bytes]) -> None:
        self._flush_run()
        self._written[oid] = self._at
        self._put(entry_head(kind, size))
        level = GOOD_COMPRESSION if size <= GOOD_COMPRESSION_BYTES_MAX else FAST_COMPRESSION
        deflater = zlib.compressobj(level)
        for chunk in chunks:
            self._put(deflater.compress(chunk))
        self._put(deflater.flush())


def offset_distance(distance: int) -> bytes:
    """Encode how far before an entry its base begins."""
    out = [distance & 127]
    distance >>= 7
    while distance:
        distance -= 1
        out.append(128 | (distance & 127))
        distance >>= 7
    return bytes(reversed(out))
