"""The dispatcher: hands queued builds to slots that ask, and wakes who waits when a place moves."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hooks.builds.control.leases import Leases
from hooks.builds.control.memo import Memo
from hooks.builds.control.queue import BuildQueue, Waiting
from hooks.builds.profiles.plain import plain_plan
from hooks.builds.profiles.plan import Plan
from hooks.builds.sources.sources import Sources
from hooks.housekeeping import Housekeeping
from hooks.jobs import Jobs, QueuePlace
from storage.errors import StorageError
from storage.git.errors import RepositoryError
from storage.model import Build, Failure, Job
from storage.records import builds

ABSENT_S = 10.0  # a slot that has ended a build asks for the next one within that time
PLAIN_ATTEMPTS_MAX = 2  # then a slot does it: how often that one is lost has a bound
SITES_COUNT_MAX = 10_000  # whose last slots are remembered
NO_SPACE = "store.no_space"
QUOTA_EXCEEDED = "store.quota_exceeded"
QUOTA_REMEDY = "Delete previews, or unpin artifacts, or ask for more."


@dataclass(frozen=True, slots=True, eq=False)
class _Asking:
    """A slot that waits for a build, as long as it is not gone."""

    slot: str
    is_gone: Callable[[], bool]


class Dispatcher:
    """The builds that wait, and the slots that wait for them. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        leases: Leases,
        memo: Memo,
        sources: Sources,
        *,
        housekeeping: Housekeeping | None,
        packs_plain: bool,
    ) -> None:
        """`packs_plain`: plain commits are told apart, so that they need not wait for a slot."""
        self.queue = BuildQueue()
        self._jobs = jobs
        self._leases = leases
        self._memo = memo
        self._sources = sources
        self._housekeeping = housekeeping
        self._packs_plain = packs_plain
        self._asking: list[_Asking] = []
        self._built_by: OrderedDict[str, str] = OrderedDict()  # the slots that built sites last
        self._absent_at = 0.0  # when slots that neither wait nor build count as gone
        self._news = asyncio.Event()
        self._go_first: Callable[[], None] = lambda: None

    # -- who waits ------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Let a job wait, as it is now."""
        self.queue.add(self._waiting(job))

    def resume(self, job: Job) -> None:
        """Take in a job that a slot was running before this start."""
        self.queue.resume(self._waiting(job))

    @property
    def free_slots(self) -> int:
        """How many slots wait for a build just now."""
        return len(self._asking)

    def place(self, job_id: str) -> QueuePlace | None:
        """Return where a job stands, None when it does not wait."""
        is_building = self._leases.are_slots_building()
        has_builders = bool(self._asking) or is_building or _now() < self._absent_at
        return self.queue.place(job_id, free_slots=self.free_slots, has_builders=has_builders)

    def build_of(self, job: Job) -> Build:
        return self.find_build(job.resource_id)

    def find_build(self, build_id: str) -> Build:
        build = builds.get(self._jobs.records.reader(), build_id)
        assert build is not None, "a job has its build"
        return build

    def _waiting(self, job: Job) -> Waiting:
        build = self.build_of(job)
        lane = job.env_id if build.deploys else None
        inputs = self._memo.inputs_of(build)
        is_tried = job.attempts >= PLAIN_ATTEMPTS_MAX  # each of them may have ended this process
        plan = self._plan(build) if self._packs_plain and not is_tried else None
        for_preview = self._memo.is_for_preview(build)
        return Waiting(job.id, build.id, job.site_id, lane, inputs, plan, for_preview=for_preview)

    def _plan(self, build: Build) -> Plan | None:
        try:
            root = self._sources.folder(build)
        except (StorageError, RepositoryError):
            return None  # the one that gets the lease hears of it
        return plain_plan(root) if root is not None else None

    # -- whose turn it is -----------------------------------------------------------------------

    async def next(
        self, slot: str, wait_s: float, *, is_gone: Callable[[], bool] = lambda: False
    ) -> Waiting | None:
        """Take the next build for a slot, waiting up to `wait_s`; None when the slot is gone."""
        end = _now() + wait_s
        asking = _Asking(slot, is_gone)
        self._asking.append(asking)
        build = None
        try:
            while is_gone() or self._leases.is_closing or (build := self._take(slot)) is None:
                if is_gone() or self._leases.is_closing or not await self._stirred(end - _now()):
                    return None
        finally:
            self._asking.remove(asking)
            self.note_slot()
            if build is None and self.queue.startable():
                self.stir()  # somebody may have left it to this one
        self._built_by[build.site_id] = slot
        self._built_by.move_to_end(build.site_id)
        if len(self._built_by) > SITES_COUNT_MAX:
            self._built_by.popitem(last=False)
        self.stir()
        return build

    def note_slot(self) -> None:
        """Note that there is a slot, which will ask again."""
        self._absent_at = _now() + ABSENT_S

    def go_first(self, act: Callable[[], None]) -> None:
        """Call `act` before slots are, whenever places move: some builds need none."""
        self._go_first = act

    def stir(self) -> None:
        """Wake the slots that wait for a build, and those who watch their place in the queue."""
        self._go_first()
        self._news.set()
        self._news = asyncio.Event()
        self._jobs.moved(self.queue.waiting)

    def _take(self, slot: str) -> Waiting | None:
        """The next build, once there is room for it, or no hope of any.

        It is left to the slot that built the site last, where that waits too: what it has kept of
        the commit need not be sent again. All who wait are woken together, so it takes it now.
        """
        startable = self.queue.startable()
        if not startable or not self.has_room_or_no_hope():
            return None
        last = self._built_by.get(startable[0].site_id)
        if last != slot and any(each.slot == last and not each.is_gone() for each in self._asking):
            return None
        return self.queue.take()

    async def _stirred(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(max(0, timeout_s)):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    # -- room in the store ----------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether the disk takes more of an output that is being sent."""
        return self._housekeeping is None or self._housekeeping.lack() is None

    def has_room_or_no_hope(self) -> bool:
        return self._housekeeping is None or self._housekeeping.is_ready()

    async def refused_for_room(self, build: Waiting) -> Failure | None:
        """Say why the store cannot take what the build would yield."""
        if self._housekeeping is None:
            return None
        if lack := self._housekeeping.lack():
            return Failure(NO_SPACE, f"The server has no room for builds: {lack}.")
        if excess := await self._housekeeping.exceeded_quota(build.site_id):
            return Failure(QUOTA_EXCEEDED, f"Nothing more can be kept: {excess}. {QUOTA_REMEDY}")
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()
