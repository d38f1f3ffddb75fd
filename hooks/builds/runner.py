"""Control's side of builds: which job goes to which slot, and how it ends.

A lease lives in memory and as long as its heartbeats. A slot that falls silent loses the job, which
is queued again; after a restart of control, jobs that a slot was running wait one lease for it to
speak up. The order of the queue is the order of the jobs, one build at a time per environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

from hooks.builds.packing import Packer
from hooks.builds.wire import (
    CONFIG_FILE_BYTES_MAX,
    CONFIG_FILES,
    Finish,
    Heartbeat,
    HeartbeatAnswer,
    Lease,
    LogBatch,
    RootEntry,
)
from hooks.jobs import JobChanges, Jobs
from storage.errors import StorageError, StorageFullError, TreeError
from storage.git.errors import RepositoryError
from storage.joblog import LogLine
from storage.model import (
    Build,
    Failure,
    Job,
    JobStatus,
    JobType,
)
from storage.records import builds, environments, sites
from storage.records import jobs as job_rows
from storage.repos import Repositories

log = structlog.get_logger(__name__)

ATTEMPTS_MAX = 3
REAP_EVERY_S = 0.5
PROGRESS_EVERY_S = 1.0
BUILDER = "builder"  # the source of a slot's lines in the job's log


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What a build may use. Times in seconds, sizes in bytes."""

    timeout_s: int = 900
    lease_s: float = 5.0
    output_bytes_max: int = 2 * 1024**3


@dataclass(slots=True)
class _Running:
    """A leased job. `deadline` is loop time; None while its output is being packed."""

    job: Job
    slot: str
    deadline: float | None
    lines_seen: int
    progress_at: float = 0.0
    finishing: asyncio.Task[None] | None = field(default=None)


class LeaseLostError(Exception):
    """The slot does not hold this job (any more)."""


class BuildRunner:
    """The builds of one server. Belongs to one event loop."""

    def __init__(
        self, jobs: Jobs, repositories: Repositories, packer: Packer, *, limits: BuildLimits
    ) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._repositories = repositories
        self._packer = packer
        self.limits = limits
        self._queue: dict[str, Job] = {}
        self._running: dict[str, _Running] = {}
        self._hungry: asyncio.Condition = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        jobs.watch(self._on_job)

    # -- life -----------------------------------------------------------------------------------

    def recover(self) -> None:
        """After a start: queue what was queued, and wait one lease for what a slot was running."""
        self._packer.tidy()
        for job in job_rows.unfinished(self._records.reader(), JobType.BUILD_RUN):
            if job.status is JobStatus.QUEUED:
                self._queue[job.id] = job
            else:
                self._running[job.id] = _Running(
                    job,
                    job.owner or "",
                    self._now() + self.limits.lease_s,
                    self._jobs.joblogs.lines_seen(job.id, BUILDER),
                )
                self._jobs.log(
                    job.id, ["gitd was restarted; waiting for the builder"], stage="gitd"
                )

    async def reap(self) -> None:
        """Take jobs back from slots that fell silent, for ever."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            for running in list(self._running.values()):
                if running.deadline is not None and running.deadline < self._now():
                    await self._take_back(running.job.id)

    async def close(self) -> None:
        """Let the slots go that wait for work: the server stops."""
        self._is_closing = True
        await self._wake()

    # -- what slots ask -------------------------------------------------------------------------

    async def lease(
        self, slot: str, wait_s: float, *, is_gone: Callable[[], bool] = lambda: False
    ) -> Lease | None:
        """Give the slot the next job, waiting up to `wait_s` for one.

        A slot that asks holds nothing: a job that it had is taken back first. `is_gone` says
        whether it still waits.
        """
        for job_id in [r.job.id for r in self._running.values() if r.slot == slot]:
            if self._running[job_id].finishing is None:
                await self._take_back(job_id)
        end = self._now() + wait_s
        while is_gone() or self._is_closing or (job := self._next_job()) is None:
            if is_gone() or self._is_closing or not await self._woken(end - self._now()):
                return None
        running = _Running(job, slot, self._now() + self.limits.lease_s, 0)
        self._running[job.id] = running
        running.lines_seen = self._jobs.joblogs.lines_seen(job.id, BUILDER)
        self._spawn(self._run(job, slot))
        try:
            return self._make_lease(job)
        except (StorageError, RepositoryError) as error:
            log.exception("lease_failed", job_id=job.id)
            await self._fail(
                job.id, Failure("build.source_unreadable", f"The commit cannot be read: {error}")
            )
            return None

    def source_of(self, job_id: str) -> Callable[[BinaryIO], None]:
        """Return what writes the tar of the job's commit. Blocking: call it in a thread."""
        build = self._build(self._held(job_id).job)

        def write(out: BinaryIO) -> None:
            self._repositories.write_tar(build.site_id, build.commit, ".", out)

        return write

    def take_log(self, job_id: str, batch: LogBatch) -> None:
        running = self._held(job_id)
        running.deadline = self._now() + self.limits.lease_s
        lines = [LogLine(line.line, line.at, line.stage) for line in batch.lines]
        running.lines_seen = self._jobs.log_batch(
            job_id, lines, first=batch.first, source=BUILDER, seen=running.lines_seen
        )

    def heartbeat(self, job_id: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew the lease. `canceled` tells the slot to end the build.

        Raises:
            LeaseLostError: The slot does not hold the job.
        """
        running = self._running.get(job_id)
        if running is None or running.slot != beat.slot:
            job = self._jobs.get(job_id)
            if job is not None and job.status is JobStatus.CANCELED:
                return HeartbeatAnswer(canceled=True)
            raise LeaseLostError
        if running.deadline is not None:
            running.deadline = self._now() + self.limits.lease_s
        self._note_progress(running, beat.progress)
        return HeartbeatAnswer(canceled=False)

    def output_path(self, job_id: str) -> Path:
        """Where the tar of the job's output is kept until the build is finished."""
        self._held(job_id)
        return self._packer.tar_of(job_id)

    async def finish(self, job_id: str, outcome: Finish) -> None:
        """End the build: keep its output as a signed artifact, or its failure. Repeatable.

        Raises:
            LeaseLostError: The slot does not hold the job, and it is not over.
        """
        running = self._running.get(job_id)
        if running is None or running.slot != outcome.slot:
            job = self._jobs.get(job_id)
            if job is not None and job.status.is_final:
                return
            raise LeaseLostError
        if running.finishing is None:
            running.deadline = None
            running.finishing = self._spawn(self._end(running, outcome))
        await asyncio.shield(running.finishing)

    def slot_of(self, job_id: str) -> str | None:
        """The slot that holds the job, None when none does."""
        running = self._running.get(job_id)
        return running.slot if running is not None else None

    async def give_back(self, job_id: str) -> None:
        """Queue a job again whose slot did not take it."""
        await self._take_back(job_id)

    # -- the end of a build ---------------------------------------------------------------------

    async def _end(self, running: _Running, outcome: Finish) -> None:
        job_id = running.job.id
        try:
            if outcome.status == "failed":
                error = outcome.error
                assert error is not None, "a failed build says why"
                await self._fail(
                    job_id, Failure(error.code, error.message, exit_status=error.exit_status)
                )
            else:
                await self._packer.keep(self._build(running.job), outcome)
        except TreeError as error:
            await self._fail(job_id, Failure("build.output_invalid", str(error)))
        except StorageFullError as error:
            await self._fail(job_id, Failure("store.no_space", f"{error}. Nothing was kept."))
        except Exception as error:
            log.exception("build_finish_failed", job_id=job_id)
            await self._fail(
                job_id, Failure("build.internal", f"gitd could not keep the output: {error}")
            )
        finally:
            self._forget(job_id)
            self._packer.tar_of(job_id).unlink(missing_ok=True)

    async def _fail(self, job_id: str, failure: Failure) -> None:
        def change(changes: JobChanges) -> None:
            job = changes.fail(job_id, failure)
            if job is not None:
                builds.end(changes.db, job.resource_id, JobStatus.FAILED, failure, changes.now)

        await self._jobs.commit(change)
        self._forget(job_id)

    # -- the queue ------------------------------------------------------------------------------

    def _on_job(self, job: Job) -> None:
        if job.type is not JobType.BUILD_RUN:
            return
        if job.status is JobStatus.QUEUED:
            self._queue[job.id] = job
        elif job.status.is_final:
            self._queue.pop(job.id, None)
            running = self._running.get(job.id)
            if running is not None and running.finishing is None:
                del self._running[job.id]
        self._spawn(self._wake())

    def _next_job(self) -> Job | None:
        busy = {running.job.env_id for running in self._running.values()}
        for job in sorted(self._queue.values(), key=lambda queued: queued.id):
            if job.env_id not in busy:
                return self._queue.pop(job.id)
        return None

    def _make_lease(self, job: Job) -> Lease:
        build = self._build(job)
        reader = self._records.reader()
        site = sites.find(reader, build.site_id)
        environment = environments.get(reader, build.env_id)
        assert site is not None, "a site that goes cancels its builds"
        assert environment is not None, "an environment that goes cancels its builds"
        listing = self._repositories.root_listing(build.site_id, build.commit)
        return Lease(
            job_id=job.id,
            build_id=build.id,
            site=site.name,
            environment=environment.slug,
            ref=build.ref,
            commit=build.commit,
            clean=build.clean,
            timeout_s=self.limits.timeout_s,
            lease_s=self.limits.lease_s,
            output_bytes_max=self.limits.output_bytes_max,
            root_entries=tuple(RootEntry(e.name, e.kind.value) for e in listing),
            files=self._config_files(build, [entry.name for entry in listing]),
        )

    def _config_files(self, build: Build, names: Sequence[str]) -> dict[str, str]:
        files = {}
        for name in set(CONFIG_FILES).intersection(names):
            content = self._repositories.read_file(
                build.site_id, build.commit, name, CONFIG_FILE_BYTES_MAX
            )
            if content is not None:
                files[name] = content.decode(errors="replace")
        return files

    def _run(self, job: Job, slot: str) -> Coroutine[None, None, None]:
        """Write down that the job runs. Queued now: whatever ends the job is written after it."""

        def change(changes: JobChanges) -> Job | None:
            started = changes.start(job.id, owner=slot)
            if started is not None:
                builds.start(changes.db, job.resource_id, changes.now)
            return started

        started = self._jobs.submit(change)

        async def forget_unless_started() -> None:
            if await started is None:
                self._forget(job.id)

        return forget_unless_started()

    async def _take_back(self, job_id: str) -> None:
        running = self._running.pop(job_id, None)
        if running is None:
            return
        log.warning("builder_lost", job_id=job_id, slot=running.slot)

        def change(changes: JobChanges) -> None:
            job = job_rows.get(changes.db, job_id)
            if job is None or job.status is not JobStatus.RUNNING:
                return
            if job.attempts < ATTEMPTS_MAX:
                changes.requeue(job_id)
                builds.requeue(changes.db, job.resource_id)
                return
            failure = Failure(
                "build.builder_lost",
                f"The builder was lost {ATTEMPTS_MAX} times while it ran this build. "
                "Look at the server's log, then push again.",
            )
            changes.fail(job_id, failure)
            builds.end(changes.db, job.resource_id, JobStatus.FAILED, failure, changes.now)

        self._jobs.log(job_id, ["the builder was lost; starting again"], stage="gitd")
        await self._jobs.commit(change)

    def _note_progress(self, running: _Running, progress: int) -> None:
        now = self._now()
        if progress <= running.job.progress or now - running.progress_at < PROGRESS_EVERY_S:
            return
        running.progress_at = now
        job_id = running.job.id

        async def advance() -> None:
            await self._jobs.commit(lambda changes: changes.advance(job_id, min(progress, 99)))

        self._spawn(advance())

    def _held(self, job_id: str) -> _Running:
        running = self._running.get(job_id)
        if running is None:
            raise LeaseLostError
        return running

    def _build(self, job: Job) -> Build:
        build = builds.get(self._records.reader(), job.resource_id)
        assert build is not None, "a job has its build"
        return build

    def _forget(self, job_id: str) -> None:
        self._running.pop(job_id, None)
        self._spawn(self._wake())

    async def _wake(self) -> None:
        async with self._hungry:
            self._hungry.notify_all()

    async def _woken(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(max(0, timeout_s)), self._hungry:
                await self._hungry.wait()
        except TimeoutError:
            return False
        return True

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
