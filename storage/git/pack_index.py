"""The index of a pack, as it is written: where each object is, by its id.

Source: gitformat-pack(5), "Version 2 pack-*.idx files have the following format".
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from array import array
from bisect import bisect_right
from pathlib import Path

from storage.files import write_all
from storage.git.object_formats import OID_BYTES

_MAGIC = b"\377tOc\0\0\0\2"
_FAR_OFFSET = 1 << 31  # this bit of an offset says: look into the table of 64-bit offsets
_CRC_AT, _OFFSET_AT = OID_BYTES, OID_BYTES + 4
ROW_BYTES = OID_BYTES + 4 + 8
PACK_MODE = 0o444  # of packs and indexes, as git leaves them

index_row = struct.Struct(">20sIQ").pack
"""Make the row of one object of its id, the CRC-32 of its entry and its offset. Rows sort by id."""


def row_oid(row: bytes) -> bytes:
    """Return the id in a row."""
    return row[:OID_BYTES]


def row_crc(row: bytes) -> int:
    """Return the CRC-32 in a row."""
    return int.from_bytes(row[_CRC_AT:_OFFSET_AT], "big")


def row_offset(row: bytes) -> int:
    """Return the offset in a row."""
    return int.from_bytes(row[_OFFSET_AT:], "big")


def row_oids(rows: list[bytes]) -> list[bytes]:
    """Return the ids in some rows."""
    return [row[:OID_BYTES] for row in rows]


def row_offsets(rows: list[bytes]) -> array[int]:
    """Return the offsets in some rows."""
    offsets = array("Q", b"".join(rows))[_OFFSET_AT // 8 :: ROW_BYTES // 8]
    if sys.byteorder == "little":
        offsets.byteswap()
    return offsets


def cut(joined: bytes, length: int) -> list[bytes]:
    """Take joined pieces of the same length apart."""
    return [piece for (piece,) in struct.iter_unpack(f"{length}s", joined)]


def write_index(path: Path, rows: list[bytes], trailer: bytes) -> None:
    """Write a version 2 index of rows that are sorted; `trailer` is the pack's checksum."""
    joined = b"".join(rows)
    firsts = joined[::ROW_BYTES]
    near, far = _offsets(rows, joined)
    body = b"".join(
        (
            _MAGIC,
            struct.pack(">256L", *[bisect_right(firsts, first) for first in range(256)]),
            _column(joined, 0, OID_BYTES),
            _column(joined, _CRC_AT, 4),
            near,
            far,
            trailer,
        )
    )
    write_pack_file(path, body + hashlib.sha1(body, usedforsecurity=False).digest())


def write_pack_file(path: Path, content: bytes) -> None:
    """Write a file that is only read from then on. Nothing is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PACK_MODE)
    try:
        write_all(descriptor, content)
        os.fchmod(descriptor, PACK_MODE)  # whatever the umask
    finally:
        os.close(descriptor)


def _column(joined: bytes, at: int, length: int) -> bytes:
    """Cut the same bytes out of every row. In words of four bytes, whose order does not matter."""
    words = array("I", joined)
    row_words, count = ROW_BYTES // 4, length // 4
    column = array("I", bytes(len(joined) // ROW_BYTES * length))
    for number in range(count):
        column[number::count] = words[at // 4 + number :: row_words]
    return column.tobytes()


def _offsets(rows: list[bytes], joined: bytes) -> tuple[bytes, bytes]:
    """Make the table of offsets, and that of those which do not fit into the first one."""
    near = _column(joined, _OFFSET_AT + 4, 4)
    if not any(_column(joined, _OFFSET_AT, 4)) and max(near[::4], default=0) < 0x80:
        return near, b""
    offsets, far = [], []
    for row in rows:
        offset = row_offset(row)
        if offset >= _FAR_OFFSET:
            far.append(row[_OFFSET_AT:])
            offset = _FAR_OFFSET | (len(far) - 1)
        offsets.append(struct.pack(">L", offset))
    return b"".join(offsets), b"".join(far)
