"""The index of a pack, as it is written: where each object is, by its id.

Source: gitformat-pack(5), "Version 2 pack-*.idx files have the following format".
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from bisect import bisect_left
from pathlib import Path

from storage.git.object_formats import OID_BYTES

_MAGIC = b"\377tOc\0\0\0\2"
_FAR_OFFSET = 1 << 31  # this bit of an offset says: look into the table of 64-bit offsets
_CRC_AT, _OFFSET_AT = OID_BYTES, OID_BYTES + 4
ROW_BYTES = OID_BYTES + 4 + 8

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
    offsets = array("Q", b"".join([row[_OFFSET_AT:] for row in rows]))
    if sys.byteorder == "little":
        offsets.byteswap()
    return offsets


def rows_in(data: bytes) -> list[bytes]:
    """Take joined rows apart."""
    return [data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES)]


def write_index(path: Path, rows: list[bytes], trailer: bytes) -> None:
    """Write a version 2 index of rows that are sorted; `trailer` is the pack's checksum."""
    fanout = [bisect_left(rows, bytes([first + 1])) for first in range(255)]
    near, far = _offsets(rows)
    body = b"".join(
        (
            _MAGIC,
            struct.pack(">256L", *fanout, len(rows)),
            b"".join(row_oids(rows)),
            b"".join([row[_CRC_AT:_OFFSET_AT] for row in rows]),
            near,
            far,
            trailer,
        )
    )
    with path.open("wb") as file:
        file.write(body)
        file.write(hashlib.sha1(body, usedforsecurity=False).digest())


def _offsets(rows: list[bytes]) -> tuple[bytes, bytes]:
    """Make the table of offsets, and that of those which do not fit into the first one."""
    if max(row_offsets(rows), default=0) < _FAR_OFFSET:
        return b"".join([row[_OFFSET_AT + 4 :] for row in rows]), b""
    near, far = [], []
    for row in rows:
        offset = row_offset(row)
        if offset >= _FAR_OFFSET:
            far.append(row[_OFFSET_AT:])
            offset = _FAR_OFFSET | (len(far) - 1)
        near.append(struct.pack(">L", offset))
    return b"".join(near), b"".join(far)
