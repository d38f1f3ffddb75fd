"""Leases: who holds which job, in memory, and for as long as heartbeats come.

Whatever a slot says names its lease: one that lost it, and wakes up late, is not heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from hooks.background import Background
from hooks.builds.profiles.plain import CONTROL
from hooks.builds.wire import Heartbeat, HeartbeatAnswer, SandboxLimits
from hooks.jobs import Jobs
from storage.ids import new_id
from storage.model import Job, JobStatus

PROGRESS_EVERY_S = 1.0
PROGRESS_MAX = 99  # of a build that is not over
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
class Running:
    """A job that a slot leased, or that control packs itself. Times are loop times.

    Attributes:
        slot: `CONTROL` for what control packs itself.
        source: of its lines in the job's log.
        deadline: when the lease ends; None while the build is being ended, or packed.
        ends_by: when the slot must have ended the build, heartbeats or not.
        has_spoken: the slot did, since this process started.
        progress: as it was written down last, and `progress_at` when.
        given: digests of the variables and secrets that the slot was given, since then.
        previews_only: if it is of a preview, it may have begun with what one left.
        began_at: when it was leased, or begun here, since this process started. Unix, in ms.
        finishing: what ends it, once something does.
        started: set when the job's log says that it runs.
        released: set when the slot holds it no longer.
    """

    job: Job
    slot: str
    lease_id: str
    source: str
    deadline: float | None
    ends_by: float
    lines_seen: int = 0
    has_spoken: bool = False
    progress: int = 0
    progress_at: float = 0.0
    began_at: int | None = None
    given: set[str] = field(default_factory=set)
    previews_only: bool = False
    finishing: asyncio.Task[None] | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def renew(self, deadline: float) -> None:
        """Note that the slot speaks."""
        self.has_spoken = True
        if self.deadline is not None:
            self.deadline = deadline


class LeaseLostError(Exception):
    """The slot does not hold this job (any more)."""


class Leases:
    """The jobs that are held. Belongs to one event loop."""

    def __init__(self, jobs: Jobs, limits: BuildLimits, background: Background) -> None:
        self._jobs = jobs
        self._background = background
        self._running: dict[str, Running] = {}
        self.limits = limits
        self.is_closing = False

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running.values()))

    def begin(self, job: Job, slot: str) -> Running:
        """Let a slot, or control, hold the job from now on."""
        now = _now()
        running = self._running[job.id] = Running(
            job,
            slot,
            new_id("lease"),
            f"{BUILDER}-{job.attempts + 1}",
            deadline=now + self.limits.lease_s,
            ends_by=self._ends_by(now),
            has_spoken=True,
            progress=job.progress,
            progress_at=now,
            began_at=self._jobs.clock(),
        )
        return running

    def resume(self, job: Job, *, speak_up_s: float) -> Running:
        """Hold a job for the slot that ran it before this start, which must soon speak up."""
        now = _now()
        source = f"{BUILDER}-{job.attempts}"
        running = self._running[job.id] = Running(
            job,
            job.owner or "",
            job.lease_id or "",
            source,
            deadline=now + speak_up_s,
            ends_by=self._ends_by(now),
            lines_seen=self._jobs.log.lines_seen(job.id, source),
            progress=job.progress,
            previews_only=True,  # nobody knows what it began with
        )
        running.started.set()
        return running

    def drop(self, job_id: str) -> Running | None:
        """Let go of a job: who holds it hears of it now. Returns what was held."""
        running = self._running.pop(job_id, None)
        if running is not None:
            running.released.set()
        return running

    def find(self, job_id: str) -> Running | None:
        return self._running.get(job_id)

    def held(self, job_id: str) -> Running:
        """Raises `LeaseLostError` when nobody holds it."""
        running = self._running.get(job_id)
        if running is None:
            raise LeaseLostError
        return running

    def holds(self, running: Running) -> bool:
        """Say whether this very lease counts still."""
        return self._running.get(running.job.id) is running

    def are_slots_building(self) -> bool:
        return any(running.slot != CONTROL for running in self._running.values())

    @property
    def busy_slots(self) -> int:
        """How many slots hold a job. Any thread may ask."""
        return sum(running.slot != CONTROL for running in self)

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

    def renew(self, running: Running) -> None:
        running.renew(_now() + self.limits.lease_s)

    def heartbeat(self, job_id: str, beat: Heartbeat) -> HeartbeatAnswer:
        """Renew the lease. `canceled` tells the slot to end the build.

        Raises:
            LeaseLostError: The slot does not hold the job.
        """
        running = self._running.get(job_id)
        if running is None or running.slot != beat.slot:
            return self._released(job_id)
        self.renew(running)
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
        if self.holds(running):  # the server stops, and the build goes on
            return answer
        return self._released(job_id)

    def _ends_by(self, now: float) -> float:
        return now + self.limits.timeout_s + self.limits.overtime_s

    def _note_progress(self, running: Running, progress: int) -> None:
        now = _now()
        progress = min(progress, PROGRESS_MAX)
        if progress <= running.progress or now - running.progress_at < PROGRESS_EVERY_S:
            return
        running.progress_at = now
        job_id = running.job.id

        async def advance() -> None:
            await self._jobs.commit(lambda changes: changes.advance(job_id, progress))
            running.progress = progress

        self._background.spawn(advance())

    def _released(self, job_id: str) -> HeartbeatAnswer:
        job = self._jobs.get(job_id)
        if job is not None and job.status is JobStatus.CANCELED:
            return HeartbeatAnswer(canceled=True)
        raise LeaseLostError


def _now() -> float:
    return asyncio.get_running_loop().time()
