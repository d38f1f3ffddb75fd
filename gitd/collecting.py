"""`gitd gc`: the collector beside a server that may be running, and what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from gitd.config import Config
from gitd.layout import DataFolder
from gitd.stores import open_beside, retention_of, room_of
from hooks.clock import rfc3339
from storage.collect import Collected, Collector, Order
from storage.counted import counted
from storage.records import retention, sites
from storage.records.damage import Damage
from storage.records.db import Records
from storage.retention import Fate
from storage.room import size_in_words

SHOWN_COUNT_MAX = 100  # of files that could not be removed, for people; --json has all


class JudgedArtifact(msgspec.Struct, frozen=True):
    """An artifact that does not simply stay. `sites` are the names of those that built it."""

    id: str
    sites: list[str]
    size: int
    fate: Fate
    why: str
    until: str | None


class EvictedCache(msgspec.Struct, frozen=True):
    id: str
    site: str
    profile: str
    key: str
    size: int
    used_at: str
    why: str


class CollectionReport(msgspec.Struct, frozen=True):
    """What went, or would go. Sizes in bytes.

    Attributes:
        kept: How many artifacts stay, by the reason.
        logical: The sizes of the dropped artifacts and evicted caches, as if nothing was shared.
        freed: How much smaller the store's files are.
        stuck: Files that could not be removed, and why.
        withheld: Why no tree, no blob and no leftover goes, and what to do; null when they do.
        damaged: Manifests that cannot be read, which are in quarantine from here on, and why.
    """

    dry_run: bool
    artifacts: list[JudgedArtifact]
    caches: list[EvictedCache]
    kept: dict[str, int]
    trees: int
    blobs: int
    leftovers: int
    logical: int
    freed: int
    stuck: Sequence[str]
    withheld: str | None
    damaged: Sequence[str]


def collect(
    folder: DataFolder, config: Config, *, is_dry_run: bool, is_forced: bool
) -> CollectionReport:
    """Collect once, and wait for a collector that is at work already.

    Raises:
        CollectionRefusedError: Something looks wrong.
        StorageError: The system or the database refused.
    """
    room = room_of(folder, config)
    room.relieve_if_full()
    with Records.open(folder.database, relieve=room.relieve) as records:
        store = open_beside(folder, records, room)
        collector = Collector(store, records, retention_of(config))
        if is_dry_run:
            planned = collector.plan(is_forced=is_forced)
            return _report(records, planned, (), is_dry_run=True)
        order = Order(is_forced=is_forced, is_hurried=True, is_thorough=True, waits=True)
        collected = collector.run(order)
        room.set_aside()
        return _report(records, collected, collector.take_damage(), is_dry_run=False)


def in_words(report: CollectionReport) -> Iterator[str]:
    """The report, line by line, for people."""
    for item in report.artifacts:
        sites = ", ".join(item.sites) or "no site"
        what = f"{item.fate.value:<9} {item.id}  {size_in_words(item.size)}  {sites}: {item.why}"
        is_back_until = item.until if item.fate in (Fate.EXPIRES, Fate.WAITS) else None
        yield what + (f"; can be pinned until {is_back_until}" if is_back_until else "")
    for cache in report.caches:
        size = size_in_words(cache.size)
        yield f"evicted   cache {cache.profile} {cache.key}  {size}  {cache.site}: {cache.why}"
    for why, count in sorted(report.kept.items()):
        yield f"{counted(count, 'artifact', width=8)} kept: {why}"
    yield f"{counted(report.trees, 'tree', width=8)} and {counted(report.blobs, 'blob')}"
    if report.leftovers:
        yield counted(report.leftovers, "leftover file", width=8)
    verb = "would be freed" if report.dry_run else "freed"
    logical = size_in_words(report.logical)
    for line in report.stuck[:SHOWN_COUNT_MAX]:
        yield f"NOT REMOVED: {line}"
    if len(report.stuck) > SHOWN_COUNT_MAX:
        yield f"and {len(report.stuck) - SHOWN_COUNT_MAX} more; --json has all"
    for line in report.damaged:
        yield f"DAMAGED: {line}: gitd check --repair"
    if report.withheld:
        yield f"WITHHELD: {report.withheld}"
    yield f"{size_in_words(report.freed):>8} {verb}; {logical} by the sizes of what goes"


def _report(
    records: Records, collected: Collected, damaged: Sequence[Damage], *, is_dry_run: bool
) -> CollectionReport:
    changed = collected.of(Fate.EXPIRES, Fate.WAITS, Fate.RESTORED, Fate.DROPPED)
    db = records.reader()
    names = retention.site_names(db, [verdict.artifact.id for verdict in changed])
    artifacts = [
        JudgedArtifact(
            id=verdict.artifact.id,
            sites=names.get(verdict.artifact.id, []),
            size=verdict.artifact.size_bytes,
            fate=verdict.fate,
            why=verdict.why,
            until=rfc3339(verdict.until) if verdict.until is not None else None,
        )
        for verdict in changed
    ]
    caches = [
        EvictedCache(
            id=cache.id,
            site=found.name if (found := sites.find(db, cache.site_id)) else cache.site_id,
            profile=cache.profile,
            key=cache.cache_key,
            size=cache.size_bytes,
            used_at=rfc3339(cache.used_at),
            why=why,
        )
        for cache, why in collected.caches
    ]
    gone = sum(v.artifact.size_bytes for v in collected.of(Fate.DROPPED))
    return CollectionReport(
        dry_run=is_dry_run,
        artifacts=artifacts,
        caches=caches,
        kept=dict(Counter(verdict.why for verdict in collected.of(Fate.KEPT))),
        trees=collected.trees,
        blobs=collected.blobs,
        leftovers=collected.leftovers,
        logical=gone + sum(cache.size for cache in caches),
        freed=collected.freed_bytes,
        stuck=collected.stuck,
        withheld=collected.doubt,
        damaged=[f"{one.part}: {one.why}" for one in damaged],
    )
