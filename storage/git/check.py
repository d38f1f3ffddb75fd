"""A check of a repository: is everything there that its refs need, and is it what its ids say?

Quick: refs, and whether packs and their indexes belong together. Whole: every object is inflated,
hashed and held against its id, and every link is followed. Memory grows with the number of objects
in the largest pack, some hundred bytes each, and not with their size.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.counted import counted
from storage.git.connectivity import Connectivity
from storage.git.errors import (
    PackInvalidError,
    PackTooLargeError,
    RepositoryCorruptError,
    RepositoryError,
)
from storage.git.indexer import read_pack
from storage.git.object_formats import BLOB, COMMIT, TYPE_NAMES, TYPE_NUMBERS, links_of
from storage.git.objects import ObjectStore
from storage.git.pack import CHUNK_BYTES, Pack
from storage.git.pack_scan import PackLimits
from storage.git.refs import HEADS, show
from storage.git.repository import Repository, is_repository

FAULTS_MAX = 50  # of one repository; a damaged disk has thousands of the same kind
LINKS_REMEMBERED = 200_000
_READ_BYTES = 1 << 20
_LIMITS = PackLimits(objects_max=1 << 32, object_bytes_max=1 << 48, inflated_bytes_floor=1 << 60)
# Not without -k: unreachable objects may be those of a push whose refs are about to move. And no
# `git prune-packed` for a damaged file: it removes whole ones too whose packed copy is damaged.
_ADVICE = "; another copy is whole: stop the server and run 'git repack -a -d -k' to drop this one"
_LOOSE_HEAD = re.compile(rb"(commit|tree|blob|tag) (0|[1-9][0-9]{0,18})\0")


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """What a check found.

    Attributes:
        refs, objects: how many there are; an object that is stored twice counts twice.
        faults: a sentence for each thing that is wrong, naming the ref or object.
        is_whole: whether every object was read.
    """

    refs: int
    objects: int
    faults: tuple[str, ...]
    is_whole: bool

    @property
    def is_sound(self) -> bool:
        return not self.faults


def check_repository(
    path: Path, *, is_whole: bool, links_max: int = LINKS_REMEMBERED, may_fork: bool = False
) -> RepositoryReport:
    """Check the repository at a git directory. Changes nothing; safe while it is in use.

    Of borrowed objects (alternates) only their presence is checked. `links_max`: how many links may
    wait in memory to be looked up. `may_fork` lets a process without threads use two cores.

    Raises nothing for what is wrong with the repository: the report says it.
    """
    check = _Check(is_whole=is_whole, links_max=links_max, may_fork=may_fork)
    try:
        if not is_repository(path):
            check.fault("it is no repository: objects, refs or HEAD are missing")
        else:
            check.run(Repository(path))
    except RepositoryError as error:
        check.fault(str(error))
    except OSError as error:
        check.fault(f"cannot be read: {error.strerror}: {error.filename}")
    return check.report()


class _Links(set[bytes]):
    """What objects link to; what is there is forgotten when there are many."""

    def __init__(self, contains: Callable[[bytes], bool], count_max: int) -> None:
        super().__init__()
        self._contains = contains
        self._room_count = self._count_max = count_max

    def add(self, oid: bytes, /) -> None:
        super().add(oid)
        if len(self) > self._count_max:
            self.forget()

    def update(self, *others: Iterable[bytes]) -> None:
        super().update(*others)
        if len(self) > self._count_max:
            self.forget()

    def forget(self) -> None:
        """Keep only what is missing."""
        present = [oid for oid in self if self._contains(oid)]
        self.difference_update(present)
        self._count_max = self._room_count + 2 * len(self)


@dataclass(slots=True)
class _Check:
    """One check under way."""

    is_whole: bool
    links_max: int
    may_fork: bool
    ref_count: int = 0
    object_count: int = 0
    is_damaged: bool = False
    _faults: list[str] = field(default_factory=list)
    _fault_count: int = 0

    def fault(self, text: str) -> None:
        self._fault_count += 1
        if len(self._faults) < FAULTS_MAX:
            self._faults.append(text)

    def report(self) -> RepositoryReport:
        faults = list(self._faults)
        if more := self._fault_count - len(faults):
            faults.append(f"and {counted(more, 'more fault')} like these")
        return RepositoryReport(self.ref_count, self.object_count, tuple(faults), self.is_whole)

    def run(self, repository: Repository) -> None:
        # Refs first: all that they need was there before them, whatever is pushed meanwhile.
        tips = self._check_refs(repository)
        self._check_files(repository)
        packs = repository.objects.own_packs()
        for pack in packs:
            self._check_index(pack)
        if self.is_whole:
            links = _Links(repository.objects.contains, self.links_max)
            for pack in packs:
                self._check_pack(pack, links, repository.objects)
            self._check_loose(repository, links)
            self._check_links(repository, links, tips)
        else:
            self.object_count = sum(pack.count for pack in packs)
            self.object_count += sum(1 for _ in repository.objects.loose_files())

    # refs

    def _check_refs(self, repository: Repository) -> dict[bytes, bytes]:
        """Check every ref; return name -> oid of those that point at what can be read."""
        snapshot = repository.refs.snapshot()
        for name, reason in repository.refs.broken():
            self.fault(f"ref {show(name)}: {reason}")
        tips = dict(snapshot.values)
        if snapshot.head is not None and snapshot.head_target is None:
            tips[b"HEAD"] = snapshot.head
        self.ref_count = len(tips)
        kinds: dict[bytes, int | None] = {}
        for name, oid in tips.items():
            if oid not in kinds:
                try:
                    kinds[oid] = repository.objects.kind_and_size(oid)[0]
                except RepositoryCorruptError as error:
                    kinds[oid] = None
                    self.fault(f"ref {show(name)}: {error}")
            elif kinds[oid] is None:
                self.fault(f"ref {show(name)}: object {oid.hex()} cannot be read")
            if name.startswith(HEADS) and kinds[oid] not in (COMMIT, None):
                self.fault(f"ref {show(name)}: object {oid.hex()} is not a commit")
        return {name: oid for name, oid in tips.items() if kinds[oid] is not None}

    # files

    def _check_files(self, repository: Repository) -> None:
        for store in _with_alternates(repository.objects):
            if not store.directory.is_dir():
                self.fault(f"the objects that it borrows are gone: {store.directory}")
        names = {path.name for path in (repository.path / "objects/pack").glob("pack-*")}
        known = {pack.path.name for pack in repository.objects.own_packs()}
        for name in sorted(names):
            pack_name = Path(name).with_suffix(".pack").name
            if not name.endswith(".idx") or pack_name in known:
                continue
            if pack_name not in names:
                self.fault(f"{pack_name} is missing; its index is there")
            elif (reason := _why_unreadable(repository.path / "objects/pack" / name)) is not None:
                self.fault(reason)

    def _check_index(self, pack: Pack) -> None:
        """Check an index by itself, and that it is of its pack."""
        name = pack.path.name
        if not pack.is_index_whole():
            self.fault(f"the index of {name} is damaged")
        (version,) = struct.unpack_from(">L", pack.bytes_map, 4)
        if version not in (2, 3):
            self.fault(f"{name} is of version {version}, which nobody reads")
        if pack.said_count != pack.count:
            self.fault(
                f"{name} says that it has {counted(pack.said_count, 'object')}, its index "
                f"{pack.count}: if none is damaged, the care behind the next push writes it anew"
            )
        offsets = pack.offsets()
        if offsets and not 12 <= min(offsets) <= max(offsets) < pack.end:
            self.fault(f"the index of {name} points outside of it")

    # objects

    def _check_pack(self, pack: Pack, links: _Links, objects: ObjectStore) -> None:
        self.object_count += pack.count
        try:
            _read_through(pack.path)
        except OSError as error:
            self.is_damaged = True
            self.fault(f"{pack.path.name} cannot be read: {error.strerror}")
            return
        try:
            found = read_pack(pack.bytes_map, limits=_LIMITS, links=links, may_fork=self.may_fork)
        except PackInvalidError as error:
            if not isinstance(error, PackTooLargeError):  # that is said of the way it is read
                self.fault(f"{pack.path.name}: {error}")
            self._check_one_by_one(pack, links, objects)
            return
        for oid, offset, crc in found:
            if pack.find(oid) != offset:
                self._check_place(pack, offset, oid)
            elif pack.crc(oid) != crc:
                self.fault(f"object {oid.hex()}: {pack.path.name} and its index differ about it")

    def _check_place(self, pack: Pack, offset: int, oid: bytes) -> None:
        """Look into the index for an object that it does not find there; it may be there twice."""
        try:
            indexed = pack.oid_of(offset)
        except KeyError:
            self.is_damaged = True
            self.fault(f"object {oid.hex()}: {pack.path.name} has it, its index does not")
            return
        if indexed != oid:
            self.is_damaged = True
            self.fault(
                f"object {indexed.hex()}: {pack.path.name} has object {oid.hex()} in its place"
            )

    def _check_one_by_one(self, pack: Pack, links: _Links, objects: ObjectStore) -> None:
        """Find which objects of a damaged pack cannot be read. Slow."""
        self.is_damaged = True
        store = ObjectStore.over([pack])
        for oid in pack.oids():
            try:
                _require_content(store, oid, links)
            except RepositoryCorruptError as error:
                self.fault(f"object {oid.hex()}: {error}{_advice(objects, pack, oid, links)}")

    def _check_loose(self, repository: Repository, links: _Links) -> None:
        for path in repository.objects.loose_files():
            self.object_count += 1
            oid = bytes.fromhex(path.parent.name + path.name)
            try:
                _require_loose(path, oid, links)
            except FileNotFoundError:
                self.object_count -= 1  # packed meanwhile
            except (RepositoryCorruptError, zlib.error) as error:
                self.is_damaged = True
                more = ""
                if _is_whole_in_a_pack(repository.objects, oid, links):
                    more = _ADVICE
                self.fault(f"object {oid.hex()} (loose): {error}{more}")

    def _check_links(self, repository: Repository, links: _Links, tips: dict[bytes, bytes]) -> None:
        """If an object is missing anywhere, find the refs that it is missing to."""
        links.forget()
        is_partial = any((repository.path / "objects/pack").glob("*.promisor"))
        if is_partial or not (links or self.is_damaged):
            return
        checker = Connectivity(repository.objects, (), repository.shallow())
        for name, oid in tips.items():
            if self._fault_count >= FAULTS_MAX:
                return
            for lacking in checker.broken_tips({oid}, None).values():
                self.fault(f"ref {show(name)}: {lacking}")


def _advice(objects: ObjectStore, pack: Pack, oid: bytes, links: _Links) -> str:
    """Say what to do about a damaged object of a pack, if it is whole elsewhere."""
    pack.damaged.add(oid)  # it is read from another place now
    try:
        _require_content(objects, oid, links)
    except RepositoryCorruptError:
        pack.damaged.discard(oid)
        return ""
    return _ADVICE


def _is_whole_in_a_pack(objects: ObjectStore, oid: bytes, links: _Links) -> bool:
    """Say whether a pack by itself, of an alternate too, is enough to read the object."""
    for pack in objects.packs():
        if pack.find(oid) is not None:
            with contextlib.suppress(RepositoryCorruptError):
                _require_content(ObjectStore.over([pack]), oid, links)
                return True
    return False


def _with_alternates(store: ObjectStore) -> Iterator[ObjectStore]:
    yield store
    for other in store.alternates:
        yield from _with_alternates(other)


def _why_unreadable(index_path: Path) -> str | None:
    try:
        Pack(index_path)
    except RepositoryCorruptError as error:
        return str(error)
    except FileNotFoundError:  # joined with others meanwhile
        return None
    return None


def _read_through(path: Path) -> None:
    """Read a file once, so that what the disk refuses is an error here, not a signal in its map."""
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        while file.read(_READ_BYTES):
            pass


def _require_content(store: ObjectStore, oid: bytes, links: _Links) -> None:
    """Read a stored object, hold it against its id, and note its links."""
    kind, size = store.kind_and_size(oid)
    if kind != BLOB:
        links.update(links_of(*store.get(oid)))
        return
    digest = hashlib.sha1(b"%b %d\0" % (TYPE_NAMES[kind], size), usedforsecurity=False)
    for piece in store.stream(oid):
        digest.update(piece)
    if digest.digest() != oid:
        raise RepositoryCorruptError("its content is another object's")


def _require_loose(path: Path, oid: bytes, links: _Links) -> None:
    digest = hashlib.sha1(usedforsecurity=False)
    kept: list[bytes] = []
    got = 0
    with path.open("rb") as file:
        pieces = _inflated(iter(lambda: file.read(CHUNK_BYTES), b""))
        first = next(pieces, b"")
        head = _LOOSE_HEAD.match(first)
        if head is None:
            raise RepositoryCorruptError("has no valid head")
        kind = TYPE_NUMBERS[head[1]]
        for piece in itertools.chain((first,), pieces):
            digest.update(piece)
            got += len(piece)
            if kind != BLOB:
                kept.append(piece)
    if got - head.end() != int(head[2]):
        raise RepositoryCorruptError("has another size than its head says")
    if digest.digest() != oid:
        raise RepositoryCorruptError("its content is another object's")
    if kind != BLOB:
        links.update(links_of(kind, b"".join(kept)[head.end() :]))


def _inflated(deflated: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    for data in deflated:
        rest = data
        while rest and not inflater.eof:
            piece = inflater.decompress(rest, CHUNK_BYTES)
            rest = inflater.unconsumed_tail
            if piece:
                yield piece
    if not inflater.eof or inflater.unused_data:
        raise RepositoryCorruptError("ends early, or too late")
