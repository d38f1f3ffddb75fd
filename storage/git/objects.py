"""The objects of a repository: packs, loose objects and alternates, behind one lookup.

Reading is safe from any thread. What is on disk may be changed by others at any moment (a push,
`git gc`): a pack that is mapped stays readable after its deletion, and a miss looks again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from storage.git.errors import ObjectMissingError, PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import (
    EMPTY_TREE,
    OFS_DELTA,
    REF_DELTA,
    TAG,
    TREE,
    TYPE_NUMBERS,
    Commit,
    parse_commit,
    parse_tag,
)
from storage.git.pack import CHUNK_BYTES, SIZE_OUT_OF_BOUND, SIZE_SHIFT_MAX, Pack

RACY_NS = 100_000_000  # a time stamp this young may still change without looking changed
LISTING_TRIES_MAX = 20
DELTA_DEPTH_MAX = 4096  # git's own limit is 4095
ALTERNATE_DEPTH_MAX = 5  # as git's
LINKS_REMEMBERED_MAX = 200_000  # of commits; about 40 MB when each has one parent
COMMIT_LINKS_REMEMBERED_MAX = 1_000  # a commit with more of them is read again
CACHED_OBJECT_BYTES_MAX = 1 << 20  # larger objects are read again
_LOOSE_HEAD_BYTES = 64
_LOOSE_NAME = re.compile(r"[0-9a-f]{38}")
_FAN_OUT = re.compile(r"[0-9a-f]{2}")  # the first byte of an id: a directory of loose objects


class ContentCache:
    """Recently used delta bases, shared by all stores of a process.

    Two generations: what is used survives the turn of the generation, the rest goes. Its size
    stays below `bytes_max`.
    """

    def __init__(self, bytes_max: int = 64 << 20) -> None:
        self._half_bytes_max = bytes_max // 2
        self._young: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._old: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._young_bytes = 0

    def get(self, key: tuple[int, int]) -> tuple[int, bytes] | None:
        """Return (type, content) of an entry, keyed by (serial of the pack, offset)."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: tuple[int, int], value: tuple[int, bytes]) -> None:
        """Remember an entry for a while."""
        size = len(value[1])
        if size > CACHED_OBJECT_BYTES_MAX:
            return
        if self._young_bytes > self._half_bytes_max:
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[key] = value
        self._young_bytes += size


class _Commits(dict[bytes, Commit]):
    """The links of commits that were read, until they are too many."""

    links_count = 0

    def note(self, oid: bytes, commit: Commit) -> None:
        """Remember a commit, unless it alone would fill the place of many."""
        count = 1 + len(commit.parents)
        if count > COMMIT_LINKS_REMEMBERED_MAX:
            return
        if self.links_count + count > LINKS_REMEMBERED_MAX:
            self.clear()
            self.links_count = 0
        self[oid] = commit
        self.links_count += count


@dataclass(frozen=True, slots=True)
class _Listing:
    """The packs of a directory, as they were at a moment: replaced as a whole.

    Two listings of one `serial` have the same packs.
    """

    packs: dict[str, Pack] = field(default_factory=dict)
    stamp: tuple[int, int] | None = None
    seen_ns: int = 0
    serial: int = field(default_factory=itertools.count().__next__)


def _directory_stamp(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _list_packs(directory: Path, known: dict[str, Pack]) -> tuple[dict[str, Pack], bool]:
    """Open the packs of a directory; false when one was gone, or half replaced, meanwhile."""
    try:
        names = {entry.name for entry in os.scandir(directory)}
    except FileNotFoundError:
        return {}, False
    packs: dict[str, Pack] = {}
    is_whole = True
    for name in names:
        if name.endswith(".idx") and name[:-4] + ".pack" in names:
            pack = known.get(name)
            try:
                packs[name] = Pack(directory / name) if pack is None else pack
            except (FileNotFoundError, RepositoryCorruptError):
                is_whole = False
    return packs, is_whole


class ObjectStore:
    """All objects of one `objects` directory and its alternates."""

    def __init__(
        self, directory: Path, cache: ContentCache | None = None, *, alternate_depth: int = 0
    ) -> None:
        self.directory = directory
        self._cache = cache or ContentCache()
        self._alternate_depth = alternate_depth
        self._listing = _Listing()
        self._alternates_stamp: tuple[int, int, int] | None = None
        self._alternates: list[ObjectStore] = []
        self._commits = _Commits()
        self.refresh()

    @classmethod
    def over(cls, packs: Iterable[Pack]) -> ObjectStore:
        """Return a store of just these packs, whatever happens to their files."""
        store = cls(Path("/nonexistent"))
        store._listing = _Listing({pack.path.name: pack for pack in packs})
        return store

    # what is there

    def is_current(self) -> bool:
        """Say whether `refresh` would find nothing new. Two calls of the system, and never more."""
        stamp = _directory_stamp(self.directory / "pack")
        return (
            stamp is not None
            and self._is_settled(stamp)
            and not self._alternates
            and not os.path.lexists(f"{self.directory}/info/alternates")
        )

    def _is_settled(self, stamp: tuple[int, int]) -> bool:
        """Say whether the listing is of a directory with that stamp, and was not made too early."""
        listing = self._listing
        return stamp == listing.stamp and listing.seen_ns - stamp[0] > RACY_NS

    def refresh(self) -> None:
        """See the packs and alternates that came or went since. Cheap when none did."""
        self._refresh_packs()
        self._refresh_alternates()

    def _refresh_packs(self) -> None:
        """List the packs again if their directory changed."""
        pack_directory = self.directory / "pack"
        before = self._listing
        names: frozenset[str] | None = None
        for _ in range(LISTING_TRIES_MAX):
            now_ns = time.time_ns()
            stamp = _directory_stamp(pack_directory)
            if stamp is None:
                if before.stamp is not None:
                    self._listing = _Listing()
                return
            is_settled = now_ns - stamp[0] > RACY_NS
            if self._is_settled(stamp):
                return
            packs, is_whole = _list_packs(pack_directory, before.packs)
            # A directory that changes while it is read may show neither the old packs nor the
            # new: one that was touched just now is read until it looks the same twice.
            is_same, names = names == packs.keys(), frozenset(packs)
            if is_whole and (is_settled or is_same):
                break
        if not before.packs.keys() <= packs.keys():
            self._commits = _Commits()
        if packs.keys() == before.packs.keys():
            self._listing = replace(before, stamp=stamp, seen_ns=now_ns)
        else:
            self._listing = _Listing(packs, stamp, now_ns)

    def note_pack(self, index_path: Path) -> None:
        """See a pack that was just put here, without listing all of them."""
        listing = self._listing
        packs = {index_path.name: Pack(index_path), **listing.packs}
        self._listing = _Listing(packs, listing.stamp, 0)

    def _refresh_alternates(self) -> None:
        path = self.directory / "info" / "alternates"
        try:
            status = path.stat()
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

    def _alternate_directories(self, path: Path) -> Iterator[Path]:
        if self._alternate_depth >= ALTERNATE_DEPTH_MAX:
            return
        for line in path.read_bytes().split(b"\n"):
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
            if offset is not None:
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
        digits = oid.hex()
        path = f"{self.directory}/{digits[:2]}/{digits[2:]}"
        if os.path.exists(path):  # noqa: PTH110 -- ten times as fast as pathlib, and it is hot
            return path
        for store in self._alternates:
            found = store._loose_path(oid)  # noqa: SLF001 -- the same class
            if found is not None:
                return found
        return None

    def loose_directories(self) -> frozenset[int]:
        """Return the first bytes of ids that loose objects may have, alternates' too."""
        found = {int(path[-2:], 16) for path in self._loose_directories()}
        for store in self._alternates:
            found |= store.loose_directories()
        return frozenset(found)

    def _loose_directories(self) -> list[str]:
        try:
            names = os.listdir(self.directory)  # noqa: PTH208 -- asked at every fetch
        except FileNotFoundError:
            return []
        return [f"{self.directory}/{name}" for name in names if _FAN_OUT.fullmatch(name)]

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
        for directory in self._loose_directories():
            with contextlib.suppress(FileNotFoundError):
                yield from (p for p in Path(directory).iterdir() if _LOOSE_NAME.fullmatch(p.name))

    def _loose_sizes(self) -> Iterator[int]:
        for path in self._loose_directories():
            with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.stat().st_size
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
        for directory in (self.directory, *(store.directory for store in self._alternates)):
            with contextlib.suppress(FileNotFoundError):
                for path in (directory / digits[:2]).iterdir():
                    name = path.name
                    if len(name) == 38 and name.startswith(digits[2:]):
                        found.add(bytes.fromhex(digits[:2] + name))
        return found

    # content

    def get(self, oid: bytes, bytes_max: int | None = None) -> tuple[int, bytes]:
        """Return an object's type and content, whole.

        Raises:
            ObjectMissingError: it is not there.
            RepositoryCorruptError: its stored form is damaged.
            PackOutgrownError: it has more than `bytes_max`, or what it is made of has.
        """
        while isinstance(place := self._find(oid), str):
            with contextlib.suppress(FileNotFoundError):  # packed meanwhile
                if bytes_max is not None:
                    _require_size(_read_loose_head(place)[1], bytes_max)
                return _read_loose(place)
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
            PackOutgrownError: see `get`.
        """
        cached = self._cache.get((pack.serial, offset))
        if cached is not None:
            return cached
        deltas: list[tuple[int, int, int]] = []
        at = offset
        while True:
            kind, size, base, data_at = pack.header(at)
            if bytes_max is not None:
                _require_size(size, bytes_max)
            if base is None:
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
        """Return an object's type and size without reading all of it.

        Raises:
            ObjectMissingError: it is not there.
        """
        while isinstance(place := self._find(oid), str):
            with contextlib.suppress(FileNotFoundError):  # packed meanwhile
                return _read_loose_head(place)
        if place is None:
            if oid == EMPTY_TREE:
                return TREE, 0
            raise ObjectMissingError(oid)
        pack, offset = place
        kind, size, base, data_at = pack.header(offset)
        if base is not None:
            size = delta_sizes(pack.beginning(data_at))[1]
        for _ in range(DELTA_DEPTH_MAX):
            if base is None:
                return kind, size
            if isinstance(base, bytes):
                inside = pack.find(base)
                if inside is None:
                    return self.kind_and_size(base)[0], size
                base = inside
            kind, _, base, _ = pack.header(base)
        raise RepositoryCorruptError(f"{pack.path.name}: a chain of deltas is too long")

    def stream(self, oid: bytes) -> Iterator[bytes]:
        """Yield an object's content in pieces; only a delta's is held in memory whole."""
        place = self.locate(oid)
        if place is not None:
            pack, offset = place
            kind, _, base, data_at = pack.header(offset)
            if base is None and kind not in (OFS_DELTA, REF_DELTA):
                yield from pack.chunks(data_at)
                return
        else:
            loose = self._loose_path(oid)
            if loose is not None:
                with contextlib.suppress(FileNotFoundError):  # packed meanwhile
                    yield from _loose_chunks(loose)
                    return
        yield self.get(oid)[1]

    # links, remembered

    def commit(self, oid: bytes, bytes_max: int | None = None) -> Commit:
        """Return the links of a commit.

        Raises:
            RepositoryCorruptError: it is missing, damaged or no commit.
            PackOutgrownError: see `get`.
        """
        found = self._commits.get(oid)
        if found is None:
            kind, data = self.get(oid, bytes_max)
            if kind != 1:
                raise RepositoryCorruptError(f"object {oid.hex()} is not a commit")
            found = parse_commit(data)
            self._commits.note(oid, found)
        return found

    def peel(self, oid: bytes) -> tuple[int, bytes]:
        """Follow annotated tags to what they name in the end: (type, oid).

        Raises:
            RepositoryCorruptError: an object on the way is missing or damaged.
        """
        kind = self.kind_and_size(oid)[0]
        while kind == TAG:
            oid, kind = parse_tag(self.get_typed(oid, TAG))
            if kind != TAG:
                kind = self.kind_and_size(oid)[0]
        return kind, oid


def _require_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise PackOutgrownError("an object is too large for memory")


def delta_sizes(delta: bytes) -> tuple[int, int]:
    """Read the two sizes at the head of a delta: of its base and of its result.

    Raises:
        RepositoryCorruptError: it ends before them, or one is none.
    """
    try:
        byte = delta[0]
        at = 1
        base, shift = byte & 127, 7
        while byte & 128 and shift <= SIZE_SHIFT_MAX:
            byte = delta[at]
            at += 1
            base |= (byte & 127) << shift
            shift += 7
        if byte & 128:
            raise RepositoryCorruptError(SIZE_OUT_OF_BOUND)
        byte = delta[at]
        result, shift = byte & 127, 7
        while byte & 128 and shift <= SIZE_SHIFT_MAX:
            at += 1
            byte = delta[at]
            result |= (byte & 127) << shift
            shift += 7
        if byte & 128:
            raise RepositoryCorruptError(SIZE_OUT_OF_BOUND)
    except IndexError as error:
        raise RepositoryCorruptError("a delta is too short") from error
    return base, result


def patched(base: bytes, delta: bytes) -> bytes:
    """Apply a delta to its base.

    Raises:
        RepositoryCorruptError: the delta does not fit the base.
    """
    try:
        pieces = apply_delta(base, delta)
    except ApplyDeltaError as error:
        raise RepositoryCorruptError(f"a delta does not apply: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_loose(path: str) -> tuple[int, bytes]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            data = zlib.decompress(file.read())
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    kind, size, start = _loose_head(data[:_LOOSE_HEAD_BYTES], path)
    if len(data) - start != size:
        raise RepositoryCorruptError(f"loose object {path[-41:]} has the wrong size")
    return kind, data[start:]


def _loose_head(head: bytes, path: str) -> tuple[int, int, int]:
    stop = head.find(b"\0")
    name, _, size = head[: max(stop, 0)].partition(b" ")
    if name not in TYPE_NUMBERS or not size.isdigit():
        raise RepositoryCorruptError(f"loose object {path[-41:]} has no valid head")
    return TYPE_NUMBERS[name], int(size), stop + 1


def _read_loose_head(path: str) -> tuple[int, int]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            head = zlib.decompressobj().decompress(file.read(4096), _LOOSE_HEAD_BYTES)
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    return _loose_head(head, path)[:2]


def _loose_chunks(path: str) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    is_first = True
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            while rest := file.read(CHUNK_BYTES):
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, CHUNK_BYTES)
                    rest = inflater.unconsumed_tail
                    if is_first and piece:
                        piece = piece[_loose_head(piece[:_LOOSE_HEAD_BYTES], path)[2] :]
                        is_first = False
                    if piece:
                        yield piece
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
