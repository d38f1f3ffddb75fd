"""What jobs' logs are given: each line once, and no more of them than fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hooks.clock import now_ms
from hooks.job_log import LOG_BYTES_MAX, JobLog
from storage.ids import new_id
from storage.joblog import JobLogs, LogLine


@pytest.fixture
def files(tmp_path: Path) -> JobLogs:
    return JobLogs(tmp_path / "joblogs")


def test_repeated_batches_leave_each_line_once(files: JobLogs) -> None:
    job_id, woken = new_id("job"), []
    log = JobLog(files, now_ms, woken.append)
    lines = [LogLine(f"{n}", "", "build") for n in range(6)]
    count = log.add_batch(job_id, lines[:3], first=0, source="b", seen=0)
    count = log.add_batch(job_id, lines[:3], first=0, source="b", seen=count)
    assert woken == [job_id], "a repetition is nothing new"
    count = log.add_batch(job_id, lines[1:6], first=1, source="b", seen=count)
    assert count == 6 == files.lines_seen(job_id, "b") == log.lines_seen(job_id, "b")
    assert [item.entry.line for item in files.read(job_id)] == list("012345")
    assert woken == [job_id] * 2


def test_log_that_its_source_does_not_bound_is_bounded_here_and_says_so(files: JobLogs) -> None:
    job_id = new_id("job")
    log = JobLog(files, now_ms, lambda _: None)
    lines = [LogLine("x" * 8000, "", "build")] * 1000
    count, sizes = 0, []
    for _ in range(12):
        count = log.add_batch(job_id, lines, first=count, source="b", seen=count)
        sizes.append(files.size_bytes(job_id))
    assert count == 12_000, "what is left out has been seen too"
    assert LOG_BYTES_MAX < sizes[-1] == sizes[-2] < LOG_BYTES_MAX + 10_000_000
    tail = files.path(job_id).read_bytes().splitlines()[-1]
    assert b"log truncated: it has 64 MiB already" in tail
