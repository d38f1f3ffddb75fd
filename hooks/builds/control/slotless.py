"""Builds that need no slot: what the same inputs gave before, and plain commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from hooks.background import Background
from hooks.builds.control.course import Course
from hooks.builds.control.dispatcher import Dispatcher
from hooks.builds.control.leases import Leases, Running
from hooks.builds.control.packing import Packer
from hooks.builds.control.queue import Waiting
from hooks.builds.profiles.plain import CONTROL, DETECT, finished
from hooks.builds.profiles.plan import Plan
from hooks.builds.profiles.toolchain import toolchain_digest
from hooks.jobs import Jobs
from storage.model import JobStatus

log = structlog.get_logger(__name__)

PACKS_COUNT_MAX = 2  # of plain commits at once; slots help with what waits beyond that


class Slotless:
    """Ends builds that need no slot, before slots are asked. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        leases: Leases,
        dispatcher: Dispatcher,
        course: Course,
        packer: Packer,
        background: Background,
    ) -> None:
        self._jobs = jobs
        self._leases = leases
        self._dispatcher = dispatcher
        self._course = course
        self._packer = packer
        self._background = background
        self._packing = 0
        self._toolchain: str | None = None  # the digest of what slots build with, once one asked
        self._programs: dict[str, str] = {}  # that, in words
        self._looked_up: set[str] = set()  # jobs whose inputs gave nothing before
        self._on_plain: Callable[[str], None] = lambda _: None
        dispatcher.go_first(self._do_without_slots)

    def watch_plain(self, react: Callable[[str], None]) -> None:
        """Call `react` with the environment that a plain commit is to be deployed onto, when it
        begins to be packed: that takes but a moment.
        """
        self._on_plain = react

    def note_toolchain(self, programs: Mapping[str, str]) -> None:
        """All slots build with what this machine has; an update counts from the next lease on."""
        digest = toolchain_digest(programs)
        if digest != self._toolchain:
            self._toolchain, self._programs = digest, dict(programs)
            self._looked_up.clear()
            self._do_without_slots()

    def forget(self, job_id: str) -> None:
        """Forget a job that is over."""
        self._looked_up.discard(job_id)

    def _do_without_slots(self) -> None:
        if self._toolchain is not None and not self._leases.is_closing:
            self._answer_known(self._toolchain)
            self._pack_plain()

    # -- what the same inputs gave before -------------------------------------------------------

    def _answer_known(self, toolchain: str) -> None:
        for build in self._dispatcher.queue.startable():
            if build.inputs is None or build.job_id in self._looked_up:
                continue
            self._looked_up.add(build.job_id)
            if self._packer.memo.recall(
                self._jobs.records.reader(),
                build.site_id,
                build.inputs,
                toolchain,
                for_preview=build.for_preview,
            ):
                self._dispatcher.queue.start(build)
                self._background.spawn(self._answer(build, toolchain))

    async def _answer(self, waiting: Waiting, toolchain: str) -> None:
        """End a build with what its inputs gave before, or let it wait for a slot after all."""
        job_id = waiting.job_id
        try:
            if await self._packer.reuse(self._dispatcher.find_build(waiting.build_id), toolchain):
                return
        except Exception:  # whatever it is, a slot can build it
            log.exception("memo_failed", job_id=job_id)
        job = self._jobs.get(job_id)
        if job is not None and job.status is JobStatus.QUEUED:
            self._dispatcher.queue.add(waiting)
        self._dispatcher.stir()

    # -- plain commits --------------------------------------------------------------------------

    def _pack_plain(self) -> None:
        """Begin to pack those whose turn it is, once slots have said what they would build with:
        the statement tells it.
        """
        plain = [build for build in self._dispatcher.queue.startable() if build.plan is not None]
        if not plain or not self._dispatcher.has_room_or_no_hope():
            return
        for build in plain[: PACKS_COUNT_MAX - self._packing]:
            if build.plan is None:
                continue
            self._dispatcher.queue.start(build)
            try:
                running = self._course.begin(build.job_id, CONTROL)
            except Exception:  # whatever it is, the build waits for the next turn, or for a slot
                log.exception("packing_not_begun", job_id=build.job_id)
                self._leases.drop(build.job_id)
                self._dispatcher.queue.add(build)
                continue
            self._packing += 1
            ending = self._course.end(running, self._keep_plain(running, build, build.plan))
            ending.add_done_callback(self._packed)
            if build.lane is not None:
                self._on_plain(build.lane)

    def _packed(self, _: object) -> None:
        self._packing -= 1
        self._dispatcher.stir()

    async def _keep_plain(self, running: Running, waiting: Waiting, plan: Plan) -> None:
        if refused := await self._dispatcher.refused_for_room(waiting):
            await self._course.fail_here(waiting.job_id, refused)
            return

        async def begin_log() -> None:
            await running.started.wait()
            self._jobs.log.add(waiting.job_id, [plan.explanation, *plan.notes], stage=DETECT)

        outcome = finished(plan, self._programs)
        # The records may not say yet that it started.
        build = replace(self._dispatcher.build_of(running.job), started_at=running.began_at)
        await self._packer.keep(build, outcome, begin_log=begin_log)
