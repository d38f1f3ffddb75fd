"""The queue of builds: which one starts next, and where each of the others stands.

Slots are shared between sites, not between builds. The next one is of the site with the fewest
builds under way; among those, of the site that had its turn longest ago; within a site the oldest.
So a site with fifty builds waiting delays another site's first one by nothing.

Builds that deploy onto the same environment go one after the other, in the order that they were
asked for: so do their releases. Builds of the same inputs do too: the first one answers the others.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from hooks.builds.profiles.plan import Plan
from hooks.jobs import QueuePlace


@dataclass(frozen=True, slots=True)
class Waiting:
    """A build of the queue.

    `lane` is the environment that it deploys onto, if it does; `inputs` what it shares with builds
    that will give the same. `plan`: of a plain commit, which needs no builder. `for_preview`: it is
    of one.
    """

    job_id: str
    build_id: str
    site_id: str
    lane: str | None
    inputs: str | None = None
    plan: Plan | None = None
    for_preview: bool = False

    @property
    def lanes(self) -> tuple[str, ...]:
        """Of each of them only one build runs at a time."""
        inputs = f"{self.site_id} {self.inputs}" if self.inputs is not None else None
        return tuple(lane for lane in (self.lane, inputs) if lane is not None)


def in_order(
    waiting: Iterable[Waiting],
    *,
    under_way: Mapping[str, int],
    turns: Mapping[str, int],
    busy: Collection[str],
) -> tuple[list[Waiting], list[Waiting]]:
    """Return the builds that could start now, in that order, and those that cannot yet.

    `under_way` counts each site's running builds, `turns` says when a site had its last turn (never
    is before all), `busy` are the lanes that are taken. What cannot start is in the order that it
    would have when all that is before it has ended.
    """
    in_lane = defaultdict(int, dict.fromkeys(busy, 1))
    rounds: dict[int, dict[str, list[Waiting]]] = defaultdict(lambda: defaultdict(list))
    for build in sorted(waiting, key=lambda build: build.job_id):
        before = max((in_lane[lane] for lane in build.lanes), default=0)
        rounds[before][build.site_id].append(build)
        for lane in build.lanes:
            in_lane[lane] = before + 1
    orders = {number: _round_robin(rounds[number], under_way, turns) for number in sorted(rounds)}
    first = orders.pop(0, [])
    return first, list(chain.from_iterable(orders.values()))


def _round_robin(
    by_site: Mapping[str, list[Waiting]], under_way: Mapping[str, int], turns: Mapping[str, int]
) -> list[Waiting]:
    def entry(site_id: str, count: int) -> tuple[int, int, str, str, int]:
        share = under_way.get(site_id, 0) + count
        return share, turns.get(site_id, -1), by_site[site_id][count].job_id, site_id, count

    sites = [entry(site_id, 0) for site_id in by_site]
    heapq.heapify(sites)
    order = []
    while sites:
        *_, site_id, count = sites[0]
        order.append(by_site[site_id][count])
        if count + 1 < len(by_site[site_id]):
            heapq.heapreplace(sites, entry(site_id, count + 1))
        else:
            heapq.heappop(sites)
    return order


class BuildQueue:
    """The builds that wait, and those that have started and keep their lane. In memory."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._started: dict[str, Waiting] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._order: list[Waiting] | None = None
        self._startable = 0
        self._places: dict[str, int] = {}

    def add(self, build: Waiting) -> None:
        """Let a build wait. One that had started waits again."""
        self._started.pop(build.job_id, None)
        self._waiting[build.job_id] = build
        self._order = None

    def resume(self, build: Waiting) -> None:
        """Take in a build that a slot was running before this start."""
        self._started[build.job_id] = build
        self._order = None

    def take(self) -> Waiting | None:
        """Start the next build; None when none can."""
        build = next(iter(self.startable()), None)
        if build is None:
            return None
        self._turn += 1
        self._turns[build.site_id] = self._turn
        self.start(build)
        return build

    def startable(self) -> list[Waiting]:
        """The builds that wait for nothing but a builder, in order."""
        order = self._in_order()
        return order[: self._startable]

    def start(self, build: Waiting) -> None:
        """Start one of these. Without a builder, it takes nobody's turn: else see `take`."""
        del self._waiting[build.job_id]
        self._started[build.job_id] = build
        self._order = None

    def leave(self, job_id: str) -> None:
        """Forget a build, whether it waits or has started. Of an unknown one, nothing."""
        known = self._waiting.pop(job_id, None) or self._started.pop(job_id, None)
        if known is not None:
            self._order = None

    def place(self, job_id: str, *, free_slots: int, has_builders: bool) -> QueuePlace | None:
        """Where the build stands, with so many slots free; None when it does not wait."""
        build = self._waiting.get(job_id)
        if build is None:
            return None
        self._in_order()
        before = self._places[job_id]
        behind = next(
            (
                other.build_id
                for other in self._started.values()
                if set(build.lanes).intersection(other.lanes)
            ),
            None,
        )
        is_starting = before < min(free_slots, self._startable)
        return QueuePlace(before, behind, is_starting=is_starting, has_builders=has_builders)

    @property
    def waiting(self) -> Collection[str]:
        """The jobs that wait."""
        return self._waiting.keys()

    def _in_order(self) -> list[Waiting]:
        if self._order is None:
            under_way: dict[str, int] = defaultdict(int)
            for build in self._started.values():
                under_way[build.site_id] += 1
            first, later = in_order(
                self._waiting.values(),
                under_way=under_way,
                turns=self._turns,
                busy={lane for build in self._started.values() for lane in build.lanes},
            )
            self._startable = len(first)
            self._order = first + later
            self._places = {build.job_id: n for n, build in enumerate(self._order)}
        return self._order
