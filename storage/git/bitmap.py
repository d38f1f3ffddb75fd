"""Reachability bitmaps that git left beside a pack: is all of the pack reachable from some wants?

Source: gitformat-bitmap(5), version 1; EWAH as in its appendix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from storage.git.errors import RepositoryCorruptError
from storage.git.object_formats import COMMIT, TAG, parse_tag
from storage.git.objects import ObjectStore
from storage.git.pack import Pack

_HEAD = struct.Struct(">4sHHL20s")
_ENTRY = struct.Struct(">LBB")
_TYPE_BITMAP_COUNT = 4  # commits, trees, blobs, tags
_CHAIN_MAX = 160  # git's own is 160


def reaches_all(objects: ObjectStore, pack: Pack, wants: Iterable[bytes]) -> bool:
    """Say whether the wants reach every object of a pack, and nothing outside of it.

    False also when the bitmaps cannot tell.
    """
    try:
        data = pack.path.with_suffix(".bitmap").read_bytes()
        bitmaps = _Bitmaps(data, pack)
        found: int = 0
        for want in wants:
            found |= _reached(objects, pack, bitmaps, want)
    except (OSError, struct.error, IndexError, KeyError, RepositoryCorruptError):
        return False
    every: int = (1 << pack.count) - 1
    return bool((found & every) == every)


def _reached(objects: ObjectStore, pack: Pack, bitmaps: _Bitmaps, oid: bytes) -> int:
    found = 0
    while True:
        offset = pack.find(oid)
        if offset is None:
            raise KeyError(oid)
        kind, data = objects.at(pack, offset)
        if kind == COMMIT:
            return found | bitmaps.of(oid)
        if kind != TAG:
            raise KeyError(oid)
        found |= 1 << pack.order_of(offset)
        oid = parse_tag(data)[0]


class _Bitmaps:
    """The entries of one bitmap file; each is inflated only when it is asked for."""

    def __init__(self, data: bytes, pack: Pack) -> None:
        magic, version, _, count, checksum = _HEAD.unpack_from(data)
        if magic != b"BITM" or version != 1 or checksum != pack.trailer:
            raise KeyError("not this pack's bitmap")
        at = _HEAD.size
        for _ in range(_TYPE_BITMAP_COUNT):
            at = _skip(data, at)
        self._data = data
        self._places: list[tuple[int, int]] = []  # (where the bits are, distance of the xor base)
        self._entries: dict[bytes, int] = {}
        for entry in range(count):
            rank, distance, _ = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            self._entries[pack.oid_at(rank)] = entry
            self._places.append((at, distance))
            at = _skip(data, at)

    def of(self, commit: bytes) -> int:
        """Return what a commit reaches, as bits in the order of the pack.

        Raises:
            KeyError: it has no bitmap.
        """
        entry = self._entries[commit]
        bits = 0
        for _ in range(_CHAIN_MAX):
            at, distance = self._places[entry]
            bits ^= _inflate(self._data, at)
            if not distance:
                return bits
            entry -= distance
        raise KeyError(commit)


def _skip(data: bytes, at: int) -> int:
    (words,) = struct.unpack_from(">L", data, at + 4)
    end: int = at + 8 + 8 * words + 4
    return end


def _inflate(data: bytes, at: int) -> int:
    """Turn one EWAH bitmap into an integer, lowest bit first."""
    (count,) = struct.unpack_from(">L", data, at + 4)
    words = struct.unpack_from(f">{count}Q", data, at + 8)
    pieces: list[bytes] = []
    number = 0
    while number < count:
        marker = words[number]
        number += 1
        run = (marker >> 1) & 0xFFFFFFFF
        literals = marker >> 33
        pieces.append((b"\xff" if marker & 1 else b"\0") * (8 * run))
        taken = words[number : number + literals]
        pieces.append(struct.pack(f"<{len(taken)}Q", *taken))
        number += literals
    return int.from_bytes(b"".join(pieces), "little")
