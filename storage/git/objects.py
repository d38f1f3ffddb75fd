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

from storage.git.commit_links import CommitLinks
from storage.git.content_cache import ContentCache
from storage.git.delta_formats import DELTA_DEPTH_MAX, delta_sizes, patched
from storage.git.errors import ObjectMissingError, PackOutgrownError, RepositoryCorruptError
from storage.git.loose_objects import LooseObjects, loose_chunks, read_loose, read_loose_head
from storage.git.object_formats import (
    COMMIT,
    EMPTY_TREE,
    TAG,
    TREE,
    TYPE_NAMES,
    Commit,
    object_id,
    parse_commit,
    parse_tag,
)
from storage.git.other_copies import OtherCopies
from storage.git.pack import Pack
from storage.git.pack_listing import LISTING_TRIES_MAX, PackListing

ALTERNATE_DEPTH_MAX = 5  # as git's
LINKS_BYTES_MAX = 16 << 20  # of the head of a commit or tag, which says what it links to
SMALL_BYTES_MAX = 4096  # of an object that is read whole rather than held against a sum
DELTA_BYTES_MAX = 256 << 20  # of a commit or tag that is stored as a delta: it is made whole


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
        self._commits = CommitLinks()
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
            self._commits = CommitLinks()
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
        """Return an object's type and content, whole; of many copies, one that can be read.

        Raises:
            ObjectMissingError: it is not there.
            RepositoryCorruptError: its stored form is damaged, wherever it is.
            PackOutgrownError: it has more than `bytes_max`, or what it is made of has.
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
            return self._entry(pack, offset, bytes_max)
        except RepositoryCorruptError as error:
            return self._others.of_entry(pack, offset, bytes_max, error)

    def _entry(self, pack: Pack, offset: int, bytes_max: int | None) -> tuple[int, bytes]:
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
                    found = self.get(base, bytes_max)
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
            return self._kind_and_size_at(*place, oid)
        except RepositoryCorruptError as error:
            kind, data = self._others.of_entry(*place, None, error)
            return kind, len(data)

    def _kind_and_size_at(self, pack: Pack, offset: int, oid: bytes) -> tuple[int, int]:
        kind, size, base, data_at = pack.header(offset)
        if base is None and size <= SMALL_BYTES_MAX and not pack.is_ordered:
            # As most commits and tags: quick, where putting a large pack in order takes a while.
            found = self.entry_of_its_name(pack, offset, oid, size)
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
                    return self.kind_and_size(base)[0], size
                base = inside
            self._require_whole(pack, base)
            kind, _, base, _ = pack.header(base)
        raise RepositoryCorruptError(f"{pack.path.name}: a chain of deltas is too long")

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

    def _require_whole(self, pack: Pack, offset: int) -> None:
        if pack.is_entry_whole(offset):
            return
        # The sum may be what is damaged.
        if self.entry_of_its_name(pack, offset, None, DELTA_BYTES_MAX) is None:
            raise _damaged(pack)
        pack.note_whole(offset)

    def entry_of_its_name(
        self, pack: Pack, offset: int, oid: bytes | None, bytes_max: int
    ) -> tuple[int, bytes] | None:
        """Return type and content of an entry if that is what `oid` names, whatever its sum.

        Without `oid`, what the index names.

        Where it cannot be read in `bytes_max`, or is another object, None.
        """
        with contextlib.suppress(RepositoryCorruptError, PackOutgrownError, KeyError):
            found = self._entry(pack, offset, bytes_max)
            if object_id(*found) == (oid or pack.oid_of(offset)):
                return found
        return None

    def get_checked(self, oid: bytes, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return what `get` does, held against the id; raises as that does."""
        found = self.get(oid, bytes_max)
        if object_id(*found) != oid:
            error = RepositoryCorruptError(
                f"object {oid.hex()} is damaged, or made of a damaged one"
            )
            place = self._find(oid)
            if isinstance(place, str):
                return self._others.of_loose(oid, place, bytes_max, error)
            if place is not None:
                found = self._others.of_entry(*place, bytes_max, error)
            if object_id(*found) != oid:
                raise error
        return found

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

    # links, remembered

    def commit(self, oid: bytes, bytes_max: int | None = None) -> Commit:
        """Return the links of a commit.

        Raises:
            RepositoryCorruptError: it is missing, damaged or no commit.
            PackOutgrownError: see `get`.
        """
        found = self._commits.get(oid)
        if found is None:
            found = parse_commit(self._links_of(oid, COMMIT, bytes_max))
            self._commits.note(oid, found)
        return found

    def tag(self, oid: bytes) -> tuple[bytes, int]:
        """Return what an annotated tag names, and as what type; raises as `commit` does."""
        return parse_tag(self._links_of(oid, TAG))

    def _links_of(self, oid: bytes, kind: int, bytes_max: int | None = None) -> bytes:
        """Return what a commit or tag begins with, at least up to the end of its links.

        Its words behind them may be as many as somebody likes, unless it is stored as a delta of
        more than `DELTA_BYTES_MAX`; links of more than `LINKS_BYTES_MAX` are none.
        """
        try:
            return self.get_typed(oid, kind, bytes_max or LINKS_BYTES_MAX)
        except PackOutgrownError:
            if bytes_max is not None:
                raise
        head = bytearray()
        with contextlib.suppress(PackOutgrownError):
            for piece in self.stream(oid, DELTA_BYTES_MAX):
                head += piece
                if len(head) >= LINKS_BYTES_MAX:
                    break
        end = head.find(b"\n\n") + 1
        if not end or self.kind_and_size(oid)[0] != kind:
            raise RepositoryCorruptError(f"object {oid.hex()} has no links that can be read")
        return bytes(head[:end])

    def peel(self, oid: bytes) -> tuple[int, bytes]:
        """Follow annotated tags to what they name in the end: (type, oid).

        Raises:
            RepositoryCorruptError: an object on the way is missing or damaged.
        """
        kind = self.kind_and_size(oid)[0]
        while kind == TAG:
            oid, kind = self.tag(oid)
            if kind != TAG:
                kind = self.kind_and_size(oid)[0]
        return kind, oid


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
