"""The course of a build, as the records have it: it begins, and ends, or is queued again.

A slot that falls silent loses the job, which is queued again, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

import structlog

from hooks.background import Background
from hooks.builds.control.dispatcher import NO_SPACE, QUOTA_EXCEEDED, QUOTA_REMEDY, Dispatcher
from hooks.builds.control.leases import Leases, Running
from hooks.builds.control.packing import Packer
from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.plain import CONTROL
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from storage.errors import QuotaExceededError, StorageError, StorageFullError, TreeError
from storage.model import Failure, Job, JobStatus
from storage.records import builds
from storage.records import jobs as job_rows

T = TypeVar("T")
log = structlog.get_logger(__name__)

LOSSES_MAX = 2  # the first time the build starts again, the second time it fails
WRITE_AGAIN_S = 1.0


class Course:
    """How the builds that are held begin and end. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        leases: Leases,
        dispatcher: Dispatcher,
        packer: Packer,
        background: Background,
    ) -> None:
        self._jobs = jobs
        self._leases = leases
        self._dispatcher = dispatcher
        self._packer = packer
        self._background = background

    # -- the beginning --------------------------------------------------------------------------

    def begin(self, job_id: str, slot: str) -> Running:
        """Let a slot, or control, hold the job, and write down that it runs."""
        job = self._jobs.get(job_id)
        assert job is not None, "jobs are never deleted"
        running = self._leases.begin(job, slot)
        self._background.spawn(self._start(running))
        return running

    def _start(self, running: Running) -> Coroutine[None, None, None]:
        """Write down that the job runs. Queued now: whatever ends the job is written after it."""
        job = running.job

        def change(changes: JobChanges) -> Job | None:
            started = changes.start(job.id, owner=running.slot, lease_id=running.lease_id)
            if started is not None:
                builds.start(changes.db, job.resource_id, changes.now)
            return started

        started = self._jobs.submit(change)

        async def forget_unless_started() -> None:
            try:
                if await started is None and self._leases.holds(running):
                    self.forget(job.id)
            except StorageError:  # it is built all the same, and its end is written down
                log.exception("job_not_started", job_id=job.id)
            finally:
                running.started.set()

        return forget_unless_started()

    # -- the end --------------------------------------------------------------------------------

    def end(
        self,
        running: Running,
        keeping: Awaitable[None],
        timings: Mapping[str, float] | None = None,
    ) -> asyncio.Task[None]:
        """Begin to end a build by `keeping` its output, or with the reason why it is not kept."""
        running.deadline = None
        running.finishing = self._background.spawn(self._conclude(running, keeping, timings))
        return running.finishing

    async def _conclude(
        self, running: Running, keeping: Awaitable[None], timings: Mapping[str, float] | None
    ) -> None:
        job_id = running.job.id
        try:
            await self._keep_or_fail(job_id, keeping, timings)
        except Exception:  # the ring of a build's end, or its job would run for ever
            log.exception("build_finish_failed", job_id=job_id)
            # What was raised may hold what cannot be written down, or is none of the user's.
            message = (
                "The server failed to end the build, through no fault of the commit. Its log says "
                f"why, at job {job_id}."
            )
            await self.fail_here(job_id, Failure("build.internal", message), timings)
        finally:
            if running.slot != CONTROL:
                self._dispatcher.note_slot()
            self.forget(job_id)
            self._packer.discard(job_id)

    async def _keep_or_fail(
        self, job_id: str, keeping: Awaitable[None], timings: Mapping[str, float] | None
    ) -> None:
        try:
            await keeping
        except BuildFailedError as error:
            await self.fail_here(job_id, Failure(error.code, str(error)), timings)
        except TreeError as error:
            failure = Failure("build.output_invalid", str(error))
            await self.fail_here(job_id, failure, timings)
        except StorageFullError as error:
            failure = Failure(NO_SPACE, f"{error}. Nothing was kept.")
            await self.fail_here(job_id, failure, timings)
        except QuotaExceededError as error:
            message = f"Nothing was kept: {error}. {QUOTA_REMEDY}"
            await self.fail_here(job_id, Failure(QUOTA_EXCEEDED, message), timings)

    def end_overdue(self, running: Running) -> None:
        """Begin to end a build that its slot did not end in time."""
        log.warning("build_overdue", job_id=running.job.id, slot=running.slot)
        limit_s = self._leases.limits.timeout_s
        message = (
            f"time: the build took longer than {limit_s:,} s (builders.timeout_s), and its builder"
            " did not end it."
        )

        async def fail() -> None:
            raise BuildFailedError("build.timed_out", message)

        self.end(running, fail())

    async def fail(
        self, job_id: str, failure: Failure, timings: Mapping[str, float] | None = None
    ) -> None:
        await self.write_down(lambda changes: _fail(changes, job_id, failure, timings))
        self.forget(job_id)

    async def fail_here(
        self, job_id: str, failure: Failure, timings: Mapping[str, float] | None = None
    ) -> None:
        """Fail a job for a reason that its slot did not write into the log."""
        if (running := self._leases.find(job_id)) is not None:
            await running.started.wait()
        self._jobs.log.add(job_id, failure.message.splitlines(), stage="gitd")
        await self.fail(job_id, failure, timings)

    def forget(self, job_id: str) -> None:
        """Let go of a job that is over: its slot hears of it now. What it sent is nobody's, but
        for what is being packed.
        """
        running = self._leases.drop(job_id)
        if running is not None and running.finishing is None:
            self._packer.discard(job_id)
        self._dispatcher.queue.leave(job_id)
        self._dispatcher.stir()

    # -- or another beginning -------------------------------------------------------------------

    async def take_back(self, running: Running, loss: str | None = None) -> None:
        """Queue a job again. `loss` says how its slot was lost; None when it gave the job back.

        The slot holds it no longer from the first step on. Ends when it is written down, which
        takes as long as a full disk stays full.
        """
        job_id = running.job.id
        if not self._leases.holds(running):
            return
        self._leases.drop(job_id)
        self._packer.discard(job_id)
        log.warning("build_taken_back", job_id=job_id, slot=running.slot, loss=loss)

        def change(changes: JobChanges) -> bool:
            """Say whether it is queued as it is: that it ran could not be written down."""
            job = job_rows.get(changes.db, job_id)
            if job is None or job.status is not JobStatus.RUNNING:
                return job is not None and job.status is JobStatus.QUEUED
            if loss is None or job.losses + 1 < LOSSES_MAX:
                changes.requeue(job_id, is_loss=loss is not None)
                builds.requeue(changes.db, job.resource_id)
                return False
            message = (
                f"The builder was lost {LOSSES_MAX} times while it ran this build (the last time: "
                f"{loss}). Look at the server's log, then build again."
            )
            _fail(changes, job_id, Failure("build.builder_lost", message))
            return False

        if running.slot != CONTROL:
            said = "was stopped" if loss is None else f"was lost ({loss})"
            self._jobs.log.add(job_id, [f"the builder {said}"], stage="gitd")
        if await self.write_down(change):
            self._dispatcher.add(running.job)
            self._dispatcher.stir()

    async def write_down(self, change: Callable[[JobChanges], T]) -> T:
        """Commit that a job is over or waits again, however often the disk has no room for it.

        Or the job would count as running, and nobody would run it.
        """
        while True:
            try:
                return await self._jobs.commit(change)
            except StorageError:
                if self._leases.is_closing:
                    raise
                log.exception("job_not_written_down")
            await asyncio.sleep(WRITE_AGAIN_S)


def _fail(
    changes: JobChanges,
    job_id: str,
    failure: Failure,
    timings: Mapping[str, float] | None = None,
) -> None:
    job = changes.fail(job_id, failure)
    if job is None:
        return
    build = builds.get(changes.db, job.resource_id)
    assert build is not None, "a job has its build"
    took = {**build.waited, **(timings or {})}
    builds.end(changes.db, build.id, JobStatus.FAILED, failure, changes.now, timings=took)
