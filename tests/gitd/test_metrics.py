"""What the metrics of a server are made of, one by one."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry, generate_latest

from gitd.backup_note import last_backup_at, note_backup
from gitd.config import Config, ServerConfig
from gitd.control import Control
from gitd.layout import DataFolder
from gitd.metrics.store import MEASURED_EVERY_S, Measured
from gitd.metrics.work import WorkMetrics
from hooks.job_changes import JobChanges
from storage.ids import new_id
from storage.model import Failure, JobStatus, JobType
from storage.records import census
from storage.records.db import Records
from tests.metrics import Scraped
from tests.new_records import open_records

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = open_records(tmp_path / "gitd.db")
    yield opened
    opened.close()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    opened = Control(folder, Config(server=ServerConfig(listen="127.0.0.1:1")), None)
    opened.web_app()
    yield opened
    opened.close()


async def scraped(control: Control) -> Scraped:
    return Scraped((await control.metrics.read("")).data.decode())


async def test_every_metric_of_a_server_is_documented_and_named_as_it_should_be(control) -> None:
    note_backup(control.folder, "20260101T000000Z", 1_767_225_600_000)
    found = await scraped(control)
    unread = [
        labels
        for (name, labels), value in found.items()
        if name.endswith("_part_read") and not value
    ]
    assert unread == []
    page = (DOCS / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(gitd_[a-z_]+)", page, re.MULTILINE))
    # Families without a sample yet: what is there only once something happened.
    later = {
        "gitd_collection_last_start_timestamp_seconds",
        "gitd_scrub_oldest_read_timestamp_seconds",
        "gitd_scrub_last_read_timestamp_seconds",
        "gitd_store_disk_free_inodes",
    }
    named = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in found.families
        if family.name.startswith("gitd_")
    }
    assert named - listed == set()
    assert listed - named <= later
    for family in found.families:
        assert family.documentation.endswith("."), family.name
        assert re.match(r"(gitd|process)_[a-z_]+$", family.name)
        assert not re.search(r"_(ms|millis|kb|mb|minutes|percent)(_|$)", family.name)


def test_every_metric_that_an_alert_goes_by_is_there() -> None:
    listed = re.findall(r"^\| `(gitd_[a-z_]+)", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    section = (DOCS / "service.md").read_text().partition("## Metrics and alerts")[2]
    named = set(re.findall(r"\bgitd_[a-z_]+", section.partition("\n## ")[0]))
    assert len(named) >= 10
    assert {name.removesuffix("_bucket") for name in named} <= set(listed)


async def test_counters_begin_at_zero_so_that_the_first_one_is_a_rate(control) -> None:
    found = await scraped(control)
    for name, labels in (
        ("gitd_pushes_total", {"outcome": "landed"}),
        ("gitd_jobs_ended_total", {"type": "build.run", "outcome": "failed"}),
        ("gitd_rolls_ended_total", {"trigger": "rollback", "outcome": "succeeded"}),
        ("gitd_webhook_attempts_total", {"outcome": "given_up"}),
        ("gitd_rate_limit_refusals_total", {"kind": "job"}),
        ("gitd_collections_total", {"outcome": "refused"}),
    ):
        assert found.of(name, **labels) == 0


async def test_a_server_has_as_many_series_as_its_docs_say(control) -> None:
    """When it is new, and when each method of its routes was used, but HEAD."""
    assert 400 < len(await scraped(control)) < 500
    used = {
        (route.resource.canonical, route.method)
        for route in control.web_app().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    for path, method in used:
        request = make_mocked_request(method, "/", payload=SimpleNamespace(total_bytes=0))
        control.metrics.requests.of(path)(request, web.Response(), 200, 0.001)
    control.metrics._readings.clear()
    assert 1300 < len(await scraped(control)) < 1800


async def test_reserve_that_was_given_up_shows(control) -> None:
    wanted = control.config.store.reserve_bytes
    found = await scraped(control)
    assert found.of("gitd_store_reserve_wanted_bytes") == wanted
    assert found.of("gitd_store_reserve_bytes") == 0
    assert control.store.room.set_aside()
    control.metrics._readings.clear()
    assert (await scraped(control)).of("gitd_store_reserve_bytes") == wanted


async def test_page_survives_a_database_that_is_lost(control) -> None:
    control.records.close()
    control.folder.database.unlink()
    found = await scraped(control)
    assert found.of("gitd_metrics_part_read", part="server") == 0
    assert found.of("gitd_metrics_part_read", part="rate_limits") == 1
    assert found.of("process_open_fds") > 0


def ended(records: Records, job_type: JobType, *, waited_ms: int, took_ms: int, fails: bool):
    """A job that went its way, as `Jobs` would publish it."""
    now = 1_780_000_000_000

    def change(db):
        changes = JobChanges(db, lambda: now, lambda *_: None)
        job = changes.add(
            job_type, resource_type="build", resource_id=new_id("build"), site_id="s", env_id="e"
        )
        changes.now += waited_ms
        changes.start(job.id)
        changes.now += took_ms
        if fails:
            return changes.fail(job.id, Failure("build.failed", "no"))
        return changes.succeed(job.id, {})

    return records.write(change)


def test_jobs_are_counted_with_how_long_they_waited_and_took(records) -> None:
    registry = CollectorRegistry()
    work = WorkMetrics(registry, records)
    for waited_ms, took_ms, fails in ((50, 3000, False), (7000, 200, True), (0, -5000, False)):
        work.note_job(
            ended(records, JobType.BUILD_RUN, waited_ms=waited_ms, took_ms=took_ms, fails=fails)
        )
    found = Scraped(generate_latest(registry).decode())
    of = {"type": "build.run"}
    assert found.of("gitd_jobs_ended_total", outcome="succeeded", **of) == 2
    assert found.of("gitd_jobs_ended_total", outcome="failed", **of) == 1
    assert found.of("gitd_job_wait_seconds_sum", **of) == pytest.approx(7.05)
    assert found.of("gitd_job_wait_seconds_bucket", le="0.1", **of) == 2
    assert found.of("gitd_job_duration_seconds_sum", **of) == pytest.approx(3.2)
    assert found.of("gitd_job_duration_seconds_count", **of) == 3


def test_steps_that_a_host_makes_up_become_no_series(records) -> None:
    registry = CollectorRegistry()
    work = WorkMetrics(registry, records)
    before = len(Scraped(generate_latest(registry).decode()))
    work.note_steps({"switch": 0.002, "acme-store": 3.0, "unpack": -1.0})
    found = Scraped(generate_latest(registry).decode())
    assert len(found) == before
    assert found.of("gitd_roll_step_duration_seconds_sum", step="switch") == 0.002
    assert found.of("gitd_roll_step_duration_seconds_sum", step="unpack") == 0
    assert found.of("gitd_roll_step_duration_seconds_count", step="verify") == 0


def test_unfinished_jobs_are_counted_with_the_age_of_the_oldest(records) -> None:
    def change(db):
        for at in (5000, 1000, 9000):
            changes = JobChanges(db, lambda at=at: at, lambda *_: None)
            changes.add(
                JobType.BUILD_RUN, resource_type="build", resource_id="b", site_id="s", env_id="e"
            )

    records.write(change)
    found = census.unfinished_jobs(records.reader())
    assert found == {(JobType.BUILD_RUN, JobStatus.QUEUED): census.Unfinished(3, 1000)}


def test_queries_of_a_scrape_look_at_no_whole_table_that_grows(records) -> None:
    """By the database's own plan: through an index, unless the table is small."""
    small = {"site", "environment", "webhook_event"}
    db, statements = records.reader(), []
    db.set_trace_callback(statements.append)
    for count in (
        census.unfinished_jobs,
        census.sites,
        census.environments,
        census.environments_whose_last_roll_failed,
        census.outbox,
        census.damaged_parts,
    ):
        count(db)
    db.set_trace_callback(None)
    assert len(statements) == 9
    for statement in statements:
        for row in db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall():
            scanned = re.fullmatch(r"SCAN (\w+)", row["detail"])
            assert scanned is None or scanned[1] in small, (statement, row["detail"])


def test_what_looks_at_every_row_takes_a_hundredth_of_the_time_at_most() -> None:
    now, calls = 0.0, []

    def measure() -> int:
        nonlocal now
        calls.append(now)
        now += 5.0
        return len(calls)

    measured = Measured(measure, lambda: now)
    assert measured.get() == 1
    now += 499.0
    assert measured.get() == 1
    now += 2.0
    assert measured.get() == 2
    quick = Measured(lambda: calls.append(0.0) or len(calls), lambda: now)
    assert quick.get() == quick.get()
    now += MEASURED_EVERY_S
    assert quick.get() == len(calls)


def test_who_asks_while_it_is_measured_anew_gets_the_old_value_at_once() -> None:
    now, calls = 0.0, []
    has_begun, may_end = threading.Event(), threading.Event()

    def measure() -> int:
        calls.append(now)
        if len(calls) > 1:
            has_begun.set()
            may_end.wait(30)
        return len(calls)

    measured = Measured(measure, lambda: now)
    assert measured.get() == 1
    now += MEASURED_EVERY_S
    with ThreadPoolExecutor(max_workers=2) as threads:
        anew = threads.submit(measured.get)
        try:
            assert has_begun.wait(10)
            assert threads.submit(measured.get).result(timeout=10) == 1
        finally:
            may_end.set()
        assert anew.result(timeout=10) == 2


def test_backup_is_noted_until_the_note_is_lost_or_damaged(tmp_path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    assert last_backup_at(folder) is None
    note_backup(folder, "20260101T000000Z", 1_767_225_600_000)
    assert last_backup_at(folder) == 1_767_225_600_000
    (folder.run / "backup.json").write_text("{")
    assert last_backup_at(folder) is None


async def test_lag_of_the_event_loop_is_seen(control, monkeypatch) -> None:
    monkeypatch.setattr("gitd.metrics.loop_lag.EVERY_S", 0.01)
    keeping = asyncio.create_task(control.metrics.loop_lag.keep())
    await asyncio.sleep(0.05)
    time.sleep(0.3)
    await asyncio.sleep(0.05)
    keeping.cancel()
    found = await scraped(control)
    count = "gitd_event_loop_lag_seconds_bucket"
    assert found.of(count, le="+Inf") - found.of(count, le="0.25") >= 1
