"""Jobs: changed in transactions, logged in order, followed by whoever waits.

Each change of a job is committed first, then written to the job's log, then told to followers.
What a crash left between the first two is made good by `Jobs.recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import structlog

from hooks.audit_log import Asker, asker
from hooks.clock import Clock, now_ms, rfc3339
from hooks.stages import begin_text, end_text
from storage.ids import new_id
from storage.joblog import Entry, JobLogs, LogLine, Positioned, StateChange
from storage.model import (
    SYSTEM,
    Action,
    ActorRef,
    AuditEntry,
    Deployment,
    Failure,
    Job,
    JobStatus,
    JobType,
)
from storage.records import audit_log, webhooks
from storage.records import jobs as job_rows
from storage.records.db import Records, savepoint

log = structlog.get_logger(__name__)

T = TypeVar("T")
LINE_CHARS_MAX = 8192
LOG_BYTES_MAX = 64 << 20  # of one job, whatever its builder or host sends: both bound it themselves
RECOVERED_MS = 60_000
LOST_MS = (
    2_000  # a state that is not in the log so long after its commit never gets there by itself
)
REMOVED = "this job's log is not kept any more: the settings bound how many, how old and how large"
CONTROL = "control"  # the source of the lines that control itself writes


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


class JobChanges:
    """A transaction's hand on jobs: it keeps what it touched, to be published after the commit."""

    def __init__(
        self,
        db: sqlite3.Connection,
        clock: Clock,
        begin: Callable[[JobChanges, Deployment], None],
        asker: Asker | None = None,
    ) -> None:
        self.db = db
        self.now = clock()
        self._begin = begin
        self._asker = asker
        self.touched: list[Job] = []
        self.environments: list[str] = []

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A part of the transaction that may fail by itself: only what it did is undone."""
        touched, changed = len(self.touched), len(self.environments)
        try:
            with savepoint(self.db):
                yield
        except BaseException:
            del self.touched[touched:], self.environments[changed:]
            raise

    def note(
        self,
        action: Action,
        target: str,
        *,
        site_id: str | None = None,
        env_id: str | None = None,
        actor: ActorRef | None = None,
    ) -> None:
        """Write a change into the audit log. It is `actor`'s; or else who asks for it now."""
        who = self._asker
        if who is not None and actor is not None and who.actor != actor:
            who = None  # it happens in another's request
        entry = AuditEntry(
            id=new_id("evt"),
            created_at=self.now,
            actor=actor or (SYSTEM if who is None else who.actor),
            action=action,
            target=target,
            site_id=site_id,
            env_id=env_id,
            address=None if who is None else who.address,
            request_id=None if who is None else who.request_id,
        )
        audit_log.add(self.db, entry)

    def environment_changed(self, env_id: str) -> None:
        """Say that an environment came, went, or is to be served otherwise."""
        self.environments.append(env_id)

    def deployment_queued(self, deployment: Deployment) -> None:
        """Say that a deployment and its job are written: it may begin in this transaction."""
        self._begin(self, deployment)

    def add(
        self,
        job_type: JobType,
        *,
        resource_type: str,
        resource_id: str,
        site_id: str,
        env_id: str,
    ) -> Job:
        """Queue a new job."""
        job = Job(
            id=new_id("job"),
            type=job_type,
            status=JobStatus.QUEUED,
            progress=0,
            resource_type=resource_type,
            resource_id=resource_id,
            site_id=site_id,
            env_id=env_id,
            result=None,
            error=None,
            version=1,
            owner=None,
            lease_id=None,
            attempts=0,
            losses=0,
            created_at=self.now,
            started_at=None,
            finished_at=None,
        )
        job_rows.add(self.db, job)
        self.touched.append(job)
        return job

    def start(
        self, job_id: str, *, owner: str | None = None, lease_id: str | None = None
    ) -> Job | None:
        started = job_rows.start(self.db, job_id, owner=owner, lease_id=lease_id, at=self.now)
        return self._keep(started)

    def requeue(self, job_id: str, *, is_loss: bool) -> Job | None:
        return self._keep(job_rows.requeue(self.db, job_id, is_loss=is_loss))

    def advance(self, job_id: str, progress: int) -> Job | None:
        return self._keep(job_rows.advance(self.db, job_id, progress))

    def succeed(self, job_id: str, result: dict[str, str]) -> Job | None:
        return self._finish(job_id, JobStatus.SUCCEEDED, result=result)

    def fail(self, job_id: str, error: Failure) -> Job | None:
        return self._finish(job_id, JobStatus.FAILED, error=error)

    def cancel(
        self, job_id: str, error: Failure | None = None, *, by: ActorRef | None = None
    ) -> Job | None:
        """`by`: whose work takes its place; or else who asks for it now."""
        ended = self._finish(job_id, JobStatus.CANCELED, error=error)
        if ended is not None:
            self.note(
                Action.JOB_CANCELED, job_id, site_id=ended.site_id, env_id=ended.env_id, actor=by
            )
        return ended

    def _finish(
        self,
        job_id: str,
        status: JobStatus,
        *,
        result: dict[str, str] | None = None,
        error: Failure | None = None,
    ) -> Job | None:
        ended = job_rows.finish(self.db, job_id, status, result=result, error=error, at=self.now)
        if ended is not None:
            asker = self._asker
            request_id = None if asker is None else asker.request_id
            webhooks.note_end(self.db, ended, self.now, request_id)
        return self._keep(ended)

    def _keep(self, job: Job | None) -> Job | None:
        if job is not None:
            self.touched.append(job)
        return job


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

    def log(self, job_id: str, lines: Sequence[str], *, stage: str, source: str = CONTROL) -> None:
        """Add lines of this server's own to the job's log."""
        at = rfc3339(self.clock())
        self._append(job_id, [LogLine(line[:LINE_CHARS_MAX], at, stage, source) for line in lines])

    def begin_stage(self, job_id: str, stage: str) -> None:
        """Mark in the job's log where a stage of control's own begins."""
        at = rfc3339(self.clock())
        self._append(job_id, [LogLine(begin_text(stage), at, stage, CONTROL, mark="begin")])

    def end_stage(self, job_id: str, stage: str, seconds: float) -> None:
        """Mark where it ends, and how long it took."""
        at, text = rfc3339(self.clock()), end_text(stage, seconds)
        line = LogLine(text, at, stage, CONTROL, mark="end", seconds=round(seconds, 6))
        self._append(job_id, [line])

    def log_batch(
        self, job_id: str, lines: Sequence[LogLine], *, first: int, source: str, seen: int
    ) -> int:
        """Add a batch that `source` may be repeating; return how many of its lines there are now.

        `first` is the index of the batch's first line, `seen` how many the log has already.

        Raises:
            OSError: It cannot be written now: `source` has to repeat it.
        """
        fresh = [
            msgspec.structs.replace(
                line, line=line.line[:LINE_CHARS_MAX], source=source, index=first + offset
            )
            for offset, line in enumerate(lines)
            if first + offset >= seen
        ]
        if fresh and self.joblogs.size_bytes(job_id) < LOG_BYTES_MAX:
            if self.joblogs.append(job_id, fresh) >= LOG_BYTES_MAX:
                said = f"... log truncated: it has {LOG_BYTES_MAX >> 20} MiB already"
                self.log(job_id, [said], stage=fresh[-1].stage)
            self._wake(job_id)
        return seen + len(fresh)

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

    def lines_seen(self, job_id: str, source: str) -> int:
        """How many lines of `source` the job's log has: what its next batch may repeat.

        None, as far as is known, where the disk does not let it be read: the job goes on.
        """
        try:
            return self.joblogs.lines_seen(job_id, source)
        except OSError:
            log.exception("job_log_not_read", job_id=job_id)
            return 0

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
    ) -> AsyncGenerator[Positioned | None]:
        """Yield the log's entries behind `after`, past and to come, up to the final state.

        None stands for `heartbeat_s` without an entry. Any number may follow, from anywhere. It
        ends before the final state when this server stops. A final state that the log lost comes
        all the same, with the id of the entry before.

        Raises:
            JobLogPositionError: `after` is no id of an entry.
        """
        everything = self.follow_with_places(job_id, after=after, heartbeat_s=heartbeat_s)
        async with contextlib.aclosing(everything):
            async for item in everything:
                if item is None:
                    yield None
                elif not isinstance(item, QueuePlace):
                    for entry in item:
                        yield entry

    async def follow_with_places(
        self, job_id: str, *, after: int = 0, heartbeat_s: float
    ) -> AsyncGenerator[list[Positioned] | QueuePlace | None]:
        """As `follow`, and yield the job's place in the queue too, whenever it is another one.

        Entries that are there together come together. A place does not put the next None off: a
        caller may have no use for it, and then nothing was said.
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
                    if _is_final(entries[-1]):
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
        self._append(job.id, [_state_of(job)])

    def _append(self, job_id: str, entries: Sequence[Entry]) -> None:
        """Add entries of control's own. What cannot be written is lost: the work goes on."""
        try:
            self.joblogs.append(job_id, entries)
        except OSError:
            log.exception("job_log_not_written", job_id=job_id)
        self._wake(job_id)

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


def _is_final(item: Positioned) -> bool:
    return isinstance(item.entry, StateChange) and item.entry.status.is_final


def _up_to_final(entries: list[Positioned]) -> list[Positioned]:
    end = next((n for n, item in enumerate(entries, 1) if _is_final(item)), len(entries))
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
