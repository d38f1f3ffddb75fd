"""The retention of job logs, of the audit log and of what webhooks were told: what is removed, so
that they fill no disk.

The newest build and the newest deployment of every environment keep theirs, however old and large,
and so does what is not over. A clock that is wrong for a while makes nothing too old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from hooks.background import for_ever
from hooks.clock import BelievedClock
from hooks.jobs import Jobs
from storage.joblog import LogFile
from storage.records import audit_log, webhooks
from storage.records import jobs as job_rows

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 3600.0
DELIVERIES_AGE_MS_MAX = 30 * 24 * 3600 * 1000  # of those that are over
GRACE_S = 24 * 3600.0  # time to set a clock right
FRESH_MS = 3_600_000  # what was written since may be read by somebody right now


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of all job logs is kept, and for how long the audit log; 0 is without a bound."""

    age_s_max: int = 90 * 24 * 3600
    count_max: int = 10_000
    bytes_max: int = 1024**3
    audit_age_s_max: int = 365 * 24 * 3600


def logs_to_remove(
    files: Sequence[LogFile],
    kept: Collection[str],
    limits: LogLimits,
    *,
    now: int,
    surely: int | None,
) -> list[LogFile]:
    """Return the logs that are too old, and the oldest of those that are too many or too much.

    `kept` are jobs whose logs stay; they count all the same. `surely`: by this time a log is too
    old; None where it is not known what time it is.
    """
    count, size_bytes = len(files), sum(file.size_bytes for file in files)
    removed = []
    for file in sorted(files, key=lambda file: file.written_at):
        is_old = surely is not None and 0 < 1000 * limits.age_s_max < surely - file.written_at
        is_many = 0 < limits.count_max < count
        is_much = 0 < limits.bytes_max < size_bytes
        is_fresh = now - file.written_at <= FRESH_MS
        if file.job_id not in kept and not is_fresh and (is_old or is_many or is_much):
            removed.append(file)
            count -= 1
            size_bytes -= file.size_bytes
    return removed


class LogRetention:
    """Removes job logs, lines of the audit log, and what webhooks were told, by and by."""

    def __init__(
        self, jobs: Jobs, limits: LogLimits, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._limits = limits
        self._clock_of_logs, self._clock_of_audit = (
            BelievedClock(
                jobs.clock, grace_s=GRACE_S, step_s_max=2 * SWEEP_EVERY_S, monotonic=monotonic
            )
            for _ in range(2)
        )

    async def run(self) -> None:
        """Sweep now and every hour, for ever."""
        await asyncio.gather(
            for_ever(self._sweep_and_rest, failed="job_logs_not_swept", pause_s=SWEEP_EVERY_S),
            for_ever(self._forget_and_rest, failed="audit_log_not_swept", pause_s=SWEEP_EVERY_S),
        )

    async def _sweep_and_rest(self) -> None:
        await asyncio.to_thread(self.sweep)
        await asyncio.sleep(SWEEP_EVERY_S)

    async def _forget_and_rest(self) -> None:
        await asyncio.to_thread(self.forget)
        await asyncio.sleep(SWEEP_EVERY_S)

    def sweep(self) -> int:
        """Remove what is to be removed now, and return how many logs that was. Blocking."""
        files = self._jobs.joblogs.files()
        kept = job_rows.newest_and_unfinished(self._jobs.records.reader())
        now, surely = self._jobs.clock(), self._clock_of_logs.now()
        removed = logs_to_remove(files, kept, self._limits, now=now, surely=surely)
        gone = [file for file in removed if self._is_removed(file)]
        if gone:
            size_bytes = sum(file.size_bytes for file in gone)
            log.info("job_logs_removed", count=len(gone), size_bytes=size_bytes)
        return len(gone)

    def forget(self) -> int:
        """Remove what is too old of the audit log and of deliveries, and return how many lines of
        the former. Blocking.
        """
        now = self._clock_of_audit.now()
        if now is None:
            return 0
        last = now - DELIVERIES_AGE_MS_MAX
        self._jobs.records.write(lambda db: webhooks.forget_deliveries(db, last))
        if not self._limits.audit_age_s_max:
            return 0
        before = now - 1000 * self._limits.audit_age_s_max
        held = audit_log.ahead(self._jobs.records.reader(), now)
        if held is not None:
            log.warning("audit_log_held", sequence=held[0], created_at=held[1])
        return self._jobs.records.write(lambda db: audit_log.forget(db, before))

    def _is_removed(self, file: LogFile) -> bool:
        """Remove a log. One that cannot be keeps no other from it."""
        try:
            self._jobs.joblogs.remove(file.job_id)
        except OSError as error:
            log.error("job_log_not_removed", job_id=file.job_id, reason=str(error))  # noqa: TRY400 - a fact, no bug
            return False
        return True
