"""Control's side of builds: which job goes to which slot, and how it ends.

Its parts: `leases` (who holds what), `dispatcher` (who waits, and for what), `course` (how
a build begins and ends), `slotless` (what needs no slot), `supplies` (what a slot is given).

After a restart of control, jobs that a slot was running wait for it to speak up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from hooks.background import Background, for_ever
from hooks.builds.caches.build_cache import BuildCaches
from hooks.builds.control.course import Course
from hooks.builds.control.dispatcher import Dispatcher
from hooks.builds.control.leases import BuildLimits, LeaseLostError, Leases, Running
from hooks.builds.control.packing import Packer
from hooks.builds.control.slotless import Slotless
from hooks.builds.control.supplies import Supplies
from hooks.builds.profiles.plain import CONTROL
from hooks.builds.sources.files import SOURCE_UNREADABLE, failure_of
from hooks.builds.sources.sources import Sources
from hooks.builds.wire import Finish, Lease, LogBatch
from hooks.housekeeping import Housekeeping
from hooks.jobs import Jobs
from hooks.variables import Variables
from storage.errors import StorageError
from storage.joblog import LogLine
from storage.model import Failure, Job, JobStatus, JobType
from storage.records import jobs as job_rows

log = structlog.get_logger(__name__)

REAP_EVERY_S = 0.5
SPEAK_UP_S = 3.0  # after a restart: a slot whose call broke off tries again twice a second


class BuildRunner:
    """The builds of one server. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        sources: Sources,
        packer: Packer,
        *,
        limits: BuildLimits,
        housekeeping: Housekeeping | None = None,
        variables: Variables | None = None,
        caches: BuildCaches | None = None,
        packs_plain: bool = False,
    ) -> None:
        """`packs_plain`: plain commits do not wait for a slot."""
        self._jobs = jobs
        self._packer = packer
        self._background = Background()
        self.leases = Leases(jobs, limits, self._background)
        self.dispatcher = Dispatcher(
            jobs,
            self.leases,
            packer.memo,
            sources,
            housekeeping=housekeeping,
            packs_plain=packs_plain,
        )
        self.supplies = Supplies(
            jobs, self.leases, self.dispatcher, sources, variables=variables, caches=caches
        )
        self.course = Course(jobs, self.leases, self.dispatcher, packer, self._background)
        self._slotless = Slotless(
            jobs, self.leases, self.dispatcher, self.course, packer, self._background
        )
        self._on_silence: Callable[[str], None] = lambda _: None
        jobs.watch(self._on_job)
        jobs.place_by(self.dispatcher.place)
        if housekeeping is not None:
            housekeeping.watch(self.dispatcher.stir)

    # -- life -----------------------------------------------------------------------------------

    def recover(self, *, slots_are_gone: bool = False) -> None:
        """After a start: queue what was queued, and wait for the slots that were running builds.

        `slots_are_gone`: those of the run before died with it, so there is nobody to wait for.
        """
        speak_up_s = 0.0 if slots_are_gone else min(self.leases.limits.lease_s, SPEAK_UP_S)
        self._packer.tidy()
        for job in job_rows.unfinished(self._jobs.records.reader(), JobType.BUILD_RUN):
            if job.status is JobStatus.QUEUED:
                self.dispatcher.add(job)
                continue
            self.dispatcher.resume(job)
            running = self.leases.resume(job, speak_up_s=speak_up_s)
            is_ours = job.owner == CONTROL
            waits = "" if slots_are_gone or is_ours else "; waiting for the builder"
            self._jobs.log.add(job.id, [f"gitd was restarted{waits}"], stage="gitd")
            if is_ours:
                self._background.spawn(self.course.take_back(running))

    def watch_silence(self, react: Callable[[str], None]) -> None:
        """Call `react` with each slot that spoke, and lost its lease by silence: it hangs."""
        self._on_silence = react

    def watch_plain(self, react: Callable[[str], None]) -> None:
        """See `Slotless.watch_plain`."""
        self._slotless.watch_plain(react)

    async def reap(self) -> None:
        """Take jobs back from slots that fell silent, for ever.

        Nothing is waited for: while the disk is full, what is taken back is not written down.
        """
        await for_ever(self._reap_once, failed="builds_not_reaped", pause_s=REAP_EVERY_S)

    async def _reap_once(self) -> None:
        began = _now()
        await asyncio.sleep(REAP_EVERY_S)
        now = _now()
        stalled_s = now - began - REAP_EVERY_S
        for running in self.leases:
            if running.deadline is None:
                continue
            if stalled_s > REAP_EVERY_S:  # nobody could be heard while this process stood still
                running.deadline += stalled_s
            if running.deadline < now:
                self._background.spawn(self.course.take_back(running, "fell silent"))
                if running.has_spoken:
                    self._on_silence(running.slot)
            elif running.ends_by < now:
                self.course.end_overdue(running)

    async def close(self, *, ends_slots: bool = False) -> None:
        """Let the slots go that wait: the server stops.

        `ends_slots`: they stop with it, and what they build is queued again for the next start.
        """
        self.leases.is_closing = True
        for running in self.leases:
            if ends_slots and running.finishing is None:
                await self.course.take_back(running)
            running.released.set()
        self.dispatcher.stir()

    def _on_job(self, job: Job) -> None:
        if job.type is not JobType.BUILD_RUN:
            return
        if job.status is JobStatus.QUEUED:
            self.dispatcher.add(job)
        elif job.status.is_final:
            self.dispatcher.queue.leave(job.id)
            self._slotless.forget(job.id)
            running = self.leases.find(job.id)
            if running is not None and running.finishing is None:
                self.course.forget(job.id)
        self.dispatcher.stir()

    # -- what slots ask -------------------------------------------------------------------------

    async def lease(
        self,
        slot: str,
        wait_s: float,
        *,
        toolchain: Mapping[str, str] | None = None,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> Lease | None:
        """Give the slot the next job, waiting up to `wait_s` for one.

        A slot that asks holds nothing: a job that it had is taken back first. `toolchain` is what
        it builds with. `is_gone` says whether it still waits.

        Raises:
            ValueError: The slot has the name under which control packs builds itself.
        """
        if slot == CONTROL:
            raise ValueError(f"a slot may not be named {CONTROL}")
        self._slotless.note_toolchain(toolchain or {})
        for held in [r for r in self.leases if r.slot == slot and r.finishing is None]:
            await self.course.take_back(held, "started anew")
        build = await self.dispatcher.next(slot, wait_s, is_gone=is_gone)
        if build is None:
            return None
        running = self.course.begin(build.job_id, slot)
        # What cannot be built ends here, and the slot asks again at once.
        if refused := await self.dispatcher.refused_for_room(build):
            await self.course.fail_here(build.job_id, refused)
            return None
        if not self.leases.holds(running):  # canceled meanwhile
            return None
        try:
            return self.supplies.lease(running)
        except StorageError as error:
            failure = failure_of(error)
            if failure.code == SOURCE_UNREADABLE:
                log.exception("lease_failed", job_id=build.job_id)
            await self.course.fail_here(build.job_id, Failure(failure.code, str(failure)))
            return None

    async def started(self, job_id: str) -> None:
        """Wait until it is written down that the job runs: what it says comes after that.

        Raises:
            LeaseLostError: Nobody holds the job.
        """
        await self.leases.held(job_id).started.wait()

    def take_log(self, job_id: str, batch: LogBatch) -> None:
        running = self.leases.held(job_id)
        self.leases.renew(running)
        self._take_lines(running, batch)

    def _take_lines(self, running: Running, batch: LogBatch) -> None:
        lines = [
            LogLine(line.line, line.at, line.stage, mark=line.mark, seconds=line.seconds)
            for line in batch.lines
        ]
        running.lines_seen = self._jobs.log.add_batch(
            running.job.id, lines, first=batch.first, source=running.source, seen=running.lines_seen
        )

    def output_path(self, job_id: str) -> Path:
        """Where the tar of the job's output is kept until the build is finished."""
        self.leases.held(job_id)
        return self._packer.tar_of(job_id)

    async def finish(self, job_id: str, outcome: Finish) -> None:
        """End the build: keep its output as a signed artifact, or its failure. Repeatable.

        Raises:
            LeaseLostError: The slot does not hold the job, and it is not over.
        """
        running = self.leases.find(job_id)
        if running is None or running.slot != outcome.slot:
            job = self._jobs.get(job_id)
            if job is not None and job.status.is_final:
                return
            raise LeaseLostError
        ending = running.finishing
        if ending is None:
            keeping = self._take_outcome(running, outcome)
            ending = self.course.end(running, keeping, outcome.timings)
        await asyncio.shield(ending)

    async def give_back(self, job_id: str) -> None:
        """Queue a job again whose slot does not want it: it stops, or did not take the lease."""
        running = self.leases.find(job_id)
        if running is not None and running.finishing is None:
            await self.course.take_back(running)

    async def _take_outcome(self, running: Running, outcome: Finish) -> None:
        job_id = running.job.id
        await running.started.wait()
        self._take_last_lines(running, outcome.log)
        if outcome.status == "failed":
            error = outcome.error
            assert error is not None, "a failed build says why"
            failure = Failure(error.code, error.message, exit_status=error.exit_status)
            await self.course.fail(job_id, failure, outcome.timings)
        else:
            # One that asked twice may have been given other values meanwhile.
            given = next(iter(running.given)) if len(running.given) == 1 else None
            build, previews_only = self.dispatcher.build_of(running.job), running.previews_only
            await self._packer.keep(build, outcome, given=given, previews_only=previews_only)

    def _take_last_lines(self, running: Running, batch: LogBatch | None) -> None:
        """What cannot be written of them is lost: what was built is worth more."""
        if batch is not None:
            try:
                self._take_lines(running, batch)
            except OSError:
                log.exception("job_log_not_written", job_id=running.job.id)


def _now() -> float:
    return asyncio.get_running_loop().time()
