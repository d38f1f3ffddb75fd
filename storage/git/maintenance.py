"""Keep a repository quick: few packs, few loose refs. Never in the way of a push.

Every push adds a pack. When there are many, those of a kind are written together into one, so that
each object is rewritten only as often as the repository doubles. Nothing that was stored is lost:
unreachable objects move along. Packs that mean more than their objects stay: those that a file
beside them or a multi-pack-index speaks of.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from storage.files import sync_directory, sync_file
from storage.git.errors import PackInvalidError, RepositoryCorruptError
from storage.git.indexer import index_pack
from storage.git.ingest import (
    SPOOL_NAME,
    discard_quarantine,
    make_quarantine,
    migrate_quarantine,
)
from storage.git.multi_pack_index import packs_of_indexes
from storage.git.objects import ObjectStore
from storage.git.pack import Pack
from storage.git.pack_links import forget_links, write_links
from storage.git.pack_scan import PackLimits
from storage.git.pack_writer import PackWriter
from storage.git.packed_refs import pack_loose_refs
from storage.git.repository import Repository
from storage.git.selection import Selection

PACK_COUNT_MAX = 16
LOOSE_REF_COUNT_MAX = 64
_BUFFER_BYTES = 1 << 20
_SUFFIXES = (".idx", ".pack", ".rev", ".bitmap")
# Kept by its owner; from elsewhere, where what its objects link to may be; nobody's, with the time
# of each object: joined with others, such a pack would be one of a usual kind.
_MARKS = (".keep", ".promisor", ".mtimes")


def may_need_care(repository: Repository) -> bool:
    """Say whether `needs_care` is worth asking, without looking at the disk."""
    refs = repository.refs.known_count
    return (
        len(repository.objects.own_packs()) > PACK_COUNT_MAX
        or bool(_miscounted(repository))
        or refs is None
        or refs > LOOSE_REF_COUNT_MAX
    )


def needs_care(repository: Repository) -> bool:
    """Say whether `take_care` would do something."""
    return bool(
        _miscounted(repository) or packs_to_join(repository) or _has_refs_to_pack(repository)
    )


def take_care(repository: Repository) -> int:
    """Consolidate packs and refs where there are too many; return how many packs went.

    A pack whose head says another number of objects than it has, which git does not read, is
    written anew.

    Blocking, and heavy for large repositories. A crash leaves both the old packs and perhaps the
    new one, which is only waste.

    Raises:
        RepositoryCorruptError: a stored object is damaged; everything stays as it was.
    """
    if _has_refs_to_pack(repository):
        pack_loose_refs(repository)
    whole = [pack for pack in _miscounted(repository) if pack.has_only_indexed()]
    gone_count = sum(_replace(repository, [pack]) for pack in whole)
    return gone_count + _replace(repository, packs_to_join(repository))


def _miscounted(repository: Repository) -> list[Pack]:
    """List the packs whose heads have another number of objects than their indexes."""
    own = repository.objects.own_packs()
    found = [pack for pack in own if pack.said_count != pack.count]
    named = packs_of_indexes(repository.path / "objects/pack") if found else frozenset[str]()
    return [pack for pack in found if not _is_marked(pack, named)]


def _replace(repository: Repository, chosen: list[Pack]) -> int:
    """Write some packs anew as one; return how many they were."""
    if not chosen:
        return 0
    joined = _join(repository, chosen)
    # What came meanwhile may speak of them by now: then they stay, beside the new one.
    named = packs_of_indexes(repository.path / "objects/pack")
    for pack in chosen:
        if pack.path.name != joined and not _is_marked(pack, named):
            _remove(pack.path)
    repository.objects.refresh()
    return len(chosen)


def _has_refs_to_pack(repository: Repository) -> bool:
    wish = (repository.config.text("gc.packrefs") or "true").lower()
    if wish == "notbare":
        may_pack = not repository.is_bare
    else:
        may_pack = bool(repository.config.flag("gc.packrefs", default=True))
    return may_pack and repository.refs.loose_count() > LOOSE_REF_COUNT_MAX


def packs_to_join(repository: Repository) -> list[Pack]:
    """Choose packs to be one: small ones of which there are too many, or none.

    Each that is chosen has less than twice the objects of all smaller ones together.

    Raises:
        RepositoryCorruptError: a multi-pack-index cannot be read.
    """
    own = repository.objects.own_packs()
    if len(own) <= PACK_COUNT_MAX or repository.config.number("gc.autopacklimit") == 0:
        return []
    named = packs_of_indexes(repository.path / "objects/pack")
    by_size = sorted(
        (pack for pack in own if not _is_marked(pack, named)), key=lambda pack: pack.count
    )
    if len(by_size) <= PACK_COUNT_MAX:
        return []
    total = 0
    stop = 0
    for number, pack in enumerate(by_size):
        if number < PACK_COUNT_MAX // 2 or pack.count < 2 * total:
            stop = number + 1
        else:
            break
        total += pack.count
    return by_size[:stop]


def _is_marked(pack: Pack, named: frozenset[str]) -> bool:
    return pack.path.stem in named or any(pack.path.with_suffix(mark).exists() for mark in _MARKS)


def _join(repository: Repository, packs: list[Pack]) -> str:
    """Write all objects of some packs into one, checked and durable; return its file name."""
    store = ObjectStore.over(packs)
    store.add_alternate(repository.objects)  # for what is damaged in these, and whole in another
    oids = list(dict.fromkeys(oid for pack in packs for oid in pack.oids()))
    quarantine = make_quarantine(repository.path)
    try:
        spool = quarantine / "pack" / SPOOL_NAME
        with spool.open("wb", buffering=_BUFFER_BYTES) as file:
            PackWriter(store, Selection(oids=oids), file.write).write()
        limits = PackLimits(objects_max=1 << 31, object_bytes_max=1 << 40)
        nowhere = ObjectStore.over([])
        indexed = index_pack(spool, bases=nowhere, limits=limits)
        if indexed.oids != sorted(oids):
            raise RepositoryCorruptError("joining packs lost an object")
        closure = indexed.closure
        write_links(quarantine, indexed.path.stem, closure.all_roots(), closure.all_outside())
        sync_file(indexed.path)
        sync_file(indexed.path.with_suffix(".idx"))
        migrated = migrate_quarantine(quarantine, repository.sharing, has_pack=True)
        for directory in migrated.directories:
            sync_directory(directory)
        return indexed.path.name
    except PackInvalidError as error:
        raise RepositoryCorruptError(f"a stored pack is damaged: {error}") from error
    finally:
        discard_quarantine(quarantine)


def _remove(pack_path: Path) -> None:
    # The index first: without it nobody looks for the pack.
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pack_path.with_suffix(suffix))  # noqa: PTH108
    forget_links(pack_path)
