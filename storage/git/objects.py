"""The objects of a repository: packs, loose objects and alternates, behind one lookup.

Reading is safe from any thread. What is on disk may be changed by others at any moment (a push,
`git gc`): a pack that is mapped stays readable after its deletion, and a miss looks again.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from storage.git.content_cache import ContentCache
from storage.git.delta_formats import delta_sizes
from storage.git.errors import ObjectMissingError, RepositoryCorruptError
from storage.git.loose_objects import LooseObjects, loose_chunks, read_loose, read_loose_head
from storage.git.object_formats import EMPTY_TREE, TREE, TYPE_NAMES, object_id
from storage.git.object_links import ObjectLinks
from storage.git.other_copies import OtherCopies
from storage.git.pack import Pack
from storage.git.pack_entries import PackEntries
from storage.git.pack_listing import LISTING_TRIES_MAX, PackListing

ALTERNATE_DEPTH_MAX = 5  # as git's


class ObjectStore:
    """All objects of one `objects` directory and its alternates."""

    def __init__(
        self, directory: Path, cache: ContentCache | None = None, *, alternate_depth: int = 0
    ) -> None:
        self.directory = directory
        self._cache = cache or ContentCache()
        self._alternate_depth = alternate_depth
        self._listing = PackListing()
        self._loose = LooseObjects(directory)
        self._alternates_stamp: tuple[int, int, int] | None = None
        self._alternates: list[ObjectStore] = []
        self.entries = PackEntries(self, self._cache)
        self.links = ObjectLinks(self)
        self._others = OtherCopies(self)
        self.refresh()

    @classmethod
    def over(cls, packs: Iterable[Pack]) -> ObjectStore:
        """Return a store of just these packs, whatever happens to their files."""
        store = cls(Path("/nonexistent"))
        store._listing = PackListing({pack.path.name: pack for pack in packs})
        return store

    # what is there

    def is_current(self) -> bool:
        """Say whether `refresh` would find nothing new. Two calls of the system, and never more."""
        return (
            self._listing.is_current(f"{self.directory}/pack")
            and not self._alternates
            and not os.path.lexists(f"{self.directory}/info/alternates")
        )

    def refresh(self) -> None:
        """See the packs and alternates that came or went since. Cheap when none did."""
        self._refresh_packs()
        self._refresh_alternates()

    def _refresh_packs(self) -> None:
        """List the packs again if their directory changed."""
        before, after = self._listing, self._listing.refreshed(f"{self.directory}/pack")
        if not before.packs.keys() <= after.packs.keys():
            self.links.forget()
        self._listing = after

    def note_pack(self, index_path: Path) -> None:
        """See a pack that was just put here, without listing all of them."""
        self._listing = self._listing.with_pack(index_path)

    def _refresh_alternates(self) -> None:
        path = f"{self.directory}/info/alternates"
        try:
            status = os.stat(path)  # noqa: PTH116 -- asked at every request
        except (FileNotFoundError, NotADirectoryError):
            self._alternates, self._alternates_stamp = [], None
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._alternates_stamp:
            self._alternates = [
                ObjectStore(directory, self._cache, alternate_depth=self._alternate_depth + 1)
                for directory in self._alternate_directories(path)
            ]
            self._alternates_stamp = stamp
        else:
            for store in self._alternates:
                store.refresh()

    def _alternate_directories(self, path: str) -> Iterator[Path]:
        if self._alternate_depth >= ALTERNATE_DEPTH_MAX:
            return
        for line in Path(path).read_bytes().split(b"\n"):
            if line and not line.startswith(b"#"):
                yield self.directory / os.fsdecode(line)

    def add_alternate(self, store: ObjectStore) -> None:
        """Look into `store` too, after this store's own objects (a quarantine's way out)."""
        self._alternates.append(store)
        self._alternates_stamp = None

    @property
    def alternates(self) -> list[ObjectStore]:
        return self._alternates

    def own_packs(self) -> list[Pack]:
        """List the packs, without those of alternates."""
        return list(self._listing.packs.values())

    def packs(self) -> list[Pack]:
        """List the packs, those of alternates too."""
        return [
            *self._listing.packs.values(),
            *(p for store in self._alternates for p in store.packs()),
        ]

    # lookup

    def locate(self, oid: bytes) -> tuple[Pack, int] | None:
        """Find the packed form of an object, without looking at the disk again."""
        for pack in self._listing.packs.values():
            offset = pack.find(oid)
            if offset is not None and oid not in pack.damaged:
                return pack, offset
        for store in self._alternates:
            place = store.locate(oid)
            if place is not None:
                return place
        return None

    def contains(self, oid: bytes) -> bool:
        """Say whether the object exists, packed or loose."""
        return oid == EMPTY_TREE or self._find(oid) is not None

    def _find(self, oid: bytes) -> tuple[Pack, int] | str | None:
        """Find an object's place in a pack, or its own file.

        A miss looks at the disk again, until it was searched for in just what is there: while
        others repack, an object may be in the next pack each time.
        """
        packed = self.locate(oid)
        if packed is not None:  # nearly always
            return packed
        for _ in range(LISTING_TRIES_MAX):
            searched = self._serials()
            found = self.locate(oid) or self._loose_path(oid)
            if found is not None:
                return found
            self._look_again()
            # Not whether this very look saw a change: another thread's may have, just before.
            if self._serials() == searched:
                return None
        return None

    def _serials(self) -> tuple[int, ...]:
        inner = (serial for store in self._alternates for serial in store._serials())  # noqa: SLF001
        return (self._listing.serial, *inner)

    def _look_again(self) -> None:
        self._refresh_packs()
        for store in self._alternates:
            store._look_again()  # noqa: SLF001 -- the same class

    def _loose_path(self, oid: bytes) -> str | None:
        path = self._loose.path_of(oid)
        if path is not None:
            return path
        for store in self._alternates:
            found = store._loose_path(oid)  # noqa: SLF001 -- the same class
            if found is not None:
                return found
        return None

    def loose_paths(self, oid: bytes) -> list[str]:
        """List the files that an object has of its own, those of alternates too."""
        path = self._loose.path_of(oid)
        found = [] if path is None else [path]
        return found + [path for store in self._alternates for path in store.loose_paths(oid)]

    def loose_directories(self) -> frozenset[int]:
        """Return the first bytes of ids that loose objects may have, alternates' too."""
        found = {int(path[-2:], 16) for path in self._loose.directories()}
        for store in self._alternates:
            found |= store.loose_directories()
        return frozenset(found)

    def is_within(self, *, objects_max: int, stored_bytes_max: int) -> bool:
        """Say whether all that is stored, alternates' too, is at most so much.

        Looks at the size of every loose object, up to the bounds.
        """
        packs = self.packs()
        count = sum(pack.count for pack in packs)
        size = sum(len(pack.bytes_map) for pack in packs)
        if count > objects_max or size > stored_bytes_max:
            return False
        for loose_bytes in self._loose_sizes():
            count += 1
            size += loose_bytes
            if count > objects_max or size > stored_bytes_max:
                return False
        return True

    def loose_files(self) -> Iterator[Path]:
        """Yield the files of loose objects, without those of alternates."""
        return self._loose.files()

    def _loose_sizes(self) -> Iterator[int]:
        yield from self._loose.sizes()
        for store in self._alternates:
            yield from store._loose_sizes()  # noqa: SLF001 -- the same class

    def with_prefix(self, digits: str, *, limit_count: int = 2) -> set[bytes]:
        """List ids that begin with these hex digits (at least 2), `limit_count` or a few more."""
        low = bytes.fromhex(digits.ljust(40, "0"))
        high = bytes.fromhex(digits.ljust(40, "f"))
        found: set[bytes] = set()
        for pack in self.packs():
            for oid in pack.between(low, high):
                found.add(oid)
                if len(found) >= limit_count:
                    return found
        for store in (self, *self._alternates):
            found.update(store._loose.with_prefix(digits))  # noqa: SLF001 -- the same class
        return found

    # content

    def get(self, oid: bytes, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return an object's type and content, whole; of many copies, one that is what `oid` names.

        A damaged head of an entry may be another head, and all else in it be right: only the id
        shows that the type is another one, or the base of a delta.

        Raises:
            ObjectMissingError: it is not there.
            RepositoryCorruptError: its stored form is damaged, wherever it is.
            PackOutgrownError: it has more than `bytes_max`, or what it is made of has.
        """
        found = self.read_unchecked(oid, bytes_max)
        return found if object_id(*found) == oid else self._read_elsewhere(oid, bytes_max)

    def _read_elsewhere(self, oid: bytes, bytes_max: int | None) -> tuple[int, bytes]:
        """Return another copy than the first one, which is another object; raises as `get` does."""
        error = RepositoryCorruptError(f"object {oid.hex()} is damaged, or made of a damaged one")
        place = self._find(oid)
        if place is None:
            raise error
        if isinstance(place, str):
            return self._others.of_loose(oid, place, bytes_max, error)
        found = self._others.of_entry(*place, bytes_max, error)
        if object_id(*found) != oid:
            raise error
        return found

    def read_unchecked(self, oid: bytes, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return the first copy of an object that can be read, for a caller that compares it.

        Raises as `get` does.
        """
        while isinstance(place := self._find(oid), str):
            try:
                return read_loose(place, bytes_max)
            except FileNotFoundError:  # packed meanwhile
                continue
            except RepositoryCorruptError as error:
                return self._others.of_loose(oid, place, bytes_max, error)
        if place is not None:
            return self.at(*place, bytes_max)
        if oid == EMPTY_TREE:
            return TREE, b""
        raise ObjectMissingError(oid)

    def get_typed(self, oid: bytes, kind: int, bytes_max: int | None = None) -> bytes:
        """Return the content of an object of a known type.

        Raises:
            RepositoryCorruptError: it is of another type.
            PackOutgrownError: see `get`.
        """
        found, data = self.get(oid, bytes_max)
        if found != kind:
            raise RepositoryCorruptError(f"object {oid.hex()} is of another type than expected")
        return data

    def at(self, pack: Pack, offset: int, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return type and content of the entry at `offset`, its deltas applied.

        Raises:
            RepositoryCorruptError, PackOutgrownError: see `get`.
        """
        try:
            return self.entries.read(pack, offset, bytes_max)
        except RepositoryCorruptError as error:
            return self._others.of_entry(pack, offset, bytes_max, error)

    def kind_and_size(self, oid: bytes) -> tuple[int, int]:
        """Return an object's type and size without inflating all of it, if it is not damaged.

        The packed entries whose heads say so are held against their sums, once each: a damaged
        head may well be another head.

        Raises:
            ObjectMissingError: it is not there.
            RepositoryCorruptError: it is damaged wherever it is.
        """
        while isinstance(place := self._find(oid), str):
            try:
                return read_loose_head(place)
            except FileNotFoundError:  # packed meanwhile
                continue
            except RepositoryCorruptError as error:
                kind, data = self._others.of_loose(oid, place, None, error)
                return kind, len(data)
        if place is None:
            if oid == EMPTY_TREE:
                return TREE, 0
            raise ObjectMissingError(oid)
        try:
            return self.entries.kind_and_size(*place, oid)
        except RepositoryCorruptError as error:
            kind, data = self._others.of_entry(*place, None, error)
            return kind, len(data)

    def size(self, oid: bytes) -> int:
        """Return an object's size as the head of it says; raises as `kind_and_size` does.

        Unlike there, a damaged head is believed: for where little hangs on it.
        """
        place = self.locate(oid)
        if place is not None:
            with contextlib.suppress(RepositoryCorruptError):
                _, size, base, data_at = place[0].header(place[1])
                return size if base is None else delta_sizes(place[0].beginning(data_at))[1]
        return self.kind_and_size(oid)[1]

    def is_delta(self, oid: bytes) -> bool:
        """Say whether an object is stored as a delta."""
        place = self.locate(oid)
        return place is not None and place[0].header(place[1])[2] is not None

    def stream(self, oid: bytes, bytes_max: int | None = None) -> Iterator[bytes]:
        """Yield an object's content in pieces; only a delta's is held in memory whole.

        Raises:
            RepositoryCorruptError: it is damaged; perhaps only after some pieces.
            PackOutgrownError: a delta's has more than `bytes_max`.
        """
        crc = got_bytes = 0
        try:
            for piece in self._pieces(oid, bytes_max):
                crc = zlib.crc32(piece, crc)
                got_bytes += len(piece)
                yield piece
        except RepositoryCorruptError:
            # Another copy goes on where this one ends, if it begins as this one did.
            data = self.get(oid, bytes_max)[1]
            if zlib.crc32(memoryview(data)[:got_bytes]) != crc:
                raise
            yield data[got_bytes:]

    def _pieces(self, oid: bytes, bytes_max: int | None) -> Iterator[bytes]:
        place = self.locate(oid)
        if place is not None:
            pack, offset = place
            kind, size, base, data_at = pack.header(offset)
            if base is None and kind in TYPE_NAMES:
                yield from pack.chunks(data_at, size)
                return
        else:
            loose = self._loose_path(oid)
            if loose is not None:
                with contextlib.suppress(FileNotFoundError):  # packed meanwhile
                    yield from loose_chunks(loose)
                    return
        yield self.get(oid, bytes_max)[1]

    def look_elsewhere(
        self, pack: Pack, oid: bytes, bytes_max: int | None, error: RepositoryCorruptError
    ) -> None:
        """Read an object from another place than this pack from now on.

        Raises:
            RepositoryCorruptError: `error`, when no other place has it whole.
            PackOutgrownError: see `get`.
        """
        self._others.require(pack, oid, bytes_max, error)
