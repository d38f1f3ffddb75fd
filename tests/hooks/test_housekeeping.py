"""Housekeeping: collecting in the background, and making room before builds."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hooks.builds.wire import Finish
from hooks.collection_tally import CollectionOutcome
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from storage.collect import Collected, Collector, Order
from storage.digest import Digest
from storage.errors import CollectionRefusedError, CollectorBusyError
from storage.ids import new_id
from storage.model import ActorRef, Artifact, BuildCache, JobStatus
from storage.records import artifacts, build_caches
from storage.records import retention as retention_rows
from storage.reindex import rebuild_index
from storage.retention import DAY_MS, Retention
from storage.source import Limits, SourceFile

ACTOR = ActorRef("api_key", "key_1", "tests")
HOUR_MS = 3600 * 1000
TB = 10**12


@dataclass
class Clock:
    now: int = 100 * DAY_MS

    def __call__(self) -> int:
        return self.now


@dataclass
class House:
    """A housekeeping over a world's store. `retention` keeps whatever was not said otherwise."""

    world: object
    clock: Clock
    collector: Collector
    keeping: Housekeeping

    @classmethod
    def over(cls, world, retention: Retention, *, kind: type[Collector] = Collector) -> House:
        clock = Clock()
        collector = kind(world.store, world.records, retention, clock=clock)
        limits = HousekeepingLimits(collect_below_bytes=0)
        keeping = Housekeeping(
            collector, world.store.room, world.records, limits=limits, clock=clock
        )
        return cls(world, clock, collector, keeping)

    def limit(self, **changes) -> None:
        self.keeping.limits = replace(self.keeping.limits, **changes)

    def cache(self, key: str, data: bytes, site_id: str) -> Path:
        def record(db, kept) -> None:
            cache = BuildCache(
                new_id("cache"), site_id, "node", key, str(kept.digest), 1, len(data), 0, 0
            )
            build_caches.put(db, cache)

        file = SourceFile(b"f", len(data), executable=False, read=lambda: data)
        self.world.store.keep_tree([file], limits=Limits(), record=record)
        return self.blob(data)

    def artifact(self, data: bytes) -> tuple[Artifact, Path]:
        """An artifact that nothing keeps, and its blob."""

        def record(db, kept) -> None:
            artifacts.add(db, made(kept))

        def made(kept) -> Artifact:
            return Artifact(f"art_{data.decode()}", str(kept.digest), "", 1, len(data), 0)

        file = SourceFile(b"f", len(data), executable=False, read=lambda: data)
        kept, _ = self.world.store.keep_tree([file], limits=Limits(), record=record)
        return made(kept), self.blob(data)

    def pin(self, artifact: Artifact, site_id: str) -> None:
        self.world.records.write(lambda db: retention_rows.pin(db, site_id, artifact.id, ACTOR, 0))

    def blob(self, data: bytes) -> Path:
        return Path(self.world.store.layout.blob(Digest.of(data), executable=False))

    def leftover(self) -> Path:
        path = self.blob(b"left")
        path.write_bytes(b"left")
        return path


KEEP = Retention()


async def test_store_that_is_too_large_is_collected_before_anything_is_begun(world) -> None:
    house = House.over(world, replace(KEEP, cache_bytes_max=0))
    site = await world.site()
    blob = house.cache("k", b"x" * 100, site.id)
    house.limit(size_bytes_max=50)
    heard = asyncio.Event()
    house.keeping.watch(heard.set)
    await house.keeping.look()
    assert heard.is_set()
    assert not blob.exists()
    assert house.keeping.is_ready()
    assert house.keeping.lack() is None


async def test_room_that_cannot_be_made_is_said_with_the_numbers(world) -> None:
    house = House.over(world, KEEP)
    limits = world.store.room.limits
    world.store.room.limits = replace(limits, free_bytes_min=10**6 * TB)
    await asyncio.gather(house.keeping.made_room(), house.keeping.made_room())
    assert house.keeping.is_ready()  # it was tried: whoever waits is told
    lack = house.keeping.lack()
    assert lack is not None
    assert "are kept free" in str(lack)
    world.store.room.limits = limits
    assert house.keeping.lack() is None


async def test_room_for_few_more_files_is_short_too(world) -> None:
    house = House.over(world, replace(KEEP, cache_bytes_max=0))
    site = await world.site()
    blob = house.cache("k", b"x", site.id)
    assert house.keeping.is_ready()
    room = world.store.room
    free_inodes = room.space().free_inodes
    if free_inodes is None:
        pytest.skip("this filesystem has no number of files")
    room.limits = replace(room.limits, free_inodes_min=free_inodes * 3 // 4)
    assert house.keeping.lack() is None
    assert not house.keeping.is_ready()
    await house.keeping.made_room()
    assert not blob.exists()


async def test_no_more_is_given_up_than_is_needed(world) -> None:
    # Two gigabytes of caches are allowed, and the store is too large by what nobody asks for.
    house = House.over(world, KEEP)
    site = await world.site()
    cache = house.cache("k", b"kept", site.id)
    loose = house.cache("other", b"x" * 100, site.id)
    world.records.write(lambda db: db.execute("DELETE FROM build_cache WHERE cache_key = 'other'"))
    house.limit(size_bytes_max=50)
    await house.keeping.look()
    assert (cache.exists(), loose.exists()) == (True, False)
    house.limit(size_bytes_max=3)
    house.keeping._made_at = float("-inf")
    await house.keeping.look()
    assert not cache.exists()


async def test_nothing_is_given_up_for_room_that_cannot_come(world) -> None:
    house = House.over(world, KEEP)
    site = await world.site()
    cache = house.cache("k", b"x" * 100, site.id)
    lost = Artifact("art_lost", str(Digest.of(b"lost")), "", 1, 1, 0)
    world.records.write(lambda db: artifacts.add(db, lost))
    house.pin(lost, site.id)
    unkept, _ = house.artifact(b"unkept")
    house.limit(size_bytes_max=50)
    await house.keeping.look()
    assert cache.exists()
    assert len(build_caches.every(world.records.reader())) == 1
    assert not is_dropped(world, unkept)
    world.records.write(lambda db: retention_rows.unpin(db, site.id, lost.id))
    house.keeping._made_at = float("-inf")
    await house.keeping.look()
    assert not cache.exists()


async def test_nothing_is_given_up_where_the_collector_refuses(world) -> None:
    house = House.over(world, KEEP)
    site = await world.site()
    cache = house.cache("k", b"x" * 100, site.id)
    kept, _ = house.artifact(b"kept")
    house.pin(kept, site.id)
    unkept, blob = house.artifact(b"unkept")
    loses_reference = (
        "DELETE FROM ref WHERE blob_id = (SELECT id FROM blob WHERE key = ?)",
        (Digest.of(b"kept") + b"f",),
    )
    world.records.write(lambda db: db.execute(*loses_reference))
    house.limit(size_bytes_max=50)
    await house.keeping.look()
    assert not is_dropped(world, unkept)
    assert (cache.exists(), blob.exists()) == (True, True)
    assert len(build_caches.every(world.records.reader())) == 1


async def test_room_is_made_beside_a_manifest_that_rotted_which_is_said(world) -> None:
    house = House.over(world, KEEP)
    site = await world.site()
    kept, blob = house.artifact(b"kept")
    house.pin(kept, site.id)
    unkept, loose = house.artifact(b"unkept")
    manifest = Path(world.store.layout.tree(Digest.parse(kept.digest)))
    manifest.unlink()
    manifest.write_bytes(b"rotten")
    house.limit(size_bytes_max=5)
    with capture_logs() as logs:
        await house.keeping.look()
    assert (blob.exists(), loose.exists()) == (True, False)
    assert is_dropped(world, unkept)
    (found,) = [line for line in logs if line["event"] == "damage_found"]
    assert found["artifacts"] == [kept.id]


def is_dropped(world, artifact: Artifact) -> bool:
    found = artifacts.get(world.records.reader(), artifact.id)
    return found is None or found.dropped_at is not None


async def test_everybody_waits_for_one_collection(world) -> None:
    runs: list[object] = []

    class Counted(Collector):
        def run(self, order):
            runs.append(order)
            return super().run(order)

    house = House.over(world, KEEP, kind=Counted)
    house.limit(collect_below_bytes=10**6 * TB)
    assert not house.keeping.is_ready()
    assert not house.keeping.is_ready()
    await asyncio.gather(*(house.keeping.made_room() for _ in range(5)))
    assert len(runs) == 3  # one per step of pressure
    assert house.keeping.is_ready()  # low, and not lower than it may be: builds go on
    assert house.keeping.lack() is None


async def test_background_collects_by_the_hour_and_thoroughly_by_the_day(world) -> None:
    house = House.over(world, replace(KEEP, cache_bytes_max=0))
    site = await world.site()
    await house.keeping.look()
    leftover = house.leftover()
    first = house.cache("k", b"first", site.id)
    house.clock.now += HOUR_MS - 1
    await house.keeping.look()
    assert first.exists()
    house.clock.now += 1
    await house.keeping.look()
    assert (first.exists(), leftover.exists()) == (False, True)
    house.clock.now += DAY_MS
    await house.keeping.look()
    assert not leftover.exists()


async def test_clock_that_was_set_back_does_not_stop_the_background(world) -> None:
    house = House.over(world, replace(KEEP, cache_bytes_max=0))
    site = await world.site()
    await house.keeping.look()
    house.clock.now -= 50 * DAY_MS
    blob = house.cache("k", b"x", site.id)
    await house.keeping.look()
    assert not blob.exists()


async def test_collection_that_is_refused_is_no_end_of_the_house(world) -> None:
    house = House.over(world, replace(KEEP, cache_site_bytes_max=4))
    site = await world.site()
    kept = house.cache("kept", b"kept", site.id)
    loose = house.cache("loose", b"loose", site.id)
    world.records.write(lambda db: db.execute("DELETE FROM ref WHERE tree_id = 1"))
    await house.keeping.look()
    assert kept.exists()
    assert loose.exists()
    rebuild_index(world.store, world.records)
    house.clock.now += HOUR_MS
    await house.keeping.look()
    assert (kept.exists(), loose.exists()) == (True, False)


async def test_reserve_is_set_aside(world) -> None:
    house = House.over(world, KEEP)
    world.store.room.limits = replace(world.store.room.limits, reserve_bytes=1 << 20)
    await house.keeping.look()
    assert world.store.layout.reserve.stat().st_size == 1 << 20


async def test_end_waits_for_the_batch_under_way_and_no_longer(world) -> None:
    class Paused(Collector):
        has_marked, may_unlink = threading.Event(), threading.Event()

        def _unlink_blobs(self, condemned) -> None:
            self.has_marked.set()
            assert self.may_unlink.wait(60)
            super()._unlink_blobs(condemned)

    house = House.over(world, replace(KEEP, cache_bytes_max=0), kind=Paused)
    site = await world.site()
    first, second = (house.cache(key, key.encode(), site.id) for key in ("one", "two"))
    looking = asyncio.create_task(house.keeping.look())
    await asyncio.to_thread(Paused.has_marked.wait, 60)
    looking.cancel()
    closing = asyncio.create_task(house.keeping.close())
    await asyncio.sleep(0)
    assert not closing.done()
    Paused.may_unlink.set()
    await closing
    assert sorted([first.exists(), second.exists()]) == [False, True]


# -- builds ------------------------------------------------------------------------------------


async def ask_for_build(world, site) -> str:
    made = await world.pipeline.start_build(world.environment(site), ACTOR, ref="main")
    return made.value.id


@pytest.fixture
async def site(world, commit):
    made = await world.site()
    commit(world.repositories.path(made.id), {"index.html": b"hello"})
    return made


async def test_build_fails_with_the_numbers_where_the_disk_has_no_room(world, site) -> None:
    job_id = await ask_for_build(world, site)
    limits = world.store.room.limits
    world.store.room.limits = replace(limits, free_bytes_min=10**6 * TB)
    assert await world.builds.lease("slot-0", 5) is None
    job = world.jobs.get(job_id)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "store.no_space")
    assert "free on the disk" in job.error.message
    world.store.room.limits = limits
    job_id = await ask_for_build(world, site)
    lease = await world.builds.lease("slot-0", 5)
    assert lease.job_id == job_id


async def test_build_waits_until_room_is_made(world, site) -> None:
    began = await ask_for_build(world, site)
    blob = House.over(world, KEEP).cache("k", b"x" * 100, site.id)
    world.housekeeping.limits = replace(world.housekeeping.limits, size_bytes_max=50)
    await world.housekeeping._measure()
    lease = await world.builds.lease("slot-0", 20)
    assert lease.job_id == began
    assert not blob.exists()


async def test_build_beyond_the_sites_quota_fails_and_keeps_nothing(
    world, tmp_path: Path, commit
) -> None:
    small = type(world).open(tmp_path / "small", site_bytes_max=10)
    site = await small.site()
    path = small.repositories.path(site.id)

    async def build(content: bytes):
        commit(path, {"index.html": content})
        job_id = await ask_for_build(small, site)
        if lease := await small.builds.lease("slot-0", 5):
            outcome = Finish("slot-0", "succeeded", profile="static", output="source")
            await small.builds.finish(lease.job_id, outcome)
        return small.jobs.get(job_id)

    assert (await build(b"1234567")).status is JobStatus.SUCCEEDED
    assert (await build(b"1234567")).status is JobStatus.SUCCEEDED  # the same content again
    failed = await build(b"7654321")
    assert (failed.status, failed.error.code) == (JobStatus.FAILED, "store.quota_exceeded")
    assert "14 B together, and may be 10 B" in failed.error.message
    page = artifacts.page(
        small.records.reader(), small.environment(site), newest=None, last=None, limit_count=10
    )
    assert len(page.items) == 1
    blob = small.store.layout.blob(Digest.of(b"7654321"), executable=False)
    assert not Path(blob).exists()
    small.housekeeping.limits = replace(small.housekeeping.limits, site_bytes_max=5)
    failed = await build(b"1")  # too large already: it is not even begun
    assert failed.error.code == "store.quota_exceeded"
    assert "Nothing more can be kept" in failed.error.message
    small.records.close()


async def test_what_collections_came_to_is_counted(world) -> None:
    house = House.over(world, replace(KEEP, cache_bytes_max=0))
    site = await world.site()
    house.cache("k", b"x" * 100, site.id)
    await house.keeping.look()
    tally = house.keeping.tally
    assert tally.outcomes == {CollectionOutcome.DONE: 1}
    assert (tally.removed["cache"], tally.removed["tree"], tally.removed["blob"]) == (1, 1, 1)
    assert tally.freed_bytes == 100
    assert tally.seconds > 0


async def test_collections_that_did_not_go_through_are_counted_by_why(world) -> None:
    class Refusing(Collector):
        errors = (
            CollectionRefusedError("looks wrong"),
            CollectorBusyError("another"),
            OSError("no disk"),
        )

        def run(self, _order: Order) -> Collected:
            raise self.errors[house.keeping.tally.outcomes.total()]

    house = House.over(world, KEEP, kind=Refusing)
    for _ in Refusing.errors:
        await house.keeping.look()
    outcomes = house.keeping.tally.outcomes
    assert list(outcomes) == [
        CollectionOutcome.REFUSED,
        CollectionOutcome.LEFT,
        CollectionOutcome.FAILED,
    ]
    assert outcomes.total() == 3
