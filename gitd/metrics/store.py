"""The artifact store: what is in it, its room, the collector, the scrub, and damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from prometheus_client import Metric
from prometheus_client.core import SummaryMetricFamily

from gitd.metrics.families import counter, counters, gauge, gauges
from hooks.collection_tally import CollectionOutcome
from hooks.housekeeping import Housekeeping
from storage.layout import Layout
from storage.records import census, garbage, retention
from storage.records.db import Records
from storage.records.garbage import Usage
from storage.records.scrub import Progress
from storage.room import Room

T = TypeVar("T")
MEASURED_EVERY_S = 60.0
COST_SHARE = 0.01  # of the time, at most, goes into what has to look at every row
REMOVED = ("artifact", "cache", "tree", "blob", "leftover")


class Measured(Generic[T]):
    """What costs more the more there is: measured anew when it is old, and when that is cheap.

    Who asks first, from a thread, waits for it; who asks while it is measured anew gets the old.
    """

    def __init__(
        self, measure: Callable[[], T], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._measure = measure
        self._monotonic = monotonic
        self._good_until = float("-inf")
        self._found: T | None = None
        self._measuring = threading.Lock()

    def get(self) -> T:
        found = self._found
        if not self._measuring.acquire(blocking=found is None):
            assert found is not None
            return found
        try:
            now = self._monotonic()
            if self._found is None or now >= self._good_until:
                self._found = self._measure()
                done = self._monotonic()
                self._good_until = done + max(MEASURED_EVERY_S, (done - now) / COST_SHARE)
            return self._found
        finally:
            self._measuring.release()


class StorePart:
    """The store of one server. `progress`: how far the scrub is; it looks at every row."""

    def __init__(
        self,
        records: Records,
        layout: Layout,
        room: Room,
        housekeeping: Housekeeping,
        progress: Callable[[], Progress],
    ) -> None:
        self._records = records
        self._layout = layout
        self._room = room
        self._housekeeping = housekeeping
        self._usage = Measured(self._measure)
        self._progress = Measured(progress)

    def _measure(self) -> Usage:
        return garbage.usage(self._records.reader())

    def families(self) -> Iterable[Metric]:
        yield from self._contents()
        yield from self._disk()
        yield from self._collections()
        yield from self._scrub()

    def _contents(self) -> Iterable[Metric]:
        usage = self._usage.get()
        yield gauge(
            "gitd_store_bytes",
            "Bytes of stored contents, each counted once. Up to some minutes old.",
            usage.size_bytes,
        )
        yield gauge("gitd_store_blobs", "Stored contents. Up to some minutes old.", usage.blobs)
        yield gauges(
            "gitd_store_damaged_parts",
            "Files of the store that are damaged and not mended yet, by kind.",
            "kind",
            {str(k): n for k, n in census.damaged_parts(self._records.reader()).items()},
        )

    def _disk(self) -> Iterable[Metric]:
        space, limits = self._room.space(), self._room.limits
        yield gauge("gitd_store_disk_bytes", "Size of the store's disk.", space.total_bytes)
        yield gauge("gitd_store_disk_free_bytes", "What is free there.", space.free_bytes)
        yield gauge(
            "gitd_store_disk_free_min_bytes",
            "With less than this free, pushes and builds are refused.",
            limits.free_bytes_min,
        )
        if space.free_inodes is not None:
            yield gauge(
                "gitd_store_disk_free_inodes",
                "How many more files the store's disk takes.",
                space.free_inodes,
            )
        yield gauge(
            "gitd_store_reserve_bytes",
            "What is set aside for a full disk; 0 once it was given up.",
            _size_of(self._layout),
        )
        yield gauge(
            "gitd_store_reserve_wanted_bytes", "What is to be set aside.", limits.reserve_bytes
        )
        yield gauge(
            "gitd_store_has_room",
            "Whether pushes and builds are taken; 0 where there is no room for them.",
            self._housekeeping.lack() is None,
        )

    def _collections(self) -> Iterable[Metric]:
        tally = self._housekeeping.tally
        yield counters(
            "gitd_collections",
            "Runs of this server's collector, by outcome.",
            "outcome",
            {outcome.value: tally.outcomes[outcome] for outcome in CollectionOutcome},
        )
        yield SummaryMetricFamily(
            "gitd_collection_duration_seconds",
            "How long these took.",
            count_value=tally.outcomes.total(),
            sum_value=tally.seconds,
        )
        yield counters(
            "gitd_collection_removed",
            "What they took from the store, by kind.",
            "kind",
            {kind: tally.removed[kind] for kind in REMOVED},
        )
        yield counter(
            "gitd_collection_freed_bytes",
            "How much smaller the files of the store became.",
            tally.freed_bytes,
        )
        began_at = retention.began_at(self._records.reader())
        if began_at is not None:
            yield gauge(
                "gitd_collection_last_start_timestamp_seconds",
                "When the collector last began, here or by gitd gc.",
                began_at / 1000,
            )

    def _scrub(self) -> Iterable[Metric]:
        progress = self._progress.get()
        yield gauge(
            "gitd_scrub_parts",
            "Files that the scrub reads time and again. Up to some minutes old, as all of it.",
            progress.parts,
        )
        yield gauge("gitd_scrub_due_parts", "Those that are due to be read.", progress.due)
        yield gauge(
            "gitd_scrub_due_bytes", "How large the contents among these are.", progress.due_bytes
        )
        if progress.oldest is not None:
            yield gauge(
                "gitd_scrub_oldest_read_timestamp_seconds",
                "When the one was read that was read longest ago; none while one never was.",
                progress.oldest / 1000,
            )
        if progress.read_at is not None:
            yield gauge(
                "gitd_scrub_last_read_timestamp_seconds",
                "When the scrub last read anything.",
                progress.read_at / 1000,
            )
        yield counter(
            "gitd_scrub_damage_found",
            "Damaged files that the scrub found, over all runs of this server.",
            progress.found,
        )
        yield counter(
            "gitd_scrub_damage_mended",
            "Damaged files that it mended, over all runs of this server.",
            progress.mended,
        )


def _size_of(layout: Layout) -> int:
    try:
        return layout.reserve.stat().st_size
    except FileNotFoundError:
        return 0
