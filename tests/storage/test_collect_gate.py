"""The collector at the gate: whom it waits for there, and who waits for it."""

from __future__ import annotations

import fcntl
import threading
from dataclasses import replace

import pytest

from storage import collect
from storage.collect import Collector, Order
from storage.errors import ArtifactMissingError
from storage.gate import Gate
from storage.holding import hold_trees
from storage.records import blobs, build_caches
from tests.storage.conftest import AT_ONCE, Shop
from tests.waiting import wait_for, waiters_of


def is_waited_for(shop: Shop) -> bool:
    """Whether somebody holds the turnstile: who waits at the gate does."""
    with shop.store.layout.turnstile.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def is_alone(shop: Shop) -> bool:
    """Whether somebody has passed the gate alone."""
    with shop.store.layout.gate.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def forget_caches(db) -> None:
    for cache in build_caches.of_site(db, "site_1"):
        build_caches.delete(db, cache.id)


def test_reader_that_said_so_before_the_collector_looks_keeps_its_tree(world, shop) -> None:
    """Case 9: what `reading` does behind the gate, with a collector that waits there."""
    kept = shop.keep_tree({"c": b"c"})
    world.write(forget_caches)
    layout = shop.store.layout
    collecting = threading.Thread(target=world.collect)
    with Gate(layout).publishing():
        collecting.start()
        wait_for(lambda: is_waited_for(shop))
        reading = hold_trees(layout, [kept.digest])
        assert blobs.has_tree(shop.records.reader(), kept.digest)
    collecting.join()
    assert shop.blob(b"c").exists()
    reading.release()
    world.collect()
    world.expect_whole()


def test_reader_that_comes_after_the_collector_has_looked_finds_no_tree(world, shop) -> None:
    """Case 9: the reader waits until the tree counts as absent, or it would read what goes."""
    kept = shop.keep_tree({"c": b"c"})
    world.write(forget_caches)
    writing, is_looked = threading.Event(), threading.Event()

    class Slow(Collector):
        def _condemn_trees(self, unkept) -> None:
            shop.records.submit(lambda _: writing.wait(60))  # so that its commit has to wait
            is_looked.set()
            super()._condemn_trees(unkept)

    found: list[str] = []

    def read() -> None:
        try:
            with shop.store.reading(kept.digest):
                found.append("there")
        except ArtifactMissingError:
            found.append("gone")

    collecting = threading.Thread(target=world.collector(Slow).run, args=(AT_ONCE,))
    collecting.start()
    assert is_looked.wait(60)
    wait_for(lambda: is_alone(shop))
    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: found or is_waited_for(shop))
    writing.set()
    collecting.join()
    reader.join()
    assert found == ["gone"]
    world.expect_whole()


def test_those_who_publish_pass_the_gate_together(shop) -> None:
    layout = shop.store.layout

    def publish() -> None:
        with Gate(layout).publishing():
            pass

    other = threading.Thread(target=publish)
    with Gate(layout).publishing():
        other.start()
        waited_for = (layout.gate, layout.turnstile)
        wait_for(lambda: any(map(waiters_of, waited_for)) or not other.is_alive())
        assert not other.is_alive()
    other.join()


def test_tree_that_is_built_again_before_it_is_condemned_stays(world, shop) -> None:
    tree = {"a": b"a", "b": b"b"}
    shop.ingest(tree)

    class Late(Collector):
        def _condemn_trees(self, unkept) -> None:
            shop.ingest(tree)
            super()._condemn_trees(unkept)

    collected = world.collector(Late).run(AT_ONCE)
    assert (collected.trees, collected.blobs) == (0, 0)
    assert len(world.listed()) == 1
    world.expect_whole()


def test_collector_in_no_hurry_leaves_the_gate_to_others_after_each_batch(
    world, shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "DUTY", 1e-6)
    shop.ingest({"a": b"a"})
    assert world.collect(replace(AT_ONCE, is_hurried=True)).is_whole
    shop.ingest({"b": b"b"})
    collector = world.collector()
    collected = []
    collecting = threading.Thread(target=lambda: collected.append(collector.run(Order())))
    collecting.start()
    wait_for(lambda: not shop.blob(b"b").exists())
    shop.ingest({"c": b"c"})
    collector.stop()
    collecting.join()
    assert [(one.blobs, one.is_whole) for one in collected] == [(1, False)]
    world.collect()
    world.expect_whole()
