"""Building, releasing, pinning, caching, collecting and crashing, in any order."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from storage.blobs import Staging, entry_key
from storage.check import check_store
from storage.collect import Collector, Order
from storage.digest import Digest
from storage.files import Lease
from storage.manifest import FileEntry, Manifest
from storage.model import SYSTEM
from storage.records import artifacts
from storage.records import blobs as rows
from storage.records import retention as retention_rows
from storage.retention import DAY_MS, Pressure, Retention
from storage.source import Limits, SourceFile
from storage.unpacked import verify_tree

KEEP = Retention(
    releases=2,
    branch_artifacts=0,
    recent_ms=0,
    grace_ms=DAY_MS,
    cache_bytes_max=60,
    cache_site_bytes_max=60,
)
CONTENTS = [b"%d" % n * 10 for n in range(8)]
TREES = st.sets(st.sampled_from(CONTENTS), min_size=1, max_size=4)


class DiedError(Exception):
    """The process went down here."""


class Mortal(Collector):
    """Goes down at the `steps`-th thing that it does to files, or just before."""

    steps = 0

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise DiedError

    def _unlink_blobs(self, condemned) -> None:
        for blob in condemned:
            self._step()
            super()._unlink_blobs([blob])
        self._step()

    def _unlink_trees(self, cycle, digests) -> None:
        self._step()
        super()._unlink_trees(cycle, digests)

    def _release_tree(self, cycle, digest) -> None:
        self._step()
        super()._release_tree(cycle, digest)
        self._step()


def files(tree):
    return [
        SourceFile(name.encode(), len(data), executable=False, read=lambda data=data: data)
        for name, data in tree.items()
    ]


class Shopping(RuleBasedStateMachine):
    """A site over a long time, in a few steps."""

    built = Bundle("built")
    under_way = Bundle("under_way")

    def __init__(self, make_world) -> None:
        super().__init__()
        self.world = make_world()
        self.world.retention = KEEP
        self.pinned: set[str] = set()
        self.deploying: list[str] = []
        self.current: str | None = None
        self.rolled: Path | None = None
        self.rolls = 0

    @rule(target=built, contents=TREES)
    def build(self, contents):
        return self.world.shop.ingest({data.decode(): data for data in contents})

    @rule(contents=TREES, whole=st.integers(0, 4), how=st.sampled_from(["source", "statement"]))
    def build_and_fail(self, contents, whole, how):
        """The source ends in the middle, or nobody signs: nothing of it is there afterwards."""
        before = self.world.listed()
        entries = files({data.decode(): data for data in contents})

        def source():
            yield from entries[:whole] if how == "source" else entries
            if how == "source":
                raise DiedError

        def attest(manifest):
            raise DiedError

        with pytest.raises(DiedError):
            self.world.shop.store.ingest(source(), limits=Limits(), attest=attest, record=attest)
        assert self.world.listed() == before
        assert list(self.world.shop.store.layout.tmp.iterdir()) == []

    @rule(contents=TREES)
    def die_after_placing(self, contents):
        """The process goes down when files have their places and no row knows them yet."""
        store = self.world.shop.store
        lease = Lease.take(store.layout.tmp)
        staging = Staging(store.layout, lease)
        entries = [FileEntry(data, False, len(data), Digest.of(data)) for data in contents]
        manifest = Manifest.of(entries)
        for entry in entries:
            staging.add(entry_key(entry), entry.path)
        staging.add_statement("manifest", manifest.data, store.layout.tree(manifest.digest))
        staging.sync()
        staging.place(rows.live(self.records.reader(), list(staging.blobs)))
        os.close(lease.fd)  # the kernel drops the lock; the folder stays
        self.world.restart()
        assert check_store(store.layout.root, self.records).leftovers == ()

    @rule(ingested=built)
    def roll(self, ingested):
        """Whatever can be deployed can be unpacked, beside what was unpacked last."""
        if not self.is_available(ingested):
            return
        shop = self.world.shop
        verified = shop.verify(ingested)
        shop.reader.verify_blobs(verified)
        self.rolls += 1
        folder = shop.folder / f"roll{self.rolls}"
        shop.reader.materialise(verified, folder, beside=self.rolled)
        verify_tree(folder, verified.manifest)
        if self.rolled is not None:
            shutil.rmtree(self.rolled)
        self.rolled = folder

    @rule(ingested=built)
    def release(self, ingested):
        if self.is_available(ingested):
            self.world.release(ingested)
            self.current = ingested.artifact_id

    @rule(target=under_way, ingested=built)
    def deploy(self, ingested):
        if not self.is_available(ingested):
            return multiple()
        self.deploying.append(ingested.artifact_id)
        return self.world.deployment(ingested)

    @rule(deployment=consumes(under_way))
    def give_up(self, deployment):
        self.world.end(deployment)
        self.deploying.remove(deployment.artifact_id)

    @rule(ingested=built)
    def pin(self, ingested):
        artifact = artifacts.get(self.world.shop.records.reader(), ingested.artifact_id)
        if artifact.dropped_at is None:
            self.world.write(lambda db: retention_rows.pin(db, "site_1", artifact.id, SYSTEM, 0))
            self.pinned.add(artifact.id)

    @rule(ingested=built)
    def unpin(self, ingested):
        self.world.write(lambda db: retention_rows.unpin(db, "site_1", ingested.artifact_id))
        self.pinned.discard(ingested.artifact_id)

    @rule(contents=TREES, key=st.sampled_from("abc"))
    def cache(self, contents, key):
        self.world.shop.keep_tree({data.decode(): data for data in contents}, key=key)

    @rule(days=st.sampled_from([0.5, 1, 2]))
    def wait(self, days):
        self.world.clock.now += int(days * DAY_MS)

    @rule(pressure=st.sampled_from(Pressure))
    def collect(self, pressure):
        self.world.collect(Order(pressure, is_hurried=True, is_thorough=True))
        assert check_store(self.world.shop.store.layout.root, self.records).leftovers == ()

    @rule(steps=st.integers(0, 12), pressure=st.sampled_from(Pressure))
    def collect_and_die(self, steps, pressure):
        collector = self.world.collector(Mortal)
        collector.steps = steps
        try:
            collector.run(Order(pressure, is_hurried=True, is_thorough=True))
        except DiedError:
            self.world.restart()

    @rule()
    def restart(self):
        self.world.restart()

    @invariant()
    def what_is_known_is_whole(self):
        report = check_store(self.world.shop.store.layout.root, self.records)
        assert report.problems == ()

    @invariant()
    def what_is_in_use_can_be_deployed(self):
        in_use = {*self.pinned, *self.deploying, *filter(None, [self.current])}
        assert in_use <= self.world.listed()

    @property
    def records(self):
        return self.world.shop.records

    def is_available(self, ingested) -> bool:
        """It, and what this build signed: a later build of the same signs for itself."""
        artifact = artifacts.get(self.records.reader(), ingested.artifact_id)
        vouches = "SELECT 1 FROM attestation WHERE envelope_sha256 = ?"
        row = self.records.reader().execute(vouches, (ingested.envelope_sha256,)).fetchone()
        return artifact.is_available and row is not None

    def teardown(self):
        """In the end everything goes, and takes every file with it."""
        self.world.restart()
        self.world.retention = replace(KEEP, releases=0, grace_ms=0, cache_bytes_max=0)
        self.world.write(lambda db: db.execute("DELETE FROM environment"))
        self.world.write(lambda db: db.execute("DELETE FROM artifact_pin"))
        self.world.write(lambda db: db.execute("UPDATE deployment SET finished_at = 1"))
        self.world.collect()
        report = check_store(self.world.shop.store.layout.root, self.records)
        assert (report.blobs, report.trees, report.leftovers) == (0, 0, ())
        self.records.close()
        shutil.rmtree(self.world.shop.folder)


def run(make_world, examples: int, steps: int, machine=Shopping) -> None:
    run_state_machine_as_test(
        lambda: machine(make_world),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.timeout(300)
def test_what_is_in_use_stays_whole_in_some_orders(make_world) -> None:
    run(make_world, 6, 20)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_is_in_use_stays_whole_in_many_orders(make_world) -> None:
    run(make_world, 300, 50)
