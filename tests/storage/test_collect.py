"""Collecting: what nothing keeps goes, nothing else does, whoever else is at work."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import (
    BATCH_COUNT_FIRST,
    BATCH_COUNT_MAX,
    HELD_S,
    Collected,
    Collector,
    Order,
    next_batch_count,
)
from storage.digest import Digest
from storage.errors import (
    ArtifactMissingError,
    CollectionRefusedError,
    CollectorBusyError,
)
from storage.files import Lease
from storage.gate import Gate
from storage.manifest import FileEntry, Manifest
from storage.materialise import materialise
from storage.model import (
    SYSTEM,
    Site,
)
from storage.parts import Part
from storage.records import artifacts, build_caches, damage, environments, sites
from storage.records import retention as retention_rows
from storage.reindex import rebuild_index
from storage.retention import DAY_MS, Fate, Pressure, Retention
from tests.power import OF_THE_STORE
from tests.spoiling import closed_quarantine, flip
from tests.storage.conftest import PREVIEW
from tests.warm import warm

NOW = 100 * DAY_MS  # where the clock of a world begins
AT_ONCE = Order(is_hurried=True, is_thorough=True)


def fates(collected: Collected) -> dict[str, Fate]:
    return {verdict.artifact.id: verdict.fate for verdict in collected.verdicts}


# -- what is kept ------------------------------------------------------------------------------


def test_what_nothing_keeps_goes_with_its_blobs_and_nothing_else(world, shop) -> None:
    gone = shop.ingest({"same": b"same", "gone": b"gone", "big*": b"x" * 1000})
    kept = shop.ingest({"same": b"same", "kept": b"kept"})
    world.release(kept)
    collected = world.collect()
    assert fates(collected) == {kept.artifact_id: Fate.KEPT, gone.artifact_id: Fate.DROPPED}
    assert (collected.trees, collected.blobs, collected.size_bytes) == (1, 2, 1004)
    assert not shop.blob(b"gone").exists()
    assert not Path(shop.store.layout.tree(gone.digest)).exists()
    assert not Path(shop.store.layout.envelope(gone.envelope_sha256)).exists()
    assert world.listed() == {kept.artifact_id}
    world.expect_whole()
    assert world.collect().is_idle


def test_every_reason_to_keep_an_artifact_is_found_in_the_records(world, shop) -> None:
    built = {n: shop.ingest({"n": b"%d" % n}) for n in range(8)}
    world.retention = replace(world.retention, releases=2, branch_artifacts=1)
    world.write(lambda db: db.execute("UPDATE attestation SET ref = 'refs/heads/other'"))
    for n in (6, 7):
        world.write(
            lambda db, n=n: db.execute(
                "UPDATE attestation SET ref = 'refs/heads/main' WHERE artifact_id = ?",
                (built[n].artifact_id,),
            )
        )
    for n in (1, 2, 3):
        world.release(built[n])
    world.write(
        lambda db: retention_rows.pin(db, "site_1", built[4].artifact_id, SYSTEM, world.clock())
    )
    under_way = world.deployment(built[5])
    why = {v.artifact.id: v.why for v in world.collect().verdicts}
    assert {n: why[built[n].artifact_id] for n in built} == {
        0: "nothing keeps it, and its grace is over",
        1: "nothing keeps it, and its grace is over",  # the third release from the end
        2: "among the last releases of an environment",
        3: "runs on an environment",
        4: "pinned",
        5: "is being deployed",
        6: "nothing keeps it, and its grace is over",  # the second artifact of its branch
        7: "among the last artifacts of a branch",
    }
    world.end(under_way)
    world.write(lambda db: retention_rows.unpin(db, "site_1", built[4].artifact_id))
    world.collect()
    assert world.listed() == {built[n].artifact_id for n in (2, 3, 7)}
    world.expect_whole()


def test_artifact_that_runs_again_and_again_pushes_no_release_out(world, shop) -> None:
    one, two, three = (shop.ingest({"n": b"%d" % n}) for n in range(3))
    world.retention = replace(world.retention, releases=2)
    for ingested in (one, two, three, two, three, two, three):
        world.release(ingested)
    world.collect()
    assert world.listed() == {two.artifact_id, three.artifact_id}


def test_environment_and_site_that_are_gone_keep_nothing(world, shop) -> None:
    preview, other = shop.ingest({"a": b"a"}), shop.ingest({"b": b"b"})
    world.environment("env_2", branch="feature")
    world.release(preview, "env_2")
    world.release(other)
    world.collect()
    assert world.listed() == {preview.artifact_id, other.artifact_id}
    world.write(lambda db: environments.delete(db, "env_2"))
    world.collect()
    assert world.listed() == {other.artifact_id}
    world.write(lambda db: sites.delete(db, "site_1"))
    world.retention = replace(world.retention, recent_ms=DAY_MS)
    world.write(lambda db: db.execute("UPDATE attestation SET created_at = ?", (NOW,)))
    assert world.collect().trees == 1
    world.expect_whole()


def test_artifact_of_two_sites_stays_while_one_of_them_keeps_it(world, shop) -> None:
    shared = shop.ingest({"a": b"a"})
    world.write(lambda db: sites.add(db, Site("site_2", "other", "main", 0)))
    for site in ("site_1", "site_2"):
        world.write(
            lambda db, site=site: retention_rows.pin(db, site, shared.artifact_id, SYSTEM, 0)
        )
    world.write(lambda db: retention_rows.unpin(db, "site_1", shared.artifact_id))
    world.collect()
    assert world.listed() == {shared.artifact_id}
    world.write(lambda db: sites.delete(db, "site_2"))
    world.collect()
    assert world.listed() == set()


def test_statement_that_something_ran_by_stays_as_history(world, shop) -> None:
    ran, newer = shop.ingest({"a": b"a"}), shop.ingest({"b": b"b"})
    world.release(ran)
    world.release(newer)
    world.collect()
    assert Path(shop.store.layout.envelope(ran.envelope_sha256)).exists()
    found = artifacts.of_environment(shop.records.reader(), PREVIEW, ran.artifact_id)
    assert found.artifact.dropped_at == NOW
    assert not found.artifact.is_available
    world.expect_whole()


def test_places_in_the_order_of_statements_are_never_given_twice(world, shop) -> None:
    def places() -> list[int]:
        rows = shop.records.reader().execute("SELECT sequence FROM attestation ORDER BY sequence")
        return [row[0] for row in rows]

    for n in range(3):
        shop.ingest({"n": b"%d" % n})
    world.collect()
    shop.ingest({"n": b"new"})
    assert places() == [3, 4]


# -- expired, and back -------------------------------------------------------------------------


def test_expired_artifact_leaves_the_list_and_keeps_its_files_for_its_grace(world, shop) -> None:
    ingested = shop.ingest({"a": b"a"})
    world.retention = replace(world.retention, grace_ms=DAY_MS)
    assert fates(world.collect()) == {ingested.artifact_id: Fate.EXPIRES}
    assert world.listed() == set()
    world.clock.now += DAY_MS - 1
    assert fates(world.collect()) == {ingested.artifact_id: Fate.WAITS}
    assert shop.blob(b"a").exists()
    assert shop.verify(ingested)
    world.clock.now += 1
    assert fates(world.collect()) == {ingested.artifact_id: Fate.DROPPED}
    assert not shop.blob(b"a").exists()
    world.expect_whole()


@pytest.mark.parametrize("how", ["built again", "pinned", "settings"])
def test_expired_artifact_comes_back(world, shop, how: str) -> None:
    ingested = shop.ingest({"a": b"a"})
    world.retention = replace(world.retention, grace_ms=DAY_MS)
    world.collect()
    if how == "built again":
        assert shop.ingest({"a": b"a"}).new_blobs == 0
    elif how == "pinned":
        world.write(lambda db: retention_rows.pin(db, "site_1", ingested.artifact_id, SYSTEM, NOW))
    else:
        world.retention = replace(world.retention, recent_ms=2 * NOW)
        assert fates(world.collect()) == {ingested.artifact_id: Fate.RESTORED}
    assert world.listed() == {ingested.artifact_id}
    world.expect_whole()


def test_pressure_takes_the_grace_and_then_the_caches_but_nothing_listed(world, shop) -> None:
    running, waiting = shop.ingest({"a": b"a"}), shop.ingest({"b": b"b"})
    shop.keep_tree({"c": b"c"})
    world.release(running)
    world.retention = Retention(releases=1, branch_artifacts=0, recent_ms=0)
    world.collect()
    assert shop.verify(waiting)
    world.collect(replace(AT_ONCE, pressure=Pressure.GRACE))
    assert not shop.blob(b"b").exists()
    assert shop.blob(b"c").exists()
    world.collect(replace(AT_ONCE, pressure=Pressure.CACHES))
    assert not shop.blob(b"c").exists()
    assert world.listed() == {running.artifact_id}
    world.expect_whole()


def test_what_was_dropped_is_whole_when_it_is_built_again(world, shop) -> None:
    first = shop.ingest({"a": b"a"})
    world.collect()
    again = shop.ingest({"a": b"a"})
    assert (again.artifact_id, again.new_blobs) == (first.artifact_id, 1)
    assert world.listed() == {first.artifact_id}
    world.expect_whole()


# -- build caches and readers ------------------------------------------------------------------


def test_cache_keeps_its_tree_until_it_is_replaced_or_evicted(world, shop) -> None:
    world.retention = replace(world.retention, cache_bytes_max=10, cache_site_bytes_max=10)
    shop.keep_tree({"c": b"old"})
    assert world.collect().is_idle
    shop.keep_tree({"c": b"new"})
    assert world.collect().trees == 1
    assert (shop.blob(b"old").exists(), shop.blob(b"new").exists()) == (False, True)
    shop.keep_tree({"c": b"12345678"}, key="other")
    collected = world.collect()
    assert [(c.cache_key, why) for c, why in collected.caches] == [
        ("k", "its site's caches are too large")
    ]
    assert not shop.blob(b"new").exists()
    world.expect_whole()


def forget_caches(db) -> None:
    for cache in build_caches.of_site(db, "site_1"):
        build_caches.delete(db, cache.id)


def test_tree_in_reading_stays_until_it_is_read(world, shop, tmp_path: Path) -> None:
    kept = shop.keep_tree({"c": b"c"})
    with shop.store.reading(kept.digest) as manifest:
        world.write(forget_caches)
        assert world.collect().trees == 0
        materialise(shop.store.layout, manifest, tmp_path / "out")
    assert world.collect().trees == 1
    with pytest.raises(ArtifactMissingError), shop.store.reading(kept.digest):
        pass
    world.expect_whole()


def test_tree_that_is_being_forgotten_cannot_be_read_any_more(world, shop) -> None:
    kept = shop.keep_tree({"c": b"c"})
    heard: list[str] = []

    class Asked(Collector):
        def _release_tree(self, cycle, digest) -> None:
            with contextlib.suppress(ArtifactMissingError), shop.store.reading(digest):
                heard.append("it is there")
            heard.append("asked")
            super()._release_tree(cycle, digest)

    world.collector(Asked).run(AT_ONCE)
    assert heard == ["asked"]
    assert not shop.blob(b"c").exists()
    assert kept.files == 1


READER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_shop
from storage.digest import Digest
shop = make_shop(Path(sys.argv[2]))
with shop.store.reading(Digest.parse(sys.argv[3])):
    print("reading", flush=True)
    sys.stdin.readline()
"""


def reader_of(shop, digest: Digest) -> subprocess.Popen[str]:
    process = warm(OF_THE_STORE)(
        [sys.executable, "-c", READER, Path(__file__).parent, shop.folder, str(digest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    return process


def test_only_a_living_reader_holds_its_tree_however_long_it_sleeps(world, shop) -> None:
    kept = shop.keep_tree({"c": b"c"})
    world.write(forget_caches)
    with reader_of(shop, kept.digest) as process:
        process.send_signal(signal.SIGSTOP)
        world.clock.now += 400 * DAY_MS
        (lease,) = shop.store.layout.tmp.iterdir()
        os.utime(lease, (0, 0))
        assert world.collect().trees == 0
        world.clock.now -= 800 * DAY_MS
        assert world.collect().trees == 0
        process.kill()
        process.wait()
    assert world.collect().trees == 1
    world.expect_whole()


def test_child_of_a_dead_owner_holds_its_lease_until_it_ends(shop) -> None:
    # The kernel's lock is the lease: a child that was forked with it is an owner too.
    read_fd, write_fd = os.pipe()
    context = multiprocessing.get_context("fork")

    def child() -> None:
        os.close(write_fd)
        os.read(read_fd, 1)

    def owner() -> None:
        Lease.take(shop.store.layout.tmp)
        context.Process(target=child).start()
        os._exit(0)

    process = context.Process(target=owner)
    process.start()
    process.join()
    assert shop.store.recover().leases == 0
    os.close(read_fd)
    os.close(write_fd)
    (path,) = shop.store.layout.tmp.iterdir()
    while (seized := Lease.seize(path)) is None:
        os.sched_yield()
    seized.release()
    assert list(shop.store.layout.tmp.iterdir()) == []


def test_lease_is_never_of_a_folder_that_was_taken_for_rubbish(shop) -> None:
    stop = threading.Event()
    errors: list[Exception] = []

    def seize() -> None:
        while not stop.is_set():
            shop.store.recover()

    def take() -> None:
        try:
            for _ in range(200):
                lease = Lease.take(shop.store.layout.tmp)
                Path(lease.path, "file").write_text("written")
                lease.release()
        except OSError as error:
            errors.append(error)

    seizers = [threading.Thread(target=seize) for _ in range(2)]
    takers = [threading.Thread(target=take) for _ in range(2)]
    for thread in (*seizers, *takers):
        thread.start()
    for thread in takers:
        thread.join()
    stop.set()
    for thread in seizers:
        thread.join()
    assert errors == []


# -- together with those who publish -----------------------------------------------------------


class Paused(Collector):
    """Stops between the mark that makes blobs absent and their removal."""

    def __init__(self, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self.has_marked, self.may_unlink = threading.Event(), threading.Event()

    def _unlink_blobs(self, condemned) -> None:
        self.has_marked.set()
        assert self.may_unlink.wait(60)
        super()._unlink_blobs(condemned)


class OpenGate(Gate):
    """A gate that lets everybody pass."""

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        yield


class Reckless(Paused):
    """What a collector without the gate would do: the proof that the tests see the difference."""

    def __init__(self, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self._gate = OpenGate(self._layout)


@pytest.mark.parametrize("kind", [Paused, Reckless])
def test_blob_that_goes_in_this_moment_is_taken_in_anew(world, shop, kind) -> None:
    shop.ingest({"a": b"a", "b": b"b"})
    collector = world.collector(kind)
    collecting = threading.Thread(target=collector.run, args=(AT_ONCE,))
    publishing = threading.Thread(target=shop.ingest, args=({"a": b"a"},))
    collecting.start()
    assert collector.has_marked.wait(60)
    publishing.start()
    if kind is Reckless:
        publishing.join()
    else:
        while not list(shop.store.layout.tmp.glob("*/envelope")):
            os.sched_yield()  # from here on it can only wait for the gate
        assert publishing.is_alive()
    collector.may_unlink.set()
    collecting.join()
    publishing.join()
    if kind is Reckless:
        report = check_store(shop.folder / "store", shop.records)
        assert report.problems == (f"blob {Digest.of(b'a')}: is missing",)
    else:
        world.expect_whole()
        assert len(world.listed()) == 1


def test_tree_that_is_built_again_while_it_is_forgotten_is_whole(world, shop) -> None:
    tree = {"a": b"a", "b": b"b"}
    shop.ingest(tree)

    class Interrupted(Collector):
        def _release_tree(self, cycle, digest) -> None:
            shop.records.write(
                lambda db: db.execute(
                    "DELETE FROM ref WHERE blob_id = (SELECT id FROM blob WHERE key = ?)",
                    (Digest.of(b"a") + b"f",),
                )
            )
            shop.ingest(tree)
            super()._release_tree(cycle, digest)

    assert world.collector(Interrupted).run(AT_ONCE).trees == 0
    assert len(world.listed()) == 1
    world.expect_whole()


@pytest.mark.parametrize("decision", [1, 2], ids=["asked", "decided"])
@pytest.mark.parametrize("meanwhile", ["deployed", "pinned", "built"])
def test_decision_is_made_again_where_it_is_written(
    world, shop, meanwhile: str, decision: int
) -> None:
    """After what stays was asked, for which this tree was to go; and after it was decided on."""
    ingested = shop.ingest({"a": b"a"})

    class Late(Collector):
        decisions = 0

        def _decisions(self, db, now, pressure):
            found = super()._decisions(db, now, pressure)
            self.decisions += 1
            if self.decisions == decision:
                if meanwhile == "deployed":
                    world.deployment(ingested)
                elif meanwhile == "pinned":
                    world.write(
                        lambda db: retention_rows.pin(
                            db, "site_1", ingested.artifact_id, SYSTEM, NOW
                        )
                    )
                else:
                    shop.ingest({"a": b"a"})
                    world.write(
                        lambda db: db.execute("UPDATE attestation SET created_at = ?", (NOW,))
                    )
            return found

    world.retention = replace(world.retention, recent_ms=DAY_MS)
    world.collector(Late).run(AT_ONCE)
    assert world.listed() == {ingested.artifact_id}
    world.expect_whole()


@pytest.mark.soak
def test_neither_publishers_nor_the_collector_starve(world, shop) -> None:
    for n in range(40):
        shop.ingest({"n": b"%d" % n})
    stop = threading.Event()
    counts = [0, 0]

    def publish(number: int) -> None:
        while not stop.is_set():
            shop.ingest({"n": b"%d of %d" % (counts[number], number)})
            counts[number] += 1

    threads = [threading.Thread(target=publish, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        rounds = swept = 0
        before = list(counts)
        while min(now - b for now, b in zip(counts, before, strict=True)) < 5 or rounds < 5:
            swept += world.collect(Order(is_hurried=True)).blobs
            rounds += 1
        assert swept >= 40
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    world.collect()
    world.expect_whole()


def test_one_collects_at_a_time(world, shop) -> None:
    shop.ingest({"a": b"a"})
    first = world.collector(Paused)
    collecting = threading.Thread(target=first.run, args=(AT_ONCE,))
    collecting.start()
    assert first.has_marked.wait(60)
    with pytest.raises(CollectorBusyError):
        world.collect()
    first.may_unlink.set()
    assert world.collect(replace(AT_ONCE, waits=True)).blobs == 0
    collecting.join()
    world.expect_whole()


def test_collector_stops_between_two_batches_and_goes_on_later(world, shop) -> None:
    shop.ingest({f"f{n}": b"%d" % n for n in range(600)})

    class Stopped(Collector):
        def _unlink_blobs(self, condemned) -> None:
            super()._unlink_blobs(condemned)
            self.stop()

    collected = world.collector(Stopped).run(AT_ONCE)
    assert (collected.is_whole, collected.trees) == (False, 0)
    assert collected.blobs == BATCH_COUNT_FIRST
    collected = world.collect()
    assert (collected.is_whole, collected.trees) == (True, 1)
    assert collected.blobs == 600 - BATCH_COUNT_FIRST
    world.expect_whole()


@pytest.mark.parametrize(
    ("count", "took_s", "following"),
    [
        (100, HELD_S, 100),
        (100, HELD_S / 1000, 200),
        (100, HELD_S * 4, 25),
        (100, HELD_S * 1000, 10),
        (240, HELD_S / 2, BATCH_COUNT_MAX),
        (3, 0.0, 10),
    ],
)
def test_batches_are_as_large_as_the_disk_allows(count: int, took_s: float, following: int) -> None:
    assert next_batch_count(count, took_s) == following


# -- what looks wrong --------------------------------------------------------------------------


def files_of(shop) -> set[Path]:
    root = shop.store.layout.root
    return {p for kind in ("blobs", "trees", "attest") for p in (root / kind).rglob("*/*")}


MANIFEST: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "other bytes": lambda path: (path.unlink(), path.write_bytes(b"other")),
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
}


def kept_and_loose(world):
    """An artifact that is kept, and one that the next collection drops."""
    shop = world.shop
    kept, loose = shop.ingest({"a": b"a", "b": b"b"}), shop.ingest({"c": b"c"})
    world.release(kept)
    shop.pin(loose)
    world.collect()
    world.write(lambda db: retention_rows.unpin(db, "site_1", loose.artifact_id))
    return kept, loose


def test_records_that_differ_from_a_manifest_stop_the_collector_before_it_lets_anything_go(
    world, shop
) -> None:
    _, loose = kept_and_loose(world)
    world.write(
        lambda db: db.execute(
            "DELETE FROM ref WHERE blob_id IN (SELECT id FROM blob WHERE key = ?)",
            (Digest.of(b"a") + b"f",),
        )
    )
    before = files_of(shop)
    for is_forced in (False, True):
        with pytest.raises(CollectionRefusedError, match="gitd check --rebuild-index"):
            world.collect(replace(AT_ONCE, is_forced=is_forced))
    assert files_of(shop) == before
    assert loose.artifact_id in world.listed()
    assert rebuild_index(shop.store, shop.records).changed == 1
    world.collect()
    assert (shop.blob(b"a").exists(), shop.blob(b"c").exists()) == (True, False)


@pytest.mark.parametrize("spoil", MANIFEST.values(), ids=MANIFEST)
def test_manifest_that_cannot_be_read_is_damaged_and_its_references_hold_for_it(
    world, shop, spoil: Callable[[Path], object]
) -> None:
    kept, _ = kept_and_loose(world)
    spoil(Path(shop.store.layout.tree(kept.digest)))
    collector = world.collector()
    assert collector.run(Order(is_hurried=True)).blobs == 1
    (found,) = collector.take_damage()
    assert found.part == Part.of_tree(kept.digest)
    assert [one.part for one in damage.every(shop.records.reader())] == [found.part]
    assert collector.take_damage() == []
    assert (shop.blob(b"a").exists(), shop.blob(b"c").exists()) == (True, False)
    shop.ingest({"a": b"a", "b": b"b"})  # mends it
    world.collect()
    world.expect_whole()


def test_damaged_manifest_that_cannot_be_put_away_stops_the_collector(world, shop) -> None:
    kept, loose = kept_and_loose(world)
    flip(Path(shop.store.layout.tree(kept.digest)))
    with closed_quarantine(shop.store.layout):
        with pytest.raises(CollectionRefusedError, match="gitd check --repair"):
            world.collect()
        assert loose.artifact_id in world.listed()
    world.collect()
    assert (shop.blob(b"a").exists(), shop.blob(b"c").exists()) == (True, False)


def test_tree_that_is_about_to_go_is_not_asked(world, shop) -> None:
    _, loose = kept_and_loose(world)
    flip(Path(shop.store.layout.tree(loose.digest)))
    collector = world.collector()
    assert collector.run(AT_ONCE).blobs == 1
    assert collector.take_damage() == []
    world.expect_whole()


def test_sweep_of_most_blobs_without_a_reason_needs_force(world, shop) -> None:
    kept = shop.ingest({f"f{n}": b"%d" % n for n in range(900)})
    world.release(kept)
    world.write(
        lambda db: db.executemany(
            "INSERT INTO blob(key, size_bytes) VALUES(?, 1)",
            [(Digest.of(b"loose %d" % n) + b"f",) for n in range(1001)],
        )
    )
    planned = world.collector().plan()
    assert (planned.blobs, "1001 of 1901 blobs" in (planned.doubt or "")) == (0, True)
    assert world.collector().plan(is_forced=True).blobs == 1001
    with pytest.raises(CollectionRefusedError, match=r"1001 of 1901 .* --force"):
        world.collect()
    assert world.collect(replace(AT_ONCE, is_forced=True)).blobs == 1001
    world.expect_whole()


def test_dropping_most_artifacts_needs_no_force(world, shop) -> None:
    shop.ingest({f"f{n}": b"%d" % n for n in range(1100)})
    assert world.collect().blobs == 1100
    world.expect_whole()


# -- leftovers and what was begun --------------------------------------------------------------


def test_files_that_no_row_knows_go_and_foreign_names_stay(world, shop) -> None:
    kept = shop.ingest({"a": b"a", "run*": b"run"})
    world.release(kept)
    layout = shop.store.layout
    leftovers = [
        shop.blob(b"left"),
        shop.blob(b"a", executable=True),  # known, and not executable
        Path(layout.tree(Digest.of(b"left"))),
        Path(layout.envelope("0" * 64)),
        layout.root / "attest" / "00" / f".{'0' * 62}.dsse.json.0123456789ab",
    ]
    for path in leftovers:
        path.write_bytes(b"12345")
    foreign = layout.root / "blobs" / "00" / "README"
    foreign.write_text("somebody's own")
    assert world.collect(Order(is_hurried=True)).leftovers == 0
    collected = world.collect()
    assert (collected.leftovers, collected.leftover_bytes) == (5, 25)
    assert not any(path.exists() for path in leftovers)
    assert foreign.exists()
    foreign.unlink()
    world.expect_whole()


def test_begun_deletions_of_trees_and_blobs_are_finished(world, shop) -> None:
    shop.ingest({"a": b"a", "b": b"b"})
    world.write(lambda db: db.execute("UPDATE artifact SET expired_at = 1, dropped_at = 1"))
    world.write(lambda db: db.execute("UPDATE tree SET state = 2"))
    world.write(lambda db: db.execute("DELETE FROM ref WHERE blob_id = (SELECT MIN(id) FROM blob)"))
    world.write(lambda db: db.execute("UPDATE blob SET state = 2 WHERE id = 1"))
    collected = world.collect()
    assert (collected.trees, collected.blobs) == (1, 1)
    assert files_of(shop) == {
        Path(shop.store.layout.envelope(p))
        for (p,) in shop.records.reader().execute("SELECT envelope_sha256 FROM attestation")
    }
    world.expect_whole()


def make_stuck(path: Path, how: str) -> Callable[[], object]:
    """See that a file cannot be removed; return what ends that."""
    if how == "a folder in its place":
        path.unlink(missing_ok=True)
        path.mkdir()
        return path.rmdir
    path.touch()
    flag = {"immutable": "i", "append only": "a"}[how]
    if os.getuid() or not shutil.which("chattr"):
        pytest.skip("sets flags of files as root")
    if subprocess.run(["chattr", f"+{flag}", path], capture_output=True).returncode:
        pytest.skip("this filesystem has no such flags")
    return lambda: subprocess.run(["chattr", f"-{flag}", path], check=True)


@pytest.mark.parametrize("how", ["a folder in its place", "immutable", "append only"])
def test_file_that_cannot_be_removed_holds_up_no_other(world, shop, how: str) -> None:
    gone = shop.ingest({"a": b"a", "b": b"b"})
    before = files_of(shop)
    shop.pin(shop.ingest({"kept": b"kept"}))
    kept = files_of(shop) - before
    layout = shop.store.layout
    stuck = [
        shop.blob(b"a"),
        Path(layout.tree(gone.digest)),
        Path(layout.envelope(gone.envelope_sha256)),
        shop.blob(b"left"),
    ]
    shop.blob(b"more left").touch()
    release = [make_stuck(path, how) for path in stuck]
    try:
        collected = world.collect()
        assert {line.split(": ")[0] for line in collected.stuck} == set(map(str, stuck))
        assert (collected.blobs, collected.trees, collected.leftovers) == (1, 0, 1)
        assert files_of(shop) == kept | set(stuck)
        world.restart()  # the server starts, and says which
        assert len(world.shop.store.recover().stuck) == 1
        assert len(world.collect().stuck) == 4
    finally:
        for free in release:
            free()
    collected = world.collect()
    assert (collected.stuck, collected.trees) == ((), 1)
    world.expect_whole()


def test_dead_ingest_whose_files_cannot_be_removed_is_taken_up_again(world, shop) -> None:
    manifest = Manifest.of([FileEntry(b"a", False, 1, Digest.of(b"a"))])
    lease = Lease.take(shop.store.layout.tmp)
    Path(lease.path, "manifest").write_bytes(manifest.data)
    os.close(lease.fd)
    Path(shop.store.layout.tree(manifest.digest)).write_bytes(manifest.data)
    shop.blob(b"a").mkdir()
    recovered = shop.store.recover()
    assert (recovered.files, len(recovered.stuck)) == (1, 1)
    shop.blob(b"a").rmdir()
    shop.blob(b"a").write_bytes(b"a")
    assert (shop.store.recover().files, list(shop.store.layout.tmp.iterdir())) == (1, [])
    world.expect_whole()


def test_corrupt_blob_without_a_reference_goes_too(world, shop) -> None:
    shop.ingest({"a": b"a"})
    world.write(lambda db: db.execute("UPDATE blob SET state = 3"))
    assert world.collect().blobs == 1
    world.expect_whole()


# -- before it is done -------------------------------------------------------------------------


def test_plan_says_what_a_run_does_and_changes_nothing(world, shop) -> None:
    kept = shop.ingest({"same": b"same", "kept": b"kept"})
    shop.ingest({"same": b"same", "gone": b"gone"})
    shop.ingest({"gone": b"gone", "more": b"more"})
    shop.keep_tree({"kept": b"kept", "cache": b"cache"})
    world.release(kept)
    world.write(
        lambda db: db.execute(
            "INSERT INTO blob(key, size_bytes) VALUES(?, 5)", (Digest.of(b"loose") + b"f",)
        )
    )
    files = files_of(shop)
    planned = world.collector().plan()
    assert files_of(shop) == files
    assert len(world.listed()) == 3
    done = world.collect()
    assert planned == done
    assert (planned.trees, planned.blobs, planned.size_bytes) == (3, 4, 4 + 4 + 5 + 5)


def test_plan_counts_what_expires_now_and_goes_later(world, shop) -> None:
    ingested = shop.ingest({"a": b"a"})
    world.retention = replace(world.retention, grace_ms=DAY_MS)
    planned = world.collector().plan()
    assert [(v.fate, v.until) for v in planned.of(Fate.EXPIRES)] == [(Fate.EXPIRES, NOW + DAY_MS)]
    assert (planned.trees, planned.is_idle) == (0, False)
    assert world.listed() == {ingested.artifact_id}
