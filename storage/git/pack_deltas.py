"""The second reading of a received pack: the deltas that were put off, from each base downwards.

Each is applied once, however many there are, and only what is still needed stays in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from storage.git.delta_formats import delta_head, patched_anew
from storage.git.errors import (
    ObjectMissingError,
    PackInvalidError,
    PackTooLargeError,
    RepositoryCorruptError,
)
from storage.git.objects import ObjectStore
from storage.git.pack import read_entry_head
from storage.git.pack_index import index_row, row_offset, row_oid
from storage.git.pack_scan import Delta, Kept, PackScan, require_depth

PENDING_BYTES_MAX = 768 << 20  # results on the way down a tree of deltas


class DeltaTrees:
    """The deltas that a scan put off, by their bases.

    Attributes:
        completed: bases from outside that the pack lacks: (oid, type, content).
    """

    def __init__(self, scan: PackScan, *, pending_bytes_max: int = PENDING_BYTES_MAX) -> None:
        self._scan = scan
        self._pending_bytes_max = pending_bytes_max
        self._by_offset: dict[int, list[Delta]] = defaultdict(list)
        self._by_oid: dict[bytes, list[Delta]] = defaultdict(list)
        for delta in scan.put_off:
            if isinstance(delta.base, bytes):
                self._by_oid[delta.base].append(delta)
            else:
                self._by_offset[delta.base].append(delta)
        scan.put_off = []
        self.completed: list[tuple[bytes, int, bytes]] = []

    def left(self) -> list[Delta]:
        """List the deltas whose bases were not found."""
        places = (*self._by_offset.values(), *self._by_oid.values())
        return [delta for deltas in places for delta in deltas]

    def resolve(self) -> None:
        """Apply the deltas whose bases the scan has named.

        Raises:
            PackInvalidError, PackTooLargeError, PackOutgrownError: see `index_pack`.
        """
        for offset, oid in list(self._bases()):
            children = self._take_children(offset, oid)
            if children:
                self._descend(self._object_at(offset), children)

    def _bases(self) -> Iterator[tuple[int, bytes]]:
        if not self._by_offset and not self._by_oid:
            return
        for row in self._scan.all_rows:
            offset, oid = row_offset(row), row_oid(row)
            if offset in self._by_offset or oid in self._by_oid:
                yield offset, oid

    def _take_children(self, offset: int, oid: bytes) -> list[Delta]:
        found = self._by_offset.pop(offset, [])
        if self._by_oid:
            found = found + self._by_oid.pop(oid, [])
        return found

    def _object_at(self, offset: int) -> Kept:
        kept = self._scan.kept.get(offset)
        if kept is None:  # it is no delta, then
            kind, size, _, data_at = read_entry_head(self._scan.streams.mapped, offset)
            kept = kind, self._scan.streams.whole(data_at, size)[0], 0
        return kept

    def _descend(self, base: Kept, children: list[Delta]) -> None:
        kind = base[0]
        stack = [(base[1], base[2], children)]
        pending_bytes = len(base[1])
        while stack:
            content, depth, children = stack[-1]
            delta = children.pop()
            if not children:  # the last one: its base is not needed any longer
                stack.pop()
                pending_bytes -= len(content)
            result = self._patched(content, delta)
            require_depth(depth + 1)
            oid = self._scan.checks.named(kind, result)
            self._scan.rows.append(index_row(oid, delta.crc, delta.offset))
            grandchildren = self._take_children(delta.offset, oid)
            if grandchildren:
                stack.append((result, depth + 1, grandchildren))
                pending_bytes += len(result)
                if pending_bytes > self._pending_bytes_max:
                    raise PackTooLargeError(
                        "the pack's deltas need too much memory: git repack -a -d -F --window=0, "
                        "and push again"
                    )

    def _patched(self, base: bytes, child: Delta) -> bytes:
        scan = self._scan
        delta = scan.waiting.pop(child.offset, None)
        if delta is None:
            delta = scan.streams.whole(child.data_at, child.size)[0]
        try:
            head = delta_head(delta)
            size = head[2]
            if size > min(scan.limits.object_bytes_max, self._pending_bytes_max):
                bound = min(scan.limits.object_bytes_max, self._pending_bytes_max)
                raise PackTooLargeError(
                    f"a delta makes an object of {size} bytes; at most {bound} are made"
                )
            scan.count_inflated(size)
            if head[0] != len(base):
                raise PackInvalidError("delta does not fit its base")
            return patched_anew(base, delta, head)
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"failed to apply delta: {error}") from error

    def resolve_from_outside(self, bases: ObjectStore) -> None:
        """Apply the deltas whose bases are stored elsewhere.

        Raises:
            PackInvalidError, PackTooLargeError, PackOutgrownError: see `index_pack`.
        """
        for oid in list(self._by_oid):
            if oid not in self._by_oid:  # made meanwhile
                continue
            try:
                self._scan.count_inflated(bases.kind_and_size(oid)[1])
                kind, data = bases.get(oid)
            except ObjectMissingError:
                continue
            except RepositoryCorruptError as error:
                raise PackInvalidError(f"the base {oid.hex()} cannot be read: {error}") from error
            self.completed.append((oid, kind, data))
            self._descend((kind, data, 0), self._by_oid.pop(oid))
