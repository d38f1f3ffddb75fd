"""Housekeeping: the collector at work beside the server, and room for what comes next.

It collects now and then, in the background and in no hurry; and at once, giving up more and more,
when the disk or the store runs short. While it is at that, builds wait a moment; they are refused
only where it did not help.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from hooks.background import for_ever
from hooks.clock import Clock, now_ms
from hooks.collection_tally import CollectionOutcome, CollectionTally
from hooks.scrubbing import say_damage
from storage.collect import Collected, Collector, Order
from storage.errors import (
    CollectionRefusedError,
    CollectorBusyError,
    StorageError,
    StorageFullError,
)
from storage.records import garbage, retention
from storage.records.db import Records
from storage.retention import DAY_MS, Fate, Pressure
from storage.room import Room, size_in_words

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 10.0  # at the disk, and whether it is time
THOROUGH_EVERY_MS = DAY_MS
SHORT_AGAIN_S = 60.0  # what was given up for room is not soon there again
FULL_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class HousekeepingLimits:
    """When to collect.

    Attributes:
        collect_every_s: In the background, whether room is short or not.
        collect_below_bytes: At once, when less is free on the disk.
        size_bytes_max: At once, when the store's contents are larger together, each counted once;
            and nothing is built while they stay so. 0 is without bound.
        site_bytes_max: The same for the artifacts of one site; they are not collected for it.
    """

    collect_every_s: float = 3600.0
    collect_below_bytes: int = 1 << 30
    size_bytes_max: int = 0
    site_bytes_max: int = 0


class Housekeeping:
    """The housekeeping of one server. Belongs to one event loop."""

    def __init__(
        self,
        collector: Collector,
        room: Room,
        records: Records,
        *,
        limits: HousekeepingLimits,
        clock: Clock = now_ms,
    ) -> None:
        self.limits = limits
        self.tally = CollectionTally()
        self._collector = collector
        self._room = room
        self._records = records
        self._clock = clock
        self._store_bytes = 0
        self._making: asyncio.Task[None] | None = None
        self._collecting: asyncio.Future[Collected] | None = None
        self._made_at = float("-inf")
        self._watchers: list[Callable[[], None]] = []

    def watch(self, react: Callable[[], None]) -> None:
        """Call `react` each time that room was made, or could not be."""
        self._watchers.append(react)

    async def keep(self) -> None:
        """Keep house, for ever."""
        await for_ever(self._turn, failed="house_not_kept", pause_s=LOOK_EVERY_S)

    async def _turn(self) -> None:
        await asyncio.sleep(LOOK_EVERY_S)
        await self.look()

    async def look(self) -> None:
        """Do what it is time for: make room, or collect in no hurry."""
        await asyncio.to_thread(self._room.set_aside)
        await self._measure()
        if not self.is_ready():
            await self.made_room()
        elif await asyncio.to_thread(self._is_time):
            await self._collect(Order(is_thorough=await asyncio.to_thread(self._is_long_ago)))

    async def close(self) -> None:
        """End what is under way between two deletions, for good."""
        self._collector.stop()
        under_way = [task for task in (self._making, self._collecting) if task is not None]
        await asyncio.gather(*under_way, return_exceptions=True)

    # -- room -----------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether there is nothing to do for room. If there is, it is begun, and `watch` tells."""
        if self._making is not None:
            return False
        again_s = FULL_AGAIN_S if self.lack() else SHORT_AGAIN_S
        if not self._is_short() or _now() - self._made_at < again_s:
            return True
        self._making = asyncio.get_running_loop().create_task(self._make_room())
        return False

    async def made_room(self) -> None:
        """Wait until room is made, where it is short."""
        if not self.is_ready() and self._making is not None:
            await asyncio.wait({self._making})

    def lack(self) -> StorageError | None:
        """Say why nothing more can be taken in; None when it can."""
        size_bytes_max = self.limits.size_bytes_max
        if size_bytes_max and self._store_bytes > size_bytes_max:
            return StorageFullError(
                f"the store holds {size_in_words(self._store_bytes)} of the "
                f"{size_in_words(size_bytes_max)} that it may"
            )
        try:
            self._room.check()
        except StorageError as error:  # a disk that cannot even be asked takes nothing either
            return error
        return None

    async def exceeded_quota(self, site_id: str) -> str | None:
        """Say by how much a site's artifacts are too large already; None when they are not."""
        allowed = self.limits.site_bytes_max
        if not allowed:
            return None
        used = await asyncio.to_thread(lambda: garbage.site_bytes(self._records.reader(), site_id))
        return quota_message(used, allowed) if used > allowed else None

    def _is_short(self) -> bool:
        if self.lack() is not None:
            return True
        space = self._room.space()
        if space.free_bytes < self.limits.collect_below_bytes:
            return True
        inodes_min = 2 * self._room.limits.free_inodes_min
        return space.free_inodes is not None and space.free_inodes < inodes_min

    async def _make_room(self) -> None:
        """Collect with more and more pressure, until there is enough."""
        try:
            for pressure in Pressure:
                is_last = pressure is max(Pressure)
                order = Order(pressure, is_hurried=True, is_thorough=is_last, waits=True)
                goes_on = await self._collect(order)
                await self._measure()
                if not self._is_short():
                    break
                # What withholds all may be an expired artifact, but never a cache.
                if not goes_on and pressure is Pressure.GRACE:
                    break
            if lack := self.lack():
                log.error("no_room", reason=str(lack), advice="make room on the disk")
        finally:
            self._making = None
            self._made_at = _now()
            for react in self._watchers:
                react()

    async def _measure(self) -> None:
        if self.limits.size_bytes_max:
            usage = await asyncio.to_thread(lambda: garbage.usage(self._records.reader()))
            self._store_bytes = usage.size_bytes

    # -- collecting -----------------------------------------------------------------------------

    def _is_time(self) -> bool:
        began_at = retention.began_at(self._records.reader())
        # A clock that was set back is no reason to wait for it.
        passed_ms = self._clock() - (began_at or 0)
        return not 0 <= passed_ms < self.limits.collect_every_s * 1000

    def _is_long_ago(self) -> bool:
        thorough_at = retention.thorough_at(self._records.reader())
        return not 0 <= self._clock() - (thorough_at or 0) < THOROUGH_EVERY_MS

    async def _collect(self, order: Order) -> bool:
        """Collect, and log what came of it. False when all files were withheld."""
        is_withheld = False
        began = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(None, self._collector.run, order)
        self._collecting = running
        try:
            # Whoever waits may stop waiting; the thread ends when `close` says so.
            collected = await asyncio.shield(running)
        except CollectorBusyError:
            log.debug("collection_left_to_another")
            self.tally.outcomes[CollectionOutcome.LEFT] += 1
        except CollectionRefusedError as error:
            log.warning("collection_refused", reason=str(error))
            self.tally.outcomes[CollectionOutcome.REFUSED] += 1
        except Exception:  # the ring around a collection: the server goes on without it
            log.exception("collection_failed")
            self.tally.outcomes[CollectionOutcome.FAILED] += 1
        else:
            _log_collected(collected, order)
            self.tally.note(collected)
            is_withheld = collected.doubt is not None
        finally:
            self.tally.seconds += time.monotonic() - began
        say_damage(self._records, self._collector.take_damage())
        return not is_withheld


def quota_message(used_bytes: int, allowed_bytes: int) -> str:
    return (
        f"the site's artifacts are {size_in_words(used_bytes)} together, and may be "
        f"{size_in_words(allowed_bytes)}"
    )


def _log_collected(collected: Collected, order: Order) -> None:
    for verdict in collected.of(Fate.EXPIRES, Fate.RESTORED, Fate.DROPPED):
        log.debug(
            "artifact_judged",
            artifact_id=verdict.artifact.id,
            fate=verdict.fate.value,
            why=verdict.why,
        )
    if collected.stuck:
        log.warning(
            "files_not_removed",
            count=len(collected.stuck),
            first=collected.stuck[0],
            advice="see what holds it (lsattr, ls -ld, the disk) and remove it",
        )
    if collected.doubt:
        log.warning("collection_withheld", reason=collected.doubt)
    (log.debug if collected.is_idle else log.info)(
        "collected",
        pressure=order.pressure.name.lower(),
        expired=len(collected.of(Fate.EXPIRES)),
        restored=len(collected.of(Fate.RESTORED)),
        dropped=len(collected.of(Fate.DROPPED)),
        caches=len(collected.caches),
        trees=collected.trees,
        blobs=collected.blobs,
        leftovers=collected.leftovers,
        freed_bytes=collected.freed_bytes,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
