"""The exporter: the metrics of one server, written in Prometheus' text format or OpenMetrics.

Reading them costs some cheap queries and looks at the disk, all in a thread of their own: where
the disk is slow, pushes do not wait for a free one. Whoever asks while they are read, or within a
second after, gets what the one before got: no number of readers makes it cost more. Where a disk
does not answer at all, a scrape goes on without what is looked for there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gitd.metrics.families import Part, gauges
from gitd.metrics.loop_lag import LoopLag
from gitd.metrics.requests import RequestMetrics

log = structlog.get_logger(__name__)

KEPT_S = 1.0
PART_S_MAX = 2.0  # for the reading of a part: scrapers wait some 10 s for all of them
OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True)
class Exposition:
    """The metrics at one moment, and the media type that they are written in."""

    data: bytes
    content_type: str


@dataclass(slots=True)
class _Reading:
    """A reading that has begun. `until`: a loop time; how long it is good, once it has ended."""

    exposition: asyncio.Future[Exposition]
    until: float = math.inf

    def end(self, exposition: asyncio.Future[Exposition]) -> None:
        """Whoever asked may have left: nobody is to be told that nobody heard what went wrong."""
        self.until = exposition.get_loop().time() + KEPT_S
        if not exposition.cancelled():
            exposition.exception()


class _Parts(Collector):
    """All parts, each in a ring of its own: one that cannot be read takes no other along, nor does
    one that hangs.

    Why it cannot is logged once, for as long as that stays the same: scrapes come all the time.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._told: dict[str, str] = {}
        self._thread = _new_thread()
        self._hanging: dict[str, Future[None]] = {}

    def collect(self) -> Iterable[Metric]:
        is_read: dict[str, float] = {}
        for name, part in self.parts.items():
            found: list[Metric] = []
            try:
                self._read(name, part, found)
                is_read[name] = 1
                self._told.pop(name, None)
            except Exception as error:  # the ring of a part
                is_read[name] = 0
                if self._told.get(name) != repr(error):
                    self._told[name] = repr(error)
                    log.exception("metrics_not_read", part=name)
            yield from tuple(found)  # one that hangs may go on any time
        yield gauges(
            "gitd_metrics_part_read",
            "Whether a part of the metrics could be read; where not, the log says why.",
            "part",
            is_read,
        )

    def _read(self, name: str, part: Part, found: list[Metric]) -> None:
        """Add what a part has to what was found. One that hangs keeps its thread, and is not begun
        again before it came to an end: the others get another thread.

        Raises:
            TimeoutError: It hangs.
            Exception: Whatever it raises.
        """
        reading = self._hanging.get(name)
        if reading is None or reading.done():
            self._hanging.pop(name, None)
            reading = self._thread.submit(lambda: found.extend(part.families()))
            if wait([reading], PART_S_MAX).done:
                reading.result()
                return
            self._hanging[name] = reading
            self._thread.shutdown(wait=False)
            self._thread = _new_thread()
        raise TimeoutError("it hangs: it is shown again once its reading comes to an end")


class Exporter:
    """The metrics of one server. Belongs to one event loop.

    `add_parts` says what is read at each scrape, beside what counts by itself.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # as many series again, unused
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = RequestMetrics(self.registry)
        self.loop_lag = LoopLag(self.registry)
        self._parts = _Parts()
        self.registry.register(self._parts)
        ProcessCollector(registry=self.registry)
        self._readings: dict[bool, _Reading] = {}
        self._thread = _new_thread()

    def add_parts(self, **parts: Part) -> None:
        self._parts.parts.update(parts)

    async def read(self, accept: str) -> Exposition:
        """Read the metrics for who sends that `Accept`: in OpenMetrics if it is in there."""
        loop = asyncio.get_running_loop()
        is_open = OPENMETRICS in accept
        reading = self._readings.get(is_open)
        if reading is None or loop.time() >= reading.until:
            begun = loop.run_in_executor(self._thread, self._read, is_open)
            reading = self._readings[is_open] = _Reading(begun)
            begun.add_done_callback(reading.end)
        return await asyncio.shield(reading.exposition)

    def _read(self, is_open: bool) -> Exposition:  # noqa: FBT001 - an executor knows no keywords
        encode, content_type = choose_encoder(f"{OPENMETRICS};version=1.0.0" if is_open else "")
        return Exposition(encode(self.registry), content_type)


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
