"""Control's side of builds: which job goes to which slot, and how it ends.

A lease lives in memory and as long as its heartbeats. A slot that falls silent loses the job, which
is queued again, once; after a restart of control, jobs that a slot was running wait for it to speak
up. Whatever a slot says names its lease: one that lost it, and wakes up late, is not heard.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog

from hooks.builds.build_cache import BuildCaches
from hooks.builds.errors import BuildFailedError
from hooks.builds.given import given_to_build
from hooks.builds.packing import Packer
from hooks.builds.plain import CONTROL, DETECT, finished, plain_plan
from hooks.builds.plan import Plan
from hooks.builds.queue import BuildQueue, Waiting
from hooks.builds.sources import Sources
from hooks.builds.toolchain import toolchain_digest
from hooks.builds.wire import (
    CacheAnswer,
    CacheRequest,
    Finish,
    Folder,
    Given,
    Heartbeat,
    HeartbeatAnswer,
    Lease,
    LogBatch,
    SandboxLimits,
)
from hooks.housekeeping import Housekeeping
from hooks.jobs import JobChanges, Jobs, QueuePlace
from hooks.variables import BuildValues, Variables
from storage.errors import (
    QuotaExceededError,
    SealBrokenError,
    StorageError,
    StorageFullError,
    TreeError,
)
from storage.git.errors import RepositoryError
from storage.ids import new_id
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

T = TypeVar("T")
log = structlog.get_logger(__name__)

LOSSES_MAX = 2  # the first time the build starts again, the second time it fails
REAP_EVERY_S = 0.5
SPEAK_UP_S = 3.0  # after a restart: a slot whose call broke off tries again twice a second
ABSENT_S = 10.0  # a slot that has ended a build asks for the next one within that time
WRITE_AGAIN_S = 1.0
PROGRESS_EVERY_S = 1.0
NO_SPACE = "store.no_space"
QUOTA_EXCEEDED = "store.quota_exceeded"
QUOTA_REMEDY = "Delete previews, or unpin artifacts, or ask for more."
PACKS_COUNT_MAX = 2  # of plain commits at once; slots help with what waits beyond that
PLAIN_ATTEMPTS_MAX = 2  # then a slot does it: how often that one is lost has a bound
BUILDER = "builder"  # the source of a slot's lines in the job's log, with the attempt's number


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What a build may use. Times in seconds, sizes in bytes.

    A slot ends a build that takes longer than `timeout_s`; one that does not within `overtime_s`
    more loses it.
    """

    timeout_s: int = 900
    overtime_s: float = 60.0
    lease_s: float = 5.0
    output_bytes_max: int = 2 * 1024**3
    cache_bytes_max: int = 2 * 1024**3
    sandbox: SandboxLimits = field(default_factory=SandboxLimits)


@dataclass(slots=True)
class _Running:
    """A job that a slot leased, or that control packs itself. Times are loop times.

    Attributes:
        slot: `CONTROL` for what control packs itself.
        source: of its lines in the job's log.
        deadline: when the lease ends; None while the output is being packed.
        ends_by: when the slot must have ended the build, heartbeats or not.
        has_spoken: the slot did, since this process started.
        given: digests of the variables and secrets that the slot was given, since then.
        previews_only: if it is of a preview, it may have begun with what one left.
        began_at: when it was leased, or begun here, since this process started. Unix, in ms.
        started: set when the job's log says that it runs.
        released: set when the slot holds it no longer.
    """

    job: Job
    slot: str
    lease_id: str
    source: str
    deadline: float | None
    ends_by: float
    lines_seen: int
    has_spoken: bool
    progress_at: float = 0.0
    began_at: int | None = None
    given: set[str] = field(default_factory=set)
    previews_only: bool = False
    finishing: asyncio.Task[None] | None = field(default=None)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseLostError(Exception):
    """The slot does not hold this job (any more)."""


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
        self._packs_plain = packs_plain
        self._packing = 0
        self._variables = variables
        self._caches = caches
        self._housekeeping = housekeeping
        self._jobs = jobs
        self._records = jobs.records
        self._sources = sources
        self._packer = packer
        self.limits = limits
        self._queue = BuildQueue()
        self._running: dict[str, _Running] = {}
        self._free_slots = 0
        self._absent_at = 0.0  # when slots that neither wait nor build count as gone
        self._news = asyncio.Event()
        self._toolchain: str | None = None  # the digest of what slots build with, once one asked
        self._programs: dict[str, str] = {}  # that, in words
        self._looked_up: set[str] = set()  # jobs whose inputs gave nothing before
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_closing = False
        self._on_silence: Callable[[str], None] = lambda _: None
        self._on_plain: Callable[[str], None] = lambda _: None
        jobs.watch(self._on_job)
        jobs.place_by(self._place)
        if housekeeping is not None:
            housekeeping.watch(self._stir)

    # -- life -----------------------------------------------------------------------------------

    def recover(self, *, slots_are_gone: bool = False) -> None:
        """After a start: queue what was queued, and wait for the slots that were running builds.

        `slots_are_gone`: those of the run before died with it, so there is nobody to wait for.
        """
        speak_up_s = 0.0 if slots_are_gone else min(self.limits.lease_s, SPEAK_UP_S)
        self._packer.tidy()
        now = self._now()
        for job in job_rows.unfinished(self._records.reader(), JobType.BUILD_RUN):
            if job.status is JobStatus.QUEUED:
                self._queue.add(self._waiting(job))
                continue
            self._queue.resume(self._waiting(job))
            source = f"{BUILDER}-{job.attempts}"
            self._running[job.id] = _Running(
                job,
                job.owner or "",
                job.lease_id or "",
                source,
                deadline=now + speak_up_s,
                ends_by=now + self.limits.timeout_s + self.limits.overtime_s,
                lines_seen=self._jobs.joblogs.lines_seen(job.id, source),
                has_spoken=False,
                previews_only=True,  # nobody knows what it began with
            )
            self._running[job.id].started.set()
            is_ours = job.owner == CONTROL
            waits = "" if slots_are_gone or is_ours else "; waiting for the builder"
            self._jobs.log(job.id, [f"gitd was restarted{waits}"], stage="gitd")
            if is_ours:
                self._spawn(self._take_back(self._running[job.id]))

    def watch_silence(self, react: Callable[[str], None]) -> None:
        """Call `react` with each slot that spoke, and lost its lease by silence: it hangs."""
        self._on_silence = react

    def watch_plain(self, react: Callable[[str], None]) -> None:
        """Call `react` with the environment that a plain commit is to be deployed onto, when it
        begins to be packed: that takes but a moment.
        """
        self._on_plain = react

    async def reap(self) -> None:
        """Take jobs back from slots that fell silent, for ever."""
        while True:
            began = self._now()
            await asyncio.sleep(REAP_EVERY_S)
            now = self._now()
            stalled_s = now - began - REAP_EVERY_S
            for running in list(self._running.values()):
                if running.deadline is None:
                    continue
                if stalled_s > REAP_EVERY_S:  # nobody could be heard while this process stood still
                    running.deadline += stalled_s
                if running.deadline < now:
                    await self._take_back(running, "fell silent")
                    if running.has_spoken:
                        self._on_silence(running.slot)
                elif running.ends_by < now:
                    await self._fail_overdue(running)

    async def close(self, *, ends_slots: bool = False) -> None:
        """Let the slots go that wait: the server stops.

        `ends_slots`: they stop with it, and what they build is queued again for the next start.
        """
        self.is_closing = True
        for running in list(self._running.values()):
            if ends_slots and running.finishing is None:
                await self._take_back(running)
            running.released.set()
        self._stir()

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
        self._note_toolchain(toolchain or {})
        for held in [r for r in self._running.values() if r.slot == slot and r.finishing is None]:
            await self._take_back(held, "started anew")
        end = self._now() + wait_s
        self._free_slots += 1
        try:
            while is_gone() or self.is_closing or (build := self._next_build()) is None:
                if is_gone() or self.is_closing or not await self._stirred(end - self._now()):
                    return None
        finally:
            self._free_slots -= 1
            self._absent_at = self._now() + ABSENT_S
        self._stir()
        running = self._begin(build, slot)
        # What cannot be built ends here, and the slot asks again at once.
        if refused := await self._refused_for_room(build):
            await self._fail_here(build.job_id, refused)
            return None
        if self._running.get(build.job_id) is not running:  # canceled meanwhile
            return None
        try:
            return self._make_lease(running)
        except (StorageError, RepositoryError) as error:
            log.exception("lease_failed", job_id=build.job_id)
            message = f"The commit cannot be read: {error}"
            await self._fail_here(build.job_id, Failure("build.source_unreadable", message))
            return None

    def check(self, job_id: str, lease_id: str) -> str | None:
        """Return the slot that holds the job, None when none does.

        Raises:
            LeaseLostError: It is held, and by another lease.
        """
        running = self._running.get(job_id)
        if running is None:
            return None
        if running.lease_id != lease_id:
            raise LeaseLostError
        return running.slot

    async def folder_of(self, job_id: str, path: str) -> Folder | None:
        """Return what is in a folder of the job's commit, None where it has no such folder."""
        build = self._build(self._held(job_id).job)
        return await asyncio.to_thread(self._sources.folder, build, path)

    async def source_of(
        self, job_id: str, folder: str, *, ignores_submodules: bool
    ) -> Callable[[BinaryIO], None]:
        """Return what writes the tar of a folder of the job's commit. Blocking: for a thread.

        Raises:
            BuildFailedError: `build.submodule_unavailable`.
        """
        build = self._build(self._held(job_id).job)
        grafts = await asyncio.to_thread(
            self._sources.grafts, build, folder, ignores_submodules=ignores_submodules
        )
        return functools.partial(self._sources.write_tar, build, folder, grafts)

    def variables_of(self, job_id: str, declared: Sequence[str]) -> Given:
        """Return the values of what the job's commit declares: for its slot alone.

        Raises:
            BuildFailedError: `build.variable_missing`, `build.variables_unreadable`.
        """
        running = self._held(job_id)
        build = self._build(running.job)
        if self._variables is None:
            return given_to_build(BuildValues(missing=tuple(declared)))
        try:
            found = self._variables.for_build(
                self._records.reader(), build.site_id, build.env_id, declared
            )
        except SealBrokenError as error:
            log.exception("variables_unreadable", job_id=job_id)
            raise BuildFailedError(
                "build.variables_unreadable", "The server cannot open the values that are set."
            ) from error
        given = given_to_build(found)
        running.given.add(given.digest)
        return given

    async def started(self, job_id: str) -> None:
        """Wait until it is written down that the job runs: what it says comes after that.

        Raises:
            LeaseLostError: Nobody holds the job.
        """
        await self._held(job_id).started.wait()

    async def find_cache(self, job_id: str, wanted: CacheRequest) -> CacheAnswer:
        """Say which cache the build begins with."""
        build = self._build(self._held(job_id).job)
        if self._caches is None:
            return CacheAnswer("none is kept here")
        try:
            return await asyncio.to_thread(self._caches.find, build, wanted)
        except StorageError as error:
            return CacheAnswer(f"not used: {error}")

    def cache_of(self, job_id: str, digest: str) -> Callable[[BinaryIO], None]:
        """Return what writes the tar of a cache. Blocking: for a thread."""
        running = self._held(job_id)
        build = self._build(running.job)
        assert self._caches is not None, "no cache was found without them"
        if self._caches.is_of_previews(build, digest):
            running.previews_only = True
        return functools.partial(self._caches.write_tar, build, digest)

    async def keep_cache(self, job_id: str, kept: CacheRequest, tar: Path) -> CacheAnswer:
        """Keep what the build leaves for the next one."""
        build = self._build(self._held(job_id).job)
        if self._caches is None:
            return CacheAnswer("not kept: none is kept here")
        return await asyncio.to_thread(self._caches.keep, build, kept, tar)

    def take_log(self, job_id: str, batch: LogBatch) -> None:
        running = self._held(job_id)
        self._renew(running)
        self._take_lines(running, batch)

    def _take_lines(self, running: _Running, batch: LogBatch) -> None:
        lines = [
            LogLine(line.line, line.at, line.stage, mark=line.mark, seconds=line.seconds)
            for line in batch.lines
        ]
        running.lines_seen = self._jobs.log_batch(
            running.job.id, lines, first=batch.first, source=running.source, seen=running.lines_seen
        )

    def heartbeat(self, job_id: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew the lease. `canceled` tells the slot to end the build.

        Raises:
            LeaseLostError: The slot does not hold the job.
        """
        running = self._running.get(job_id)
        if running is None or running.slot != beat.slot:
            return self._released(job_id)
        self._renew(running)
        self._note_progress(running, beat.progress)
        return HeartbeatAnswer(canceled=False)

    async def hold(self, job_id: str, beat: Heartbeat) -> HeartbeatAnswer:
        """As `heartbeat`, and wait up to `beat.wait_s`: a cancel is told the moment it comes.

        Raises:
            LeaseLostError: As above, now or meanwhile.
        """
        answer = self.heartbeat(job_id, beat)
        running = self._running.get(job_id)
        if running is None or self.is_closing:
            return answer
        try:
            async with asyncio.timeout(min(beat.wait_s, self.limits.lease_s)):
                await running.released.wait()
        except TimeoutError:
            return answer
        if self._running.get(job_id) is running:  # the server stops, and the build goes on
            return answer
        return self._released(job_id)

    def has_room(self) -> bool:
        """Whether the disk takes more of an output that is being sent."""
        return self._housekeeping is None or self._housekeeping.lack() is None

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

    async def give_back(self, job_id: str) -> None:
        """Queue a job again whose slot does not want it: it stops, or did not take the lease."""
        running = self._running.get(job_id)
        if running is not None and running.finishing is None:
            await self._take_back(running)

    # -- the end of a build ---------------------------------------------------------------------

    async def _end(self, running: _Running, outcome: Finish) -> None:
        await self._conclude(running, self._take_outcome(running, outcome), outcome.timings)

    async def _take_outcome(self, running: _Running, outcome: Finish) -> None:
        job_id = running.job.id
        await running.started.wait()
        self._take_last_lines(running, outcome.log)
        if outcome.status == "failed":
            error = outcome.error
            assert error is not None, "a failed build says why"
            failure = Failure(error.code, error.message, exit_status=error.exit_status)
            await self._fail(job_id, failure, outcome.timings)
        else:
            # One that asked twice may have been given other values meanwhile.
            given = next(iter(running.given)) if len(running.given) == 1 else None
            build, previews_only = self._build(running.job), running.previews_only
            await self._packer.keep(build, outcome, given=given, previews_only=previews_only)

    async def _conclude(
        self,
        running: _Running,
        keeping: Awaitable[None],
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """End a build by `keeping` its output, or with the reason why it cannot be kept."""
        job_id = running.job.id
        try:
            await keeping
        except BuildFailedError as error:
            await self._fail_here(job_id, Failure(error.code, str(error)), timings)
        except TreeError as error:
            failure = Failure("build.output_invalid", str(error))
            await self._fail_here(job_id, failure, timings)
        except StorageFullError as error:
            failure = Failure(NO_SPACE, f"{error}. Nothing was kept.")
            await self._fail_here(job_id, failure, timings)
        except QuotaExceededError as error:
            message = f"Nothing was kept: {error}. {QUOTA_REMEDY}"
            await self._fail_here(job_id, Failure(QUOTA_EXCEEDED, message), timings)
        except Exception as error:
            log.exception("build_finish_failed", job_id=job_id)
            failure = Failure("build.internal", f"gitd could not keep the output: {error}")
            await self._fail_here(job_id, failure, timings)
        finally:
            if running.slot != CONTROL:
                self._absent_at = self._now() + ABSENT_S
            self._forget(job_id)
            self._packer.discard(job_id)

    def _take_last_lines(self, running: _Running, batch: LogBatch | None) -> None:
        """What cannot be written of them is lost: what was built is worth more."""
        if batch is not None:
            try:
                self._take_lines(running, batch)
            except OSError:
                log.exception("job_log_not_written", job_id=running.job.id)

    async def _fail(
        self, job_id: str, failure: Failure, timings: Mapping[str, float] | None = None
    ) -> None:
        await self._write_down(lambda changes: _fail(changes, job_id, failure, timings))
        self._forget(job_id)

    async def _fail_here(
        self, job_id: str, failure: Failure, timings: Mapping[str, float] | None = None
    ) -> None:
        """Fail a job for a reason that its slot did not write into the log."""
        if (running := self._running.get(job_id)) is not None:
            await running.started.wait()
        self._jobs.log(job_id, failure.message.splitlines(), stage="gitd")
        await self._fail(job_id, failure, timings)

    async def _fail_overdue(self, running: _Running) -> None:
        log.warning("build_overdue", job_id=running.job.id, slot=running.slot)
        limit_s = self.limits.timeout_s
        message = f"The build did not end within {limit_s} s, and its builder did not end it."
        await self._fail_here(running.job.id, Failure("build.timed_out", message))

    async def _take_back(self, running: _Running, loss: str | None = None) -> None:
        """Queue a job again. `loss` says how its slot was lost; None when it gave the job back."""
        job_id = running.job.id
        if self._running.get(job_id) is not running:
            return
        del self._running[job_id]
        running.released.set()
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
            self._jobs.log(job_id, [f"the builder {said}"], stage="gitd")
        if await self._write_down(change):
            self._queue.add(self._waiting(running.job))
            self._stir()

    async def _write_down(self, change: Callable[[JobChanges], T]) -> T:
        """Commit that a job is over or waits again, however often the disk has no room for it.

        Or the job would count as running, and nobody would run it.
        """
        while True:
            try:
                return await self._jobs.commit(change)
            except StorageError:
                if self.is_closing:
                    raise
                log.exception("job_not_written_down")
            await asyncio.sleep(WRITE_AGAIN_S)

    # -- the queue ------------------------------------------------------------------------------

    def _on_job(self, job: Job) -> None:
        if job.type is not JobType.BUILD_RUN:
            return
        if job.status is JobStatus.QUEUED:
            self._queue.add(self._waiting(job))
        elif job.status.is_final:
            self._queue.leave(job.id)
            self._looked_up.discard(job.id)
            running = self._running.get(job.id)
            if running is not None and running.finishing is None:
                self._forget(job.id)
        self._stir()

    def _next_build(self) -> Waiting | None:
        """The next build, once there is room for it, or no hope of any."""
        if not self._queue.startable() or not self._has_room_or_no_hope():
            return None
        return self._queue.take()

    def _has_room_or_no_hope(self) -> bool:
        return self._housekeeping is None or self._housekeeping.is_ready()

    async def _refused_for_room(self, build: Waiting) -> Failure | None:
        """Say why the store cannot take what the build would yield."""
        if self._housekeeping is None:
            return None
        if lack := self._housekeeping.lack():
            return Failure(NO_SPACE, f"The server has no room for builds: {lack}.")
        if excess := await self._housekeeping.exceeded_quota(build.site_id):
            return Failure(QUOTA_EXCEEDED, f"Nothing more can be kept: {excess}. {QUOTA_REMEDY}")
        return None

    def _note_toolchain(self, programs: Mapping[str, str]) -> None:
        """All slots build with what this machine has; an update counts from the next lease on."""
        digest = toolchain_digest(programs)
        if digest != self._toolchain:
            self._toolchain, self._programs = digest, dict(programs)
            self._looked_up.clear()
            self._do_without_slots()

    def _do_without_slots(self) -> None:
        self._answer_known()
        self._pack_plain()

    def _answer_known(self) -> None:
        """Begin to end the builds whose inputs gave an artifact before: they need no slot."""
        if self._toolchain is None or self.is_closing:
            return
        for build in self._queue.startable():
            if build.inputs is None or build.job_id in self._looked_up:
                continue
            self._looked_up.add(build.job_id)
            if self._packer.memo.recall(
                self._records.reader(),
                build.site_id,
                build.inputs,
                self._toolchain,
                for_preview=build.for_preview,
            ):
                self._queue.start(build)
                self._spawn(self._answer(build, self._toolchain))

    async def _answer(self, waiting: Waiting, toolchain: str) -> None:
        """End a build with what its inputs gave before, or let it wait for a slot after all."""
        job_id = waiting.job_id
        try:
            if await self._packer.reuse(self._find_build(waiting.build_id), toolchain):
                return
        except Exception:  # whatever it is, a slot can build it
            log.exception("memo_failed", job_id=job_id)
        job = self._jobs.get(job_id)
        if job is not None and job.status is JobStatus.QUEUED:
            self._queue.add(waiting)
        self._stir()

    def _pack_plain(self) -> None:
        """Begin to pack the plain commits whose turn it is: that, too, needs no slot.

        Once slots have said what they would build with: the statement tells it.
        """
        if self._toolchain is None or self.is_closing:
            return
        plain = [build for build in self._queue.startable() if build.plan is not None]
        if not plain or not self._has_room_or_no_hope():
            return
        for build in plain[: PACKS_COUNT_MAX - self._packing]:
            if build.plan is None:
                continue
            self._queue.start(build)
            try:
                running = self._begin(build, CONTROL)
            except Exception:  # whatever it is, the build waits for the next turn, or for a slot
                log.exception("packing_not_begun", job_id=build.job_id)
                self._running.pop(build.job_id, None)
                self._queue.add(build)
                continue
            self._packing += 1
            running.deadline = None
            running.finishing = self._spawn(self._pack(running, build, build.plan))
            if build.lane is not None:
                self._on_plain(build.lane)

    async def _pack(self, running: _Running, waiting: Waiting, plan: Plan) -> None:
        try:
            await self._conclude(running, self._keep_plain(running, waiting, plan))
        finally:
            self._packing -= 1
            self._stir()

    async def _keep_plain(self, running: _Running, waiting: Waiting, plan: Plan) -> None:
        if refused := await self._refused_for_room(waiting):
            await self._fail_here(waiting.job_id, refused)
            return

        async def begin_log() -> None:
            await running.started.wait()
            self._jobs.log(waiting.job_id, [plan.explanation, *plan.notes], stage=DETECT)

        outcome = finished(plan, self._programs)
        # The records may not say yet that it started.
        build = replace(self._build(running.job), started_at=running.began_at)
        await self._packer.keep(build, outcome, begin_log=begin_log)

    def _place(self, job_id: str) -> QueuePlace | None:
        is_building = any(running.slot != CONTROL for running in self._running.values())
        has_builders = self._free_slots > 0 or is_building or self._now() < self._absent_at
        return self._queue.place(job_id, free_slots=self._free_slots, has_builders=has_builders)

    def _begin(self, waiting: Waiting, slot: str) -> _Running:
        job = self._jobs.get(waiting.job_id)
        assert job is not None, "jobs are never deleted"
        now = self._now()
        running = _Running(
            job,
            slot,
            new_id("lease"),
            f"{BUILDER}-{job.attempts + 1}",
            deadline=now + self.limits.lease_s,
            ends_by=now + self.limits.timeout_s + self.limits.overtime_s,
            lines_seen=0,
            has_spoken=True,
            progress_at=now,
            began_at=self._jobs.clock(),
        )
        self._running[job.id] = running
        self._spawn(self._run(running))
        return running

    def _make_lease(self, running: _Running) -> Lease:
        job = running.job
        build = self._build(job)
        reader = self._records.reader()
        site = sites.find(reader, build.site_id)
        environment = environments.get(reader, build.env_id)
        assert site is not None, "a site that goes cancels its builds"
        assert environment is not None, "an environment that goes cancels its builds"
        root = self._sources.folder(build)
        assert root is not None, "a commit has a tree"
        return Lease(
            job_id=job.id,
            lease_id=running.lease_id,
            build_id=build.id,
            site=site.name,
            environment=environment.slug,
            ref=build.ref,
            commit=build.commit,
            clean=build.clean,
            timeout_s=self.limits.timeout_s,
            lease_s=self.limits.lease_s,
            output_bytes_max=self.limits.output_bytes_max,
            cache_bytes_max=self.limits.cache_bytes_max,
            root_entries=root.entries,
            files=root.files,
            tree=root.tree,
            limits=self.limits.sandbox,
        )

    def _run(self, running: _Running) -> Coroutine[None, None, None]:
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
                if await started is None and self._running.get(job.id) is running:
                    self._forget(job.id)
            except StorageError:  # it is built all the same, and its end is written down
                log.exception("job_not_started", job_id=job.id)
            finally:
                running.started.set()

        return forget_unless_started()

    def _renew(self, running: _Running) -> None:
        running.has_spoken = True
        if running.deadline is not None:
            running.deadline = self._now() + self.limits.lease_s

    def _note_progress(self, running: _Running, progress: int) -> None:
        now = self._now()
        if progress <= running.job.progress or now - running.progress_at < PROGRESS_EVERY_S:
            return
        running.progress_at = now
        job_id = running.job.id

        async def advance() -> None:
            await self._jobs.commit(lambda changes: changes.advance(job_id, min(progress, 99)))

        self._spawn(advance())

    def _released(self, job_id: str) -> HeartbeatAnswer:
        job = self._jobs.get(job_id)
        if job is not None and job.status is JobStatus.CANCELED:
            return HeartbeatAnswer(canceled=True)
        raise LeaseLostError

    def _held(self, job_id: str) -> _Running:
        running = self._running.get(job_id)
        if running is None:
            raise LeaseLostError
        return running

    def _build(self, job: Job) -> Build:
        return self._find_build(job.resource_id)

    def _find_build(self, build_id: str) -> Build:
        build = builds.get(self._records.reader(), build_id)
        assert build is not None, "a job has its build"
        return build

    def _waiting(self, job: Job) -> Waiting:
        build = self._build(job)
        lane = job.env_id if build.deploys else None
        inputs = self._packer.memo.inputs_of(build)
        is_tried = job.attempts >= PLAIN_ATTEMPTS_MAX  # each of them may have ended this process
        plan = self._plan(build) if self._packs_plain and not is_tried else None
        for_preview = self._packer.memo.is_for_preview(build)
        return Waiting(job.id, build.id, job.site_id, lane, inputs, plan, for_preview=for_preview)

    def _plan(self, build: Build) -> Plan | None:
        try:
            root = self._sources.folder(build)
        except (StorageError, RepositoryError):
            return None  # the one that gets the lease hears of it
        return plain_plan(root) if root is not None else None

    def _forget(self, job_id: str) -> None:
        """Let go of a job that is over: its slot hears of it now. What it sent is nobody's, but
        for what is being packed.
        """
        running = self._running.pop(job_id, None)
        if running is not None:
            running.released.set()
            if running.finishing is None:
                self._packer.discard(job_id)
        self._queue.leave(job_id)
        self._stir()

    def _stir(self) -> None:
        """Wake the slots that wait for a build, and those who watch their place in the queue."""
        self._do_without_slots()
        self._news.set()
        self._news = asyncio.Event()
        self._jobs.moved(self._queue.waiting)

    async def _stirred(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(max(0, timeout_s)):
                await self._news.wait()
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
