"""Job logs: one append-only file per job with its log lines and its states, in order.

An entry is one line of JSON. Its id is the offset, in bytes, behind its end: a reader that gives
the last id it saw goes on exactly there. The log is a file first and a stream second: what was
written before a crash is there after it. A line that is damaged hides no other.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from storage.errors import JobLogPositionError
from storage.files import FULL, write_all
from storage.ids import is_id
from storage.model import Failure, JobStatus

ENTRY_BYTES_MAX = 256 * 1024
SUFFIX = ".ndjson"
READ_BYTES = 1024 * 1024  # at least the largest entry
DAMAGED = "(a line of this log is damaged)"
_CUT_CHARS = 256  # of what is short, unless somebody means harm
_CUT_LINE_CHARS = 16 * 1024


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True, tag="log", tag_field="kind"):
    """A line of a build or roll.

    Attributes:
        index: counts the lines of one `source`, for repeated batches.
        mark: the line says that its stage begins, or ends after so many `seconds`.
    """

    line: str
    at: str
    stage: str
    source: str = ""
    index: int = -1
    mark: Literal["", "begin", "end"] = ""
    seconds: float | None = None


class StateChange(msgspec.Struct, frozen=True, tag="job", tag_field="kind"):
    """What of the job had changed: the rest of it never does."""

    version: int
    status: JobStatus
    progress: int
    result: dict[str, str] | None = None
    error: Failure | None = None


Entry = LogLine | StateChange
_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


@dataclass(frozen=True, slots=True)
class Positioned:
    """An entry and its id."""

    id: int
    entry: Entry

    @property
    def is_final(self) -> bool:
        """Whether the job is over with it."""
        return isinstance(self.entry, StateChange) and self.entry.status.is_final


@dataclass(frozen=True, slots=True)
class LogFile:
    """A job's log as a file: its size, and when it was last written, in milliseconds."""

    job_id: str
    size_bytes: int
    written_at: int


class JobLogs:
    """The logs of all jobs, below one folder. Blocking, but each call touches few kilobytes."""

    def __init__(self, root: Path, *, relieve: Callable[[], bool] = lambda: False) -> None:
        """`relieve` makes room when the disk is full, and says whether it did: then the lines are
        written after all.
        """
        self._root = root
        self._folder = os.fspath(root)
        self._relieve = relieve
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, job_id: str) -> Path:
        return Path(self._path(job_id))

    def _path(self, job_id: str) -> str:
        """A plain string: a job has dozens of calls, and a Path costs as much as each of them."""
        if not is_id(job_id, "job"):
            raise ValueError(f"not a job id: {job_id!r}")
        return f"{self._folder}/{job_id[-2:]}/{job_id}{SUFFIX}"

    def append(self, job_id: str, entries: Sequence[Entry]) -> int:
        """Add entries and return the last one's id.

        Survives a kill of this process when it returns; a power cut may cost the newest lines. A
        line that a crash left half written is cut off first. An entry of more than
        `ENTRY_BYTES_MAX` is cut to that.

        Raises:
            OSError: The system refused, for want of room for instance.
        """
        try:
            return self._append(job_id, entries)
        except OSError as error:
            if error.errno not in FULL or not self._relieve():
                raise
        return self._append(job_id, entries)

    def _append(self, job_id: str, entries: Sequence[Entry]) -> int:
        path = self._path(job_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            Path(path).parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":
                end = _cut_torn_line(fd, end)
            data = b"".join(map(_encoded, entries))
            try:
                write_all(fd, data)
            except OSError:
                os.ftruncate(fd, end)  # all of them or none
                raise
            return end + len(data)
        finally:
            os.close(fd)

    def size_bytes(self, job_id: str) -> int:
        """How large the log is; 0 where there is none."""
        try:
            return os.stat(self._path(job_id)).st_size  # noqa: PTH116 - see `_path`
        except FileNotFoundError:
            return 0

    def read(self, job_id: str, after: int = 0) -> list[Positioned]:
        """Return some entries behind the id `after`, oldest first; none when there are no more.

        In place of one that is damaged stands a line that says so.

        Raises:
            JobLogPositionError: `after` is no id of an entry of this job.
        """
        found = self._read(job_id, after)
        if any(entry is None for _, entry in found):
            damage = self._damage(job_id)
            return [Positioned(end, entry or damage) for end, entry in found]
        return [Positioned(end, entry) for end, entry in found if entry]

    def damaged_lines(self, job_id: str) -> int:
        """How many of its lines cannot be read."""
        count, after = 0, 0
        while found := self._read(job_id, after):
            count += sum(entry is None for _, entry in found)
            after = found[-1][0]
        return count

    def _read(self, job_id: str, after: int) -> list[tuple[int, Entry | None]]:
        try:
            fd = os.open(self._path(job_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if after:
                raise JobLogPositionError(job_id, after) from None
            return []
        try:
            if after and (after < 0 or os.pread(fd, 1, after - 1) != b"\n"):
                raise JobLogPositionError(job_id, after)
            return _entries_behind(fd, after)
        finally:
            os.close(fd)

    def _damage(self, job_id: str) -> LogLine:
        """What is said in place of a damaged line: its own time is lost with it."""
        status = os.stat(self._path(job_id))  # noqa: PTH116 - see `_path`
        at = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds")
        return LogLine(DAMAGED, at.replace("+00:00", "Z"), "gitd")

    def lines_seen(self, job_id: str, source: str) -> int:
        """How many lines of `source` the log has: what its next batch may repeat."""
        seen, after = 0, 0
        while entries := self.read(job_id, after):
            for item in entries:
                if isinstance(item.entry, LogLine) and item.entry.source == source:
                    seen = max(seen, item.entry.index + 1)
            after = entries[-1].id
        return seen

    def files(self) -> list[LogFile]:
        """All logs that there are. What else may lie there is nobody's log, and no trouble."""
        found = []
        for path in self._root.glob(f"*/*{SUFFIX}"):
            job_id = path.name.removesuffix(SUFFIX)
            if not is_id(job_id, "job") or path.parent.name != job_id[-2:]:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    written_at = status.st_mtime_ns // 1_000_000
                    found.append(LogFile(job_id, status.st_size, written_at))
        return found

    def remove(self, job_id: str) -> None:
        """Remove a log; one that is not there is no trouble."""
        self.path(job_id).unlink(missing_ok=True)

    def last_version(self, job_id: str) -> int:
        """The version of the newest state in the log, 0 without one."""
        version, after = 0, 0
        while entries := self.read(job_id, after):
            for item in entries:
                if isinstance(item.entry, StateChange):
                    version = max(version, item.entry.version)
            after = entries[-1].id
        return version


def _encoded(entry: Entry) -> bytes:
    data = _ENCODER.encode(entry)
    if len(data) >= ENTRY_BYTES_MAX:
        data = _ENCODER.encode(_cut(entry))
    return data + b"\n"


def _cut(entry: Entry) -> Entry:
    if isinstance(entry, LogLine):
        return msgspec.structs.replace(
            entry,
            line=entry.line[:_CUT_LINE_CHARS],
            at=entry.at[:_CUT_CHARS],
            stage=entry.stage[:_CUT_CHARS],
            source=entry.source[:_CUT_CHARS],
        )
    return entry  # what can be long in it bounds itself


def _entries_behind(fd: int, after: int) -> list[tuple[int, Entry | None]]:
    """Some entries, each with its id; None for one that is damaged."""
    data = os.pread(fd, READ_BYTES, after)
    *lines, rest = data.split(b"\n")
    found = []
    for line in lines:
        after += len(line) + 1
        found.append((after, _decoded(line)))
    if not found and len(rest) == READ_BYTES and (end := _end_of_line(fd, after)):
        found.append((end, None))  # longer than any entry
    return found


def _decoded(line: bytes) -> Entry | None:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError):
        return None


def _end_of_line(fd: int, start: int) -> int | None:
    """Where the line ends that begins at `start`, its end included; None if it has none yet."""
    while data := os.pread(fd, READ_BYTES, start):
        if (at := data.find(b"\n")) >= 0:
            return start + at + 1
        start += len(data)
    return None


def _cut_torn_line(fd: int, end: int) -> int:
    """Cut off what is behind the last end of a line; return where the file ends then."""
    kept = end
    while kept:
        start = max(0, kept - READ_BYTES)
        at = os.pread(fd, kept - start, start).rfind(b"\n")
        if at >= 0:
            kept = start + at + 1
            break
        kept = start
    os.ftruncate(fd, kept)
    return kept
