"""Jobs: changed in transactions, logged in order, followed by whoever waits.

Each change of a job is committed first, then written to the job's log, then told to followers.
What a crash left between the first two is made good by `Jobs.recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from hooks.audit_log import asker
from hooks.clock import Clock, now_ms, rfc3339
from hooks.job_changes import JobChanges
from hooks.job_log import CONTROL, JobLog
from storage.joblog import JobLogs, LogLine, Positioned, StateChange
from storage.model import Deployment, Job
from storage.records import jobs as job_rows
from storage.records.db import Records

log = structlog.get_logger(__name__)

T = TypeVar("T")
RECOVERED_MS = 60_000
LOST_MS = (
    2_000  # a state that is not in the log so long after its commit never gets there by itself
)
REMOVED = "this job's log is not kept any more: the settings bound how many, how old and how large"


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a queued job stands.

    Attributes:
        before: how many jobs start before it.
        behind: the build under way that it waits for: both deploy onto the same environment, or
            have the same inputs.
        is_starting: a builder is free for it.
        has_builders: there are builders, free or not.
    """

    before: int
    behind: str | None = None
    is_starting: bool = False
    has_builders: bool = True


def as_of(job: Job, change: StateChange) -> Job:
    """The job as it was at `change`."""
    return replace(
        job,
        status=change.status,
        progress=change.progress,
        result=change.result,
        error=change.error,
        version=change.version,
    )


class Jobs:
    """All jobs of this server. Belongs to one event loop."""

    def __init__(self, records: Records, joblogs: JobLogs, clock: Clock = now_ms) -> None:
        self.records = records
        self.joblogs = joblogs
        self.log = JobLog(joblogs, clock, self._wake)
        self.clock = clock
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._published: dict[str, int] = {}
        self._is_closing = False
        self._watchers: list[Callable[[Job], None]] = []
        self._environment_watchers: list[Callable[[str], None]] = []
        self._place: Callable[[str], QueuePlace | None] = lambda _: None
        self._begin: Callable[[JobChanges, Deployment], None] = lambda *_: None

    def watch(self, react: Callable[[Job], None]) -> None:
        """Call `react` with each job after each of its changes: how the runners hear of work."""
        self._watchers.append(react)

    def watch_environments(self, react: Callable[[str], None]) -> None:
        """Call `react` with the id of each environment that came, went or changed."""
        self._environment_watchers.append(react)

    def place_by(self, place: Callable[[str], QueuePlace | None]) -> None:
        """Let `place` say where a queued job stands."""
        self._place = place

    def begin_by(self, begin: Callable[[JobChanges, Deployment], None]) -> None:
        """Let `begin` begin deployments in the transactions that queue them, where it can."""
        self._begin = begin

    def place(self, job_id: str) -> QueuePlace | None:
        """Where the job stands in the queue; None when it does not wait in one."""
        return self._place(job_id)

    def moved(self, job_ids: Iterable[str]) -> None:
        """Say that these jobs may stand elsewhere in the queue now."""
        for job_id in self._waiting.keys() & set(job_ids):
            self._wake(job_id)

    async def commit(self, change: Callable[[JobChanges], T]) -> T:
        """Run `change` in one transaction and publish the jobs that it touched. Durable."""
        return await self.submit(change)

    def submit(self, change: Callable[[JobChanges], T]) -> Awaitable[T]:
        """Queue `change` now, before whatever is queued after this call, and commit it as above.

        It runs whether or not the answer is awaited; what it touched is published when it is. The
        answers of several calls come in the order of the calls.
        """
        who = asker()

        def run(db: sqlite3.Connection) -> tuple[T, JobChanges]:
            changes = JobChanges(db, self.clock, self._begin, who)
            return change(changes), changes

        committed = asyncio.wrap_future(self.records.submit(run))

        async def publish() -> T:
            answer, changes = await committed
            self.publish(changes)
            return answer

        return publish()

    def changes_in(self, db: sqlite3.Connection) -> JobChanges:
        """For a transaction that is run elsewhere; `publish` what it touched after its commit."""
        return JobChanges(db, self.clock, self._begin)

    def publish(self, changes: JobChanges) -> None:
        """Tell everybody of what was committed. One who fails at it keeps no other from hearing."""
        for job in changes.touched:
            if job.version <= self._published.get(job.id, 0):
                continue
            self._published[job.id] = job.version
            self._append_state(job)
            for watcher in self._watchers:
                _tell(watcher, job)
            if job.status.is_final:
                self._published.pop(job.id, None)
        for env_id in changes.environments:
            for react in self._environment_watchers:
                _tell(react, env_id)

    def read_log(self, job_id: str, after: int = 0) -> list[Positioned]:
        """Return some entries behind the id `after`, oldest first; none when there are no more.

        Of a log that was removed: a line that says so, and the final state.

        Raises:
            JobLogPositionError: `after` is no id of an entry of this job.
        """
        entries = self.joblogs.read(job_id, after)
        if entries or after:
            return entries
        job = self.get(job_id)
        if job is None or not job.status.is_final:
            return []
        line = LogLine(REMOVED, rfc3339(self.clock()), "gitd", CONTROL)
        return [Positioned(1, line), Positioned(2, _state_of(job))]

    def lost_end(self, job_id: str) -> Job | None:
        """The job, if it is over and its log will not say so: the disk was full, or is damaged.

        Blocking: it may read all of the log.
        """
        job = self.get(job_id)
        if job is None or not job.status.is_final:
            return None
        if 0 <= self.clock() - (job.finished_at or 0) < LOST_MS:
            return None  # it is being written
        return job if self.joblogs.last_version(job_id) < job.version else None

    def get(self, job_id: str) -> Job | None:
        return job_rows.get(self.records.reader(), job_id)

    async def follow(
        self, job_id: str, *, after: int = 0, heartbeat_s: float
    ) -> AsyncGenerator[list[Positioned] | QueuePlace | None]:
        """Yield the log's entries behind `after`, past and to come, up to the final state; and the
        job's place in the queue whenever it changes.

        Entries that are there together come together. None stands for `heartbeat_s` without an
        entry; a place does not put it off: a caller may have no use for places, and then nothing
        was said. Any number may follow, from anywhere. It ends before the final state when this
        server stops. A final state that the log lost comes all the same, with the id of the entry
        before.

        Raises:
            JobLogPositionError: `after` is no id of an entry.
        """
        loop = asyncio.get_running_loop()
        told: QueuePlace | None = None
        silent_at = loop.time() + heartbeat_s
        with self._listening(job_id) as changed:
            while True:
                changed.clear()
                entries = _up_to_final(self.read_log(job_id, after))
                if entries:
                    yield entries
                    if entries[-1].is_final:
                        return
                    after = entries[-1].id
                    silent_at = loop.time() + heartbeat_s
                    continue
                if self._is_closing:
                    return
                place = self.place(job_id)
                if place is not None and place != told:
                    yield place
                    told = place
                elif not await _within(silent_at - loop.time(), changed):
                    if (job := await asyncio.to_thread(self.lost_end, job_id)) is not None:
                        yield [Positioned(after, _state_of(job))]
                        return
                    yield None
                    silent_at = loop.time() + heartbeat_s

    async def wait_for_change(self, job: Job, timeout_s: float) -> None:
        """Return when the job is another than `job`, or elsewhere in the queue, or time is up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        place = self.place(job.id)
        with self._listening(job.id) as changed:
            while True:
                changed.clear()
                now = self.get(job.id)
                is_same = now is not None and now.version == job.version
                if not is_same or job.status.is_final or self.place(job.id) != place:
                    return
                if self._is_closing or not await _within(end - loop.time(), changed):
                    return

    def close(self) -> None:
        """Let everyone go who follows or waits: the server stops. The jobs go on later."""
        self._is_closing = True
        for job_id in list(self._waiting):
            self._wake(job_id)

    def recover(self) -> None:
        """After a start: log the states that were committed and did not reach the log.

        Only the last commits before a crash can be missing there. A log that cannot be read holds
        nothing up.
        """
        for job in job_rows.unfinished_or_last(self.records.reader(), within_ms=RECOVERED_MS):
            try:
                is_logged = self.joblogs.last_version(job.id) >= job.version
            except OSError:
                log.exception("job_log_not_read", job_id=job.id)
                continue
            if not is_logged:
                self._append_state(job)

    def _append_state(self, job: Job) -> None:
        self.log.append(job.id, [_state_of(job)])

    def _wake(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()

    @contextlib.contextmanager
    def _listening(self, job_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]


def _tell(react: Callable[[T], None], what: T) -> None:
    try:
        react(what)
    except Exception:  # the ring around a watcher: it is committed, and the others are to hear it
        log.exception("change_not_taken_in")


def _up_to_final(entries: list[Positioned]) -> list[Positioned]:
    end = next((n for n, item in enumerate(entries, 1) if item.is_final), len(entries))
    return entries[:end]


def _state_of(job: Job) -> StateChange:
    return StateChange(job.version, job.status, job.progress, job.result, job.error)


async def _within(timeout_s: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(max(0, timeout_s)):
            await event.wait()
    except TimeoutError:
        return False
    return True
