"""Jobs: every change once, in order, also across a crash. Contract §3."""

from __future__ import annotations

import asyncio

import pytest

from hooks.job_changes import JobChanges
from hooks.jobs import LOST_MS, Jobs
from storage.errors import JobLogPositionError
from storage.joblog import LogLine, StateChange
from storage.model import Failure, Job, JobStatus, JobType
from tests.following import entries

ENDED = Failure("build.command_failed", "no", 2)


async def add(jobs: Jobs) -> Job:
    return await jobs.commit(
        lambda c: c.add(
            JobType.DEPLOYMENT_ROLL,
            resource_type="deployment",
            resource_id="dep_1",
            site_id="site_1",
            env_id="env_1",
        )
    )


async def seen(jobs: Jobs, job_id: str, after: int = 0) -> list[str]:
    found = []
    async with asyncio.timeout(20):
        async for item in entries(jobs, job_id, after=after, heartbeat_s=10):
            assert item is not None
            entry = item.entry
            found.append(entry.status.value if isinstance(entry, StateChange) else entry.line)
    return found


async def test_follower_sees_states_and_lines_in_order_to_the_end(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    follower = asyncio.create_task(seen(jobs, job.id))
    await jobs.commit(lambda c: c.start(job.id, owner="slot-0"))
    jobs.log.add(job.id, ["one", "two"], stage="build")
    await jobs.commit(lambda c: c.succeed(job.id, {"artifact_id": "art_1"}))
    wanted = ["queued", "running", "one", "two", "succeeded"]
    assert await follower == wanted
    assert await seen(jobs, job.id) == wanted


async def test_follower_resumes_exactly_where_it_was(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    jobs.log.add(job.id, [f"line {n}\r with \u2028 breaks" for n in range(50)], stage="build")
    await jobs.commit(lambda c: c.fail(job.id, ENDED))
    whole = [item async for item in entries(jobs, job.id, heartbeat_s=1)]
    for at, item in enumerate(whole[:-1]):
        rest = [i async for i in entries(jobs, job.id, after=item.id, heartbeat_s=1)]
        assert rest == whole[at + 1 :]


async def test_place_that_is_no_entry_is_refused(world) -> None:
    job = await add(world.jobs)
    with pytest.raises(JobLogPositionError):
        await seen(world.jobs, job.id, after=3)


async def test_terminal_status_never_changes(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    await jobs.commit(lambda c: c.cancel(job.id))
    assert await jobs.commit(lambda c: c.succeed(job.id, {})) is None
    assert await jobs.commit(lambda c: c.start(job.id)) is None
    assert jobs.get(job.id).status is JobStatus.CANCELED


async def test_progress_never_decreases(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    await jobs.commit(lambda c: c.start(job.id))
    for progress in (10, 60, 30, 60):
        await jobs.commit(lambda c, p=progress: c.advance(job.id, p))
    assert jobs.get(job.id).progress == 60
    await jobs.commit(lambda c: c.succeed(job.id, {}))
    assert jobs.get(job.id).progress == 100


async def test_state_that_did_not_reach_the_log_is_there_after_a_restart(world) -> None:
    job = await add(world.jobs)
    # What a kill between the commit and the log leaves.
    world.records.write(lambda db: world.jobs.changes_in(db).succeed(job.id, {"a": "b"}))
    again = world.reopen()
    again.jobs.recover()
    assert await seen(again.jobs, job.id) == ["queued", "succeeded"]
    again.jobs.recover()
    assert await seen(again.jobs, job.id) == ["queued", "succeeded"]
    again.records.close()


async def test_log_that_cannot_be_read_holds_up_no_start_and_no_other_job(world) -> None:
    unreadable, job = await add(world.jobs), await add(world.jobs)
    for each in (unreadable, job):
        world.records.write(lambda db, each=each: world.jobs.changes_in(db).succeed(each.id, {}))
    path = world.jobs.joblogs.path(unreadable.id)
    path.unlink()
    path.mkdir()
    again = world.reopen()
    again.jobs.recover()
    assert await seen(again.jobs, job.id) == ["queued", "succeeded"]
    assert again.jobs.log.lines_seen(unreadable.id, "b") == 0
    again.records.close()


async def test_final_state_that_the_log_lost_is_told_all_the_same(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    begun = jobs.joblogs.size_bytes(job.id)
    await jobs.commit(lambda c: c.fail(job.id, ENDED))
    path = jobs.joblogs.path(job.id)
    path.write_bytes(path.read_bytes()[:begun] + b"\0\n")
    at = jobs.get(job.id).finished_at
    jobs.clock = lambda: at + LOST_MS - 1  # it may be on its way there
    following = entries(jobs, job.id, heartbeat_s=0.05)
    said = [await anext(following) for _ in range(3)]
    assert [item and type(item.entry) for item in said] == [StateChange, LogLine, None]
    jobs.clock = lambda: at + LOST_MS
    last = await anext(following)
    assert last.entry.status is JobStatus.FAILED
    assert last.id == said[1].id
    assert [item async for item in following] == []
    assert jobs.lost_end(job.id) == jobs.get(job.id)


async def test_final_state_that_is_in_the_log_is_not_lost(world) -> None:
    job = await add(world.jobs)
    assert world.jobs.lost_end(job.id) is None
    await world.jobs.commit(lambda c: c.fail(job.id, ENDED))
    world.jobs.clock = lambda: 1 << 50
    assert world.jobs.lost_end(job.id) is None


async def test_line_that_a_crash_tore_is_cut_off(world) -> None:
    job = await add(world.jobs)
    world.jobs.log.add(job.id, ["whole"], stage="build")
    with world.jobs.joblogs.path(job.id).open("ab") as log:
        log.write(b'{"kind":"log","line":"hal')
    world.jobs.log.add(job.id, ["next"], stage="build")
    await world.jobs.commit(lambda c: c.cancel(job.id))
    assert await seen(world.jobs, job.id) == ["queued", "whole", "next", "canceled"]


async def test_long_poll_returns_on_a_change_and_on_time(world) -> None:
    jobs = world.jobs
    job = await add(jobs)
    waiting = asyncio.create_task(jobs.wait_for_change(job, 60))
    await asyncio.sleep(0)
    await jobs.commit(lambda c: c.start(job.id))
    async with asyncio.timeout(20):
        await waiting
    began = asyncio.get_running_loop().time()
    await jobs.wait_for_change(jobs.get(job.id), 0.1)
    assert asyncio.get_running_loop().time() - began >= 0.09


async def test_silence_gives_heartbeats(world) -> None:
    job = await add(world.jobs)
    items = entries(world.jobs, job.id, heartbeat_s=0.02)
    first = await anext(items)
    assert first is not None
    assert await anext(items) is None
    assert await anext(items) is None
    await items.aclose()


async def test_watcher_that_fails_keeps_no_other_from_hearing(world) -> None:
    jobs, heard = world.jobs, []

    def fail(_: object) -> None:
        raise ValueError

    for watch in (jobs.watch, jobs.watch_environments):
        watch(fail)
        watch(heard.append)

    def change(changes: JobChanges) -> Job:
        changes.environment_changed("env_1")
        return changes.add(
            JobType.DEPLOYMENT_ROLL,
            resource_type="deployment",
            resource_id="dep_1",
            site_id="site_1",
            env_id="env_1",
        )

    job = await jobs.commit(change)
    assert heard == [job, "env_1"]
