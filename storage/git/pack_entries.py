"""Entries of packs, read as the objects that they make: their deltas applied, their sums held."""

from __future__ import annotations

import contextlib
from typing import Protocol

from storage.git.content_cache import ContentCache
from storage.git.delta_formats import DELTA_DEPTH_MAX, delta_sizes, patched
from storage.git.errors import PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import TYPE_NAMES, object_id
from storage.git.pack import Pack

SMALL_BYTES_MAX = 4096  # of an object that is read whole rather than held against a sum
DELTA_BYTES_MAX = 256 << 20  # of what is stored as a delta, and made whole to be looked at


class Bases(Protocol):
    """Where the base of a delta is that is in no pack of the delta's."""

    def get(self, oid: bytes, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return type and content of an object."""

    def kind_and_size(self, oid: bytes) -> tuple[int, int]:
        """Return type and size of an object."""


class PackEntries:
    """Reads entries; the contents of those that were read lately are kept in `cache`."""

    def __init__(self, bases: Bases, cache: ContentCache) -> None:
        self._bases = bases
        self._cache = cache

    def read(self, pack: Pack, offset: int, bytes_max: int | None) -> tuple[int, bytes]:
        """Return type and content of the entry at `offset`.

        Raises:
            RepositoryCorruptError: it is damaged, or a base of it is, or is missing.
            PackOutgrownError: it has more than `bytes_max`, or what it is made of has.
        """
        cached = self._cache.get((pack.serial, offset))
        if cached is not None:
            return cached
        deltas: list[tuple[int, int, int]] = []
        at = offset
        while True:
            kind, size, base, data_at = pack.header(at)
            if bytes_max is not None and size > bytes_max:
                _require_entry(pack, at)  # else its size may be the damage
                _require_size(size, bytes_max)
            if base is None:
                _require_type(pack, kind)
                found = kind, pack.inflate(data_at, size)
                self._cache.put((pack.serial, at), found)
                break
            deltas.append((at, data_at, size))
            if len(deltas) > DELTA_DEPTH_MAX:
                raise RepositoryCorruptError(f"{pack.path.name}: a chain of deltas is too long")
            if isinstance(base, bytes):
                inside = pack.find(base)
                if inside is None:
                    found = self._bases.get(base, bytes_max)
                    break
                base = inside
            at = base
            earlier = self._cache.get((pack.serial, at))
            if earlier is not None:
                found = earlier
                break
        for at, data_at, size in reversed(deltas):
            delta = pack.inflate(data_at, size)
            if bytes_max is not None:
                _require_size(delta_sizes(delta)[1], bytes_max)
            found = found[0], patched(found[1], delta)
            self._cache.put((pack.serial, at), found)
        return found

    def kind_and_size(self, pack: Pack, offset: int, oid: bytes) -> tuple[int, int]:
        """Return type and size of the entry at `offset`, which is of the object `oid`.

        Not all of it is inflated. What says so is held against its sum, once for each entry.

        Raises:
            RepositoryCorruptError: it is damaged, or a base of it is, or is missing.
        """
        kind, size, base, data_at = pack.header(offset)
        if base is None and size <= SMALL_BYTES_MAX and not pack.is_ordered:
            # As most commits and tags: quick, where putting a large pack in order takes a while.
            found = self.of_its_name(pack, offset, oid, size)
            if found is not None:
                return found[0], size
        self._require_whole(pack, offset)
        if base is not None:
            size = delta_sizes(pack.beginning(data_at))[1]
        for _ in range(DELTA_DEPTH_MAX):
            if base is None:
                _require_type(pack, kind)
                return kind, size
            if isinstance(base, bytes):
                inside = pack.find(base)
                if inside is None:
                    return self._bases.kind_and_size(base)[0], size
                base = inside
            self._require_whole(pack, base)
            kind, _, base, _ = pack.header(base)
        raise RepositoryCorruptError(f"{pack.path.name}: a chain of deltas is too long")

    def of_its_name(
        self, pack: Pack, offset: int, oid: bytes | None, bytes_max: int
    ) -> tuple[int, bytes] | None:
        """Return type and content of an entry if that is what `oid` names, whatever its sum.

        Without `oid`, what the index names.

        Where it cannot be read in `bytes_max`, or is another object, None.
        """
        with contextlib.suppress(RepositoryCorruptError, PackOutgrownError, KeyError):
            found = self.read(pack, offset, bytes_max)
            if object_id(*found) == (oid or pack.oid_of(offset)):
                return found
        return None

    def _require_whole(self, pack: Pack, offset: int) -> None:
        if pack.is_entry_whole(offset):
            return
        # The sum may be what is damaged.
        if self.of_its_name(pack, offset, None, DELTA_BYTES_MAX) is None:
            raise _damaged(pack)
        pack.note_whole(offset)


def _require_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise PackOutgrownError("an object is too large for memory")


def _require_entry(pack: Pack, offset: int) -> None:
    if not pack.is_entry_whole(offset):
        raise _damaged(pack)


def _damaged(pack: Pack) -> RepositoryCorruptError:
    return RepositoryCorruptError(f"{pack.path.name}: an entry is not as its sum in the index")


def _require_type(pack: Pack, kind: int) -> None:
    if kind not in TYPE_NAMES:
        raise RepositoryCorruptError(f"{pack.path.name}: an entry is of no known type")
