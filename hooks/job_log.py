"""What jobs' logs are given: lines of this server's own, and those of builders and site hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import structlog

from hooks.clock import Clock, rfc3339
from hooks.stages import begin_text, end_text
from storage.joblog import Entry, JobLogs, LogLine

log = structlog.get_logger(__name__)

LINE_CHARS_MAX = 8192
LOG_BYTES_MAX = 64 << 20  # of one job, whatever its builder or host sends: both bound it themselves
CONTROL = "control"  # the source of the lines that control itself writes


class JobLog:
    """The logs of all jobs. `wake` lets the followers of a job look at what is new."""

    def __init__(self, files: JobLogs, clock: Clock, wake: Callable[[str], None]) -> None:
        self._files = files
        self._clock = clock
        self._wake = wake

    def add(self, job_id: str, lines: Sequence[str], *, stage: str, source: str = CONTROL) -> None:
        """Add lines of this server's own to the job's log."""
        at = rfc3339(self._clock())
        self.append(job_id, [LogLine(line[:LINE_CHARS_MAX], at, stage, source) for line in lines])

    def begin_stage(self, job_id: str, stage: str) -> None:
        """Mark in the job's log where a stage of control's own begins."""
        at = rfc3339(self._clock())
        self.append(job_id, [LogLine(begin_text(stage), at, stage, CONTROL, mark="begin")])

    def end_stage(self, job_id: str, stage: str, seconds: float) -> None:
        """Mark where it ends, and how long it took."""
        at, text = rfc3339(self._clock()), end_text(stage, seconds)
        line = LogLine(text, at, stage, CONTROL, mark="end", seconds=round(seconds, 6))
        self.append(job_id, [line])

    def add_batch(
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
        if fresh and self._files.size_bytes(job_id) < LOG_BYTES_MAX:
            if self._files.append(job_id, fresh) >= LOG_BYTES_MAX:
                said = f"... log truncated: it has {LOG_BYTES_MAX >> 20} MiB already"
                self.add(job_id, [said], stage=fresh[-1].stage)
            self._wake(job_id)
        return seen + len(fresh)

    def lines_seen(self, job_id: str, source: str) -> int:
        """How many lines of `source` the job's log has: what its next batch may repeat.

        None, as far as is known, where the disk does not let it be read: the job goes on.
        """
        try:
            return self._files.lines_seen(job_id, source)
        except OSError:
            log.exception("job_log_not_read", job_id=job_id)
            return 0

    def append(self, job_id: str, entries: Sequence[Entry]) -> None:
        """Add entries of control's own. What cannot be written is lost: the work goes on."""
        try:
            self._files.append(job_id, entries)
        except OSError:
            log.exception("job_log_not_written", job_id=job_id)
        self._wake(job_id)
