"""Take in a push's objects: quarantined, indexed, checked, and only then part of the store.

Source: git's tmp-objdir.c; builtin/receive-pack.c, "unpack" and "check connected".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from storage.files import sync_in_order
from storage.git.connectivity import Connectivity
from storage.git.errors import PackInvalidError, PackOutgrownError, RepositoryError
from storage.git.fsck import FsckRules, Severity
from storage.git.fsck_files import check_files
from storage.git.indexer import IndexedPack, Unwritten, index_pack
from storage.git.locks import QUARANTINE_PREFIX, STAGED_INDEX_PREFIX, STAGED_PACK_PREFIX
from storage.git.object_formats import COMMIT, TYPE_NAMES
from storage.git.objects import ObjectStore
from storage.git.pack import Pack
from storage.git.pack_keeps import PackKeeps
from storage.git.pack_links import (
    DIRECTORY,
    QUARANTINED_SUFFIX,
    encoded_links,
    keep_links,
    write_quarantined_links,
)
from storage.git.pack_scan import PackLimits
from storage.git.refs import RefStore
from storage.git.repository import Repository
from storage.git.sharing import Sharing

SPOOL_NAME = "tmp_pack_incoming"
TIDIED_UP = "somebody tidied up meanwhile: push again"  # by `git prune --expire=now`, for instance


class StagedPack:
    """A small pack on its way into the store: no quarantine is made for it.

    Its files lie beside the stored packs, under names that nobody looks at: git takes them for what
    a crash left, and so does `forget_locks`.

    Attributes:
        name: hex digits that will stand behind `pack-`; empty as long as there is nothing to keep.
        links: the record for `pack_links`, for when it is taken in.
    """

    def __init__(self, repository: Path, content: bytes) -> None:
        digits = os.urandom(6).hex()
        directory = repository / "objects/pack"
        self.path = directory / f"{STAGED_PACK_PREFIX}{digits}"
        self.unwritten = Unwritten(content, directory / f"{STAGED_INDEX_PREFIX}{digits}")
        self.name = ""
        self.links = b""

    def take_in(self, sharing: Sharing, keeps: PackKeeps | None = None) -> Migrated:
        """Make it part of the store, with the bits of `sharing`; `keeps` gets its `.keep` file.

        Raises:
            OSError: the disk is full, or something like it.
        """
        if not self.name:
            return Migrated(set(), [])
        directory = self.path.parent
        final = directory / f"pack-{self.name}.idx"
        if keeps is not None:
            keeps.put(final)
        # An index makes its pack visible, so it moves last.
        for path, target in ((self.path, final.with_suffix(".pack")), (self._index_path, final)):
            sharing.apply(path)
            path.rename(target)
        if self.links:  # a cache: nobody waits for it to be durable
            keep_links(directory.parent, final.stem, self.links, sharing)
        return Migrated({directory}, [final])

    @property
    def _index_path(self) -> Path:
        return self.unwritten.index_path

    def discard(self) -> None:
        """Drop it; a second call is fine."""
        for path in (self.path, self._index_path):
            path.unlink(missing_ok=True)


class IngestTask(msgspec.Struct, frozen=True, kw_only=True):
    """What to take in; can travel to another process.

    Attributes:
        repository: its git directory.
        quarantine: the quarantine's directory, with the spooled pack in it; None when nothing but
            known objects are to be checked.
        tips: raw oids that refs are to point at.
        shallow: raw oids that the pusher has no parents of.
        fsck: message id -> severity, or None to check only links.
        memory_bytes_max: see `PackLimits`.
    """

    repository: str
    quarantine: str | None
    tips: list[bytes]
    shallow: list[bytes] = []
    fsck: dict[str, str] | None = None
    fsck_skip: list[bytes] = []
    objects_max: int = 5_000_000
    object_bytes_max: int = 2 << 30
    memory_bytes_max: int | None = None


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """How it went.

    Attributes:
        error, unpack_status: why the pack was refused as a whole, for the side band and for the
            report; None when it was not.
        broken: raw oid of a tip -> what it lacks.
        warnings: fsck's findings that do not refuse.
        object_count, delta_count, completed_count: of the pack.
        new_borders: of `shallow`, those that are here now, and whose parents are not.
        shallow_tips: the tips that are complete only if the history may end at those.
    """

    error: str | None = None
    unpack_status: str = "ok"
    broken: dict[bytes, str] = {}
    warnings: list[str] = []
    object_count: int = 0
    delta_count: int = 0
    completed_count: int = 0
    new_borders: list[bytes] = []
    shallow_tips: list[bytes] = []


def make_quarantine(repository: Path) -> Path:
    """Make a place for incoming objects that nothing else looks into."""
    quarantine = repository / "objects" / f"{QUARANTINE_PREFIX}{os.urandom(6).hex()}"
    quarantine.mkdir(mode=0o700)
    (quarantine / "pack").mkdir()
    return quarantine


def write_loose(objects: Path, kind: int, data: bytes) -> bytes:
    """Write a loose object below a directory of objects, and sync its file; return its id."""
    whole = b"%b %d\0%b" % (TYPE_NAMES[kind], len(data), data)
    oid = hashlib.sha1(whole, usedforsecurity=False).digest()
    path = objects / oid.hex()[:2] / oid.hex()[2:]
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(zlib.compress(whole))
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)
    return oid


def discard_quarantine(quarantine: Path) -> None:
    """Drop incoming objects; a second call is fine."""
    shutil.rmtree(quarantine, ignore_errors=True)


class Migrated(NamedTuple):
    """What a quarantine became.

    Attributes:
        directories: have new entries; sync them before a ref may point there.
        indexes: of the packs that came.
    """

    directories: set[Path]
    indexes: list[Path]


def migrate_quarantine(
    quarantine: Path, sharing: Sharing, keeps: PackKeeps | None = None, *, has_pack: bool
) -> Migrated:
    """Make incoming objects part of the store, with the bits of `sharing`; the quarantine goes.

    `keeps` gets the `.keep` files of its packs. `has_pack`: one was indexed there.

    Raises:
        FileNotFoundError: what was there is gone, as `git prune --expire=now` removes it.
        OSError: the disk is full, or something like it.
    """
    objects = quarantine.parent
    touched: set[Path] = set()
    indexes = []
    files = [
        f"{directory}/{name}"
        for directory, _, names in os.walk(quarantine)
        for name in names
        if not name.startswith("tmp_")
    ]
    if has_pack and not any(f"{name[:-4]}.pack" in files for name in files if name[-4:] == ".idx"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(quarantine))
    # An index makes its pack visible, so it moves last; loose objects have no such order.
    for path in map(Path, sorted(files, key=lambda path: path.endswith(".idx"))):
        if path.suffix == QUARANTINED_SUFFIX:  # a cache: nobody waits for it to be durable
            _keep_record(path, objects / DIRECTORY / path.stem, sharing)
            continue
        target = objects / path.relative_to(quarantine)
        if target.parent not in touched:
            if not target.parent.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                sharing.apply(target.parent)
                touched.add(objects)
            touched.add(target.parent)
        if keeps is not None and path.suffix == ".pack":
            keeps.put(target)
        sharing.apply(path)
        path.rename(target)
        if target.suffix == ".idx":
            indexes.append(target)
    try:
        (quarantine / "pack").rmdir()
        quarantine.rmdir()
    except OSError:  # loose objects had directories, or something has been left
        shutil.rmtree(quarantine, ignore_errors=True)
    return Migrated(touched, indexes)


def _keep_record(path: Path, target: Path, sharing: Sharing) -> None:
    with contextlib.suppress(OSError):
        sharing.apply(path)
    try:
        path.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            sharing.apply(target.parent)
            path.rename(target)


def ingest(
    task: IngestTask,
    repository: Repository | None = None,
    *,
    may_fork: bool = False,
    staged: StagedPack | None = None,
) -> Ingested:
    """Index and check what is in a quarantine, and sync it. Blocking, and heavy for large packs.

    `may_fork` lets a process without threads use two cores. `staged` is the pack when there is no
    quarantine: it gets its files when all of it is indexed.

    Raises:
        PackOutgrownError: it takes more than `memory_bytes_max`; the quarantine is as it was.
    """
    repository = repository or Repository(Path(task.repository))
    try:
        return _ingest(task, repository, staged, may_fork=may_fork)
    except PackOutgrownError:
        raise
    except PackInvalidError as error:
        return Ingested(error=str(error), unpack_status=error.unpack_status)
    except RepositoryError as error:
        return Ingested(error=str(error), unpack_status="index-pack abnormal exit")
    except FileNotFoundError:
        return Ingested(error=f"cannot store the pack: {TIDIED_UP}", unpack_status=TIDIED_UP)
    except OSError as error:
        reason = error.strerror or "input/output error"
        return Ingested(error=f"cannot store the pack: {reason}", unpack_status=reason)
    except MemoryError:
        return Ingested(error="out of memory", unpack_status="index-pack abnormal exit")


def _ingest(
    task: IngestTask, repository: Repository, staged: StagedPack | None, *, may_fork: bool
) -> Ingested:
    pack = None
    if task.quarantine is not None or staged is not None:
        pack = _index(task, staged, repository.objects, may_fork=may_fork)

    def whole() -> ObjectStore:
        return repository.objects if pack is None else _with_stored(pack, repository.objects)

    shallow, trusted = repository.shallow(), trusted_oids(repository)
    cut = [oid for oid in task.shallow if oid not in shallow]
    borders = _lacking_parents(whole(), cut) if cut else []

    def broken_with(ends: set[bytes]) -> dict[bytes, str]:
        checker = Connectivity(repository.objects, trusted, ends, whole)
        return checker.broken_tips(task.tips, pack)

    def judge() -> tuple[dict[bytes, str], list[bytes]]:
        broken = broken_with({*shallow, *borders})
        if not borders:
            return broken, []
        without = broken_with(set(shallow))
        return broken, [oid for oid in without if oid not in broken]

    files = (pack.index_path, pack.path) if pack is not None else ()
    broken, shallow_tips = sync_in_order(files, judge)
    if pack is None:
        return Ingested(broken=broken, new_borders=borders, shallow_tips=shallow_tips)
    return Ingested(
        broken=broken,
        new_borders=borders,
        shallow_tips=shallow_tips,
        warnings=pack.warnings,
        object_count=len(pack.oids),
        delta_count=pack.delta_count,
        completed_count=len(pack.completed),
    )


def _with_stored(pack: IndexedPack, stored: ObjectStore) -> ObjectStore:
    store = ObjectStore.over([Pack(pack.index_path, pack.path)])
    store.add_alternate(stored)
    return store


def _index(
    task: IngestTask, staged: StagedPack | None, bases: ObjectStore, *, may_fork: bool
) -> IndexedPack | None:
    rules = None
    if task.fsck is not None:
        severities = {name: Severity(value) for name, value in task.fsck.items()}
        rules = FsckRules(severities, frozenset(task.fsck_skip))
    limits = PackLimits(
        objects_max=task.objects_max,
        object_bytes_max=task.object_bytes_max,
        memory_bytes_max=task.memory_bytes_max,
    )
    if staged is not None:
        path, unwritten = staged.path, staged.unwritten
    else:
        assert task.quarantine is not None
        path, unwritten = Path(task.quarantine) / "pack" / SPOOL_NAME, None
    pack = index_pack(
        path, bases=bases, limits=limits, rules=rules, may_fork=may_fork, unwritten=unwritten
    )
    if not pack.oids:
        pack.path.unlink()
        pack.index_path.unlink()
        return None
    if rules is not None and pack.special_files:
        store = _with_stored(pack, bases)
        is_partial = any((Path(task.repository) / "objects/pack").glob("*.promisor"))
        pack.warnings += check_files(store, pack.special_files, rules, is_partial=is_partial)
    roots, outside = pack.closure.all_roots() | pack.completed, pack.closure.all_outside()
    if staged is not None:
        staged.name, staged.links = pack.name, encoded_links(roots, outside)
    else:
        write_quarantined_links(pack.path, roots, outside)
    return pack


def _lacking_parents(store: ObjectStore, oids: Iterable[bytes]) -> list[bytes]:
    """Return the commits that are here without a parent.

    A pusher names all borders that it has: those of other histories have nothing to do with this.
    """
    return [
        oid
        for oid in oids
        if store.contains(oid)
        and store.kind_and_size(oid)[0] == COMMIT
        and not all(map(store.contains, store.links.commit(oid).parents))
    ]


def trusted_oids(repository: Repository) -> set[bytes]:
    """Return what all refs point at, those of alternates too: complete histories."""
    snapshot = repository.refs.snapshot()
    trusted = set(snapshot.values.values())
    if snapshot.head is not None:
        trusted.add(snapshot.head)
    for store in repository.objects.alternates:
        trusted.update(RefStore(store.directory.parent).snapshot().values.values())
    return trusted
