"""Job logs that are damaged, hold what is too long, or have strangers beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.errors import JobLogPositionError
from storage.ids import new_id
from storage.joblog import DAMAGED, ENTRY_BYTES_MAX, READ_BYTES, JobLogs, LogLine, StateChange
from storage.model import FAILURE_CHARS_MAX, Failure, JobStatus

AT = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def logs(tmp_path: Path) -> JobLogs:
    return JobLogs(tmp_path / "joblogs")


def lines(*texts: str) -> list[LogLine]:
    return [LogLine(text, AT, "build", "b", n) for n, text in enumerate(texts)]


def read(logs: JobLogs, job_id: str, after: int = 0) -> list[str]:
    found = []
    while entries := logs.read(job_id, after):
        found += [
            item.entry.line if isinstance(item.entry, LogLine) else item.entry.status.value
            for item in entries
        ]
        after = entries[-1].id
    return found


def damage(logs: JobLogs, job_id: str, at: int, data: bytes) -> None:
    fd = os.open(logs.path(job_id), os.O_WRONLY)
    os.pwrite(fd, data, at)
    os.close(fd)


@pytest.mark.parametrize("data", [b"\xff", b"\0" * 40, b"x" * 40, b"]", b'{"kind":"log"}'])
def test_damaged_line_hides_no_other_and_says_so(logs: JobLogs, data: bytes) -> None:
    job_id = new_id("job")
    first = logs.append(job_id, lines("one"))
    logs.append(job_id, lines("two", "three"))
    damage(logs, job_id, first, data)
    assert read(logs, job_id) == ["one", DAMAGED, "three"]
    assert read(logs, job_id, first) == [DAMAGED, "three"]
    assert logs.damaged_lines(job_id) == 1
    assert logs.lines_seen(job_id, "b") == 2
    logs.append(job_id, [StateChange(3, JobStatus.SUCCEEDED, 100)])
    assert logs.last_version(job_id) == 3


def test_line_that_says_of_itself_that_it_is_damaged_is_not(logs: JobLogs) -> None:
    job_id = new_id("job")
    logs.append(job_id, lines(DAMAGED))
    assert logs.damaged_lines(job_id) == 0


def test_zeros_for_longer_than_any_entry_are_passed_over(logs: JobLogs) -> None:
    job_id = new_id("job")
    begin = logs.append(job_id, lines("one"))
    logs.append(job_id, lines(*["x" * 60_000] * 40, "last"))
    damage(logs, job_id, begin, b"\0" * (2 * READ_BYTES))
    found = read(logs, job_id)
    assert found[:2] == ["one", DAMAGED]
    assert DAMAGED not in found[2:]
    assert found[-1] == "last"


def test_torn_line_of_any_length_is_cut_off_whole(logs: JobLogs) -> None:
    job_id = new_id("job")
    logs.append(job_id, lines("one"))
    with logs.path(job_id).open("ab") as file:
        file.write(b"\0" * (2 * READ_BYTES + 7))
    logs.append(job_id, lines("two"))
    assert read(logs, job_id) == ["one", "two"]


def test_entry_that_is_too_long_is_cut_and_its_log_goes_on(logs: JobLogs) -> None:
    job_id = new_id("job")
    failure = Failure("c" * READ_BYTES, "\x01" * (2 * READ_BYTES))
    long = "\x01" * READ_BYTES
    before = logs.append(job_id, [LogLine(long, long, long, long)])
    assert before <= ENTRY_BYTES_MAX
    end = logs.append(job_id, [StateChange(2, JobStatus.FAILED, 0, None, failure)])
    assert end - before <= ENTRY_BYTES_MAX
    assert logs.last_version(job_id) == 2
    assert read(logs, job_id)[-1] == "failed"


def test_message_of_a_failure_that_is_short_enough_stays_as_it_is() -> None:
    assert Failure("a.b", "x" * FAILURE_CHARS_MAX).message == "x" * FAILURE_CHARS_MAX
    assert Failure("a.b", "x" * (FAILURE_CHARS_MAX + 1)).message == (
        "x" * FAILURE_CHARS_MAX + " [...]"
    )


def test_entry_that_an_earlier_server_wrote_too_long_is_passed_over(logs: JobLogs) -> None:
    job_id = new_id("job")
    begin = logs.append(job_id, lines("one"))
    with logs.path(job_id).open("ab") as file:
        file.write(b'{"kind":"log","line":"' + b"x" * (3 * READ_BYTES) + b'"}\n')
    logs.append(job_id, lines("two"))
    assert read(logs, job_id) == ["one", DAMAGED, "two"]
    with pytest.raises(JobLogPositionError):
        logs.read(job_id, begin + 1)


def test_what_else_lies_beside_logs_is_none(logs: JobLogs, tmp_path: Path) -> None:
    job_id = new_id("job")
    logs.append(job_id, lines("one"))
    root = tmp_path / "joblogs"
    for name in ("AA/old.ndjson", f"__/{job_id}.ndjson", f"{job_id[-2:]}/job_.ndjson"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    other = new_id("job")
    (root / other[-2:]).mkdir(exist_ok=True)
    (root / other[-2:] / f"{other}.ndjson").mkdir()
    linked = new_id("job")
    (root / linked[-2:]).mkdir(exist_ok=True)
    (root / linked[-2:] / f"{linked}.ndjson").symlink_to(tmp_path)
    assert [file.job_id for file in logs.files()] == [job_id]
