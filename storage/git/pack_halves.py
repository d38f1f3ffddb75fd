"""Read a large pack in two processes, each its half.

Where entries begin is known only to who reads all that comes before. But a deflated stream has a
checksum: one that is found somewhere in the middle, and is whole, is very probably an entry's, and
then the next entry begins behind it. The second process takes its chance there. When the first one
comes to that very place, what the second has read is right; if not, it is thrown away.
"""

from __future__ import annotations

import re
import zlib
from array import array
from bisect import bisect_left
from itertools import accumulate

import msgspec

from storage.git.closure import Closure
from storage.git.fsck import SpecialFile
from storage.git.object_checks import ObjectChecks
from storage.git.object_formats import OFS_DELTA, OID_BYTES, REF_DELTA
from storage.git.pack import read_entry_head
from storage.git.pack_deltas import DeltaTrees
from storage.git.pack_index import ROW_BYTES, cut, row_offset, row_offsets, row_oid
from storage.git.pack_scan import HEADER_BYTES, Delta, PackScan, SecondPart
from storage.git.pack_streams import PackStreams
from storage.git.second_process import SecondProcess, has_second_core

HALVED_COUNT_MIN = 4_000  # fewer entries are read before another process would have begun
PENDING_BYTES_MAX = 64 << 20
_FIRST_PART = 0.59  # of the work; the second process reads bases of the first half too
_ENTRY_COST_BYTES = 1_500  # an entry costs what inflating so many bytes costs
_SAMPLES, _SAMPLE_BYTES = 64, 8 << 10
_SEARCHED_BYTES = 256 << 10
_STREAM_BYTES_MAX = 64 << 10
_STREAM_HEAD = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


class _Share(msgspec.Struct, frozen=True, array_like=True):
    """What the second process found. `foreign` are native 64-bit numbers, ids are joined."""

    rows: bytes
    put_off: list[Delta]
    foreign: bytes
    delta_count: int
    inflated_bytes: int
    named: dict[int, bytes]
    roots: dict[int, bytes]
    outside: dict[int, bytes]
    commits: list[tuple[bytes, bytes]]
    trees: list[tuple[bytes, bytes]]
    linked_bytes: int
    warnings: list[str]
    special_files: list[SpecialFile]


def scan_by_two(scan: PackScan, count: int) -> None:
    """Sum up and read a pack of so many entries; in two processes where that pays and is possible.

    Raises:
        PackInvalidError, PackTooLargeError: see `index_pack`.
    """
    streams = scan.streams
    is_worth_it = count >= HALVED_COUNT_MIN and has_second_core()
    middle = find_middle(streams) if is_worth_it else None
    if middle is not None:
        second = SecondProcess(lambda: _second_half(scan, middle, count), _Share)
        try:
            streams.require_sum()
            scan.run(middle, count)
            scan.rows.sort()
            scan.note_closure()  # the other one is not ready yet, probably
            share = second.result() if scan.at == middle else None
        finally:
            second.stop()
        rows = cut(share.rows, ROW_BYTES) if share is not None else []
        if share is not None and _is_right(scan, share, rows, count):
            _take_over(scan, share, rows)
            return
    else:
        streams.require_sum()
    # Whatever went wrong in the other half is found again here, and told in the words of ever.
    scan.run(streams.end, count - scan.entry_count)


def find_middle(streams: PackStreams) -> int | None:
    """Find where an entry probably begins, and about half of the work lies before it."""
    step = max(streams.end // _SAMPLES, 1)
    length = min(step, _SAMPLE_BYTES)
    starts = range(HEADER_BYTES, streams.end, step)
    counts = [len(_STREAM_HEAD.findall(streams.mapped[at : at + length])) for at in starts]
    work = list(accumulate(_ENTRY_COST_BYTES * count + length for count in counts))
    return _entry_behind(streams, starts[bisect_left(work, _FIRST_PART * work[-1])])


def _entry_behind(streams: PackStreams, at: int) -> int | None:
    """Find the end of a whole stream."""
    searched = streams.mapped[at : min(at + _SEARCHED_BYTES, streams.end)]
    for found in _STREAM_HEAD.finditer(searched):
        inflater = zlib.decompressobj()
        piece = searched[found.start() : found.start() + _STREAM_BYTES_MAX]
        try:
            inflater.decompress(piece, _STREAM_BYTES_MAX)
        except zlib.error:
            continue
        if inflater.eof:
            return at + found.start() + len(piece) - len(inflater.unused_data)
    return None


def _second_half(whole: PackScan, middle: int, count: int) -> _Share:
    """Read from the middle on, in the second process."""
    linked_bytes_max = whole.checks.linked_bytes_max // 2  # more would be for nothing, probably
    checks = ObjectChecks(whole.checks.bases, whole.checks.rules, linked_bytes_max)
    scan = PackScan(whole.streams, whole.limits, checks, middle)
    scan.run(scan.streams.end, count)
    trees = DeltaTrees(scan, pending_bytes_max=PENDING_BYTES_MAX)
    trees.resolve()
    scan.rows.sort()
    closure = checks.closure()
    return _Share(
        rows=b"".join(scan.rows),
        put_off=trees.left(),
        foreign=array("Q", scan.foreign).tobytes(),
        delta_count=scan.delta_count,
        inflated_bytes=scan.inflated_bytes,
        named={kind: b"".join(oids) for kind, oids in closure.named.items()},
        roots={kind: b"".join(oids) for kind, oids in closure.roots.items()},
        outside={kind: b"".join(oids) for kind, oids in closure.outside.items()},
        commits=checks.commits,
        trees=checks.trees,
        linked_bytes=checks.linked_bytes,
        warnings=checks.warnings,
        special_files=list(checks.special_files),
    )


def _is_right(scan: PackScan, share: _Share, rows: list[bytes], count: int) -> bool:
    """Say whether the second half fits to the first one."""
    if scan.entry_count + len(rows) + len(share.put_off) != count:
        return False
    begins = set(row_offsets(scan.rows)) | {delta.offset for delta in scan.put_off}
    if not begins.issuperset(array("Q", share.foreign)):
        return False
    # Of an object that the second process made of a delta, only the id came here.
    named = {d.base for d in (*scan.put_off, *share.put_off) if isinstance(d.base, bytes)}
    return not named or not any(
        row_oid(row) in named
        and read_entry_head(scan.streams.mapped, row_offset(row))[0] in (OFS_DELTA, REF_DELTA)
        for row in rows
    )


def _take_over(scan: PackScan, share: _Share, rows: list[bytes]) -> None:
    closure = Closure(
        named={kind: cut(data, OID_BYTES) for kind, data in share.named.items()},
        roots={kind: set(cut(data, OID_BYTES)) for kind, data in share.roots.items()},
        outside={kind: set(cut(data, OID_BYTES)) for kind, data in share.outside.items()},
    )
    scan.second = SecondPart(rows, closure)
    scan.at = scan.streams.end
    scan.put_off += share.put_off
    scan.delta_count += share.delta_count
    scan.count_inflated(share.inflated_bytes)
    scan.checks.remember_more(share.commits, share.trees, share.linked_bytes)
    scan.checks.warn(share.warnings)
    scan.checks.special_files.update(share.special_files)
