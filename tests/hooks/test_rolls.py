"""How rolls end when control itself is in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable

from hooks.deploys.control.announcing import MESSAGES_COUNT_MAX
from hooks.deploys.control.runner import RollRunner
from hooks.deploys.wire import Changed, Report, RollFailure, RollLog, RollLogLine, Snapshot
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.queueing import DeploymentOrder, queue_deployment
from hooks.sites import Sites
from storage.joblog import LogLine
from storage.model import Failure, JobStatus, Trigger
from storage.records import deployments
from storage.records.db import Records
from tests.hooks.conftest import World
from tests.hooks.test_pipeline import build, serve

AT = "2026-01-01T00:00:00.000Z"


async def begin(world, commit):
    """A site whose roll is under way: its environment, and the roll's job."""
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    job = await build(world, site, deploy=True)
    deployment = deployments.get(world.records.reader(), job.result["deployment_id"])
    return world.environment(site), deployment.job_id


async def ended(world, job_id):
    async with asyncio.timeout(20):
        while not (job := world.jobs.get(job_id)).status.is_final:
            await world.jobs.wait_for_change(job, 10)
    return job


async def test_roll_whose_end_cannot_be_written_down_ends_once_it_can(world, commit) -> None:
    env, job_id = await begin(world, commit)
    refused = []

    def refuse() -> None:
        """Refuse what the report and a turn of the reaper write, and no more."""
        if len(refused) < 2:
            refused.append(True)
            raise OSError

    def prepare(db) -> None:
        db.create_function("refuse", 0, refuse)
        db.execute(
            "CREATE TEMP TRIGGER refuse BEFORE UPDATE ON job WHEN NEW.status = 'failed'"
            " BEGIN SELECT refuse(); END"
        )

    world.records.write(prepare)
    reaper = asyncio.create_task(world.rolls.reap())
    failure = RollFailure("deployment.health_check_failed", "no answer")
    await serve(world, env.id, status="failed", error=failure)
    assert world.jobs.get(job_id).status is JobStatus.RUNNING
    job = await ended(world, job_id)
    assert (job.error.code, job.error.message) == ("deployment.health_check_failed", "no answer")
    assert len(refused) == 2
    assert not reaper.done()
    reaper.cancel()


def batch(deployment_id: str, attempt: str, *texts: str, first: int = 0) -> RollLog:
    lines = tuple(RollLogLine(text, AT, "release") for text in texts)
    return RollLog(deployment_id, first, 10, lines, attempt)


async def test_each_attempt_at_a_roll_has_its_lines_in_the_log_once(world, commit) -> None:
    """The host was killed while its release command ran, and runs it again."""
    env, job_id = await begin(world, commit)
    deployment_id = (await world.told(env.id)).deployment_id

    def say_all(rolls: RollRunner) -> None:
        rolls.take_log(batch(deployment_id, "", "of 0.1", "of 0.1 too"))
        rolls.take_log(batch(deployment_id, "aa", "one", "two"))
        rolls.take_log(batch(deployment_id, "aa", "two", "three", first=1))
        rolls.take_log(batch(deployment_id, "bb", "one", "other", "last"))

    say_all(world.rolls)
    say_all(world.rolls)
    again = world.reopen()
    again.rolls.recover()
    await again.told(env.id, deployment_id)
    say_all(again.rolls)
    entries = [item.entry for item in again.jobs.read_log(job_id)]
    said = [e.line for e in entries if isinstance(e, LogLine) and e.stage == "release"]
    assert said == ["of 0.1", "of 0.1 too", "one", "two", "three", "one", "other", "last"]
    again.records.close()


async def test_host_that_does_not_listen_is_let_go_and_told_all_when_it_comes_back(world) -> None:
    env = world.environment(await world.site())
    async with contextlib.aclosing(world.rolls.desired()) as messages:
        assert isinstance(await anext(messages), Snapshot)

        def change_often(changes: JobChanges) -> None:
            for _ in range(MESSAGES_COUNT_MAX + 1):
                changes.environment_changed(env.id)

        await world.jobs.commit(change_often)
        async with asyncio.timeout(20):
            assert [message async for message in messages] == []
    assert (await world.told(env.id)).env_id == env.id


async def test_host_that_comes_while_a_thread_asks_for_hosts_is_no_error_there(world) -> None:
    """The metrics ask from a thread of theirs."""
    is_asked, may_go_on = threading.Event(), threading.Event()

    def is_gone() -> bool:
        is_asked.set()
        return may_go_on.wait(20)

    async with contextlib.AsyncExitStack() as stack:

        async def connect(is_gone: Callable[[], bool]) -> None:
            messages = world.rolls.desired(is_gone=is_gone)
            await anext(await stack.enter_async_context(contextlib.aclosing(messages)))

        await connect(is_gone)
        asking = asyncio.create_task(asyncio.to_thread(lambda: world.rolls.has_host))
        await asyncio.to_thread(is_asked.wait, 20)
        await connect(lambda: False)
        may_go_on.set()
        assert not await asking
        assert world.rolls.has_host


async def test_host_that_is_told_much_at_once_is_told_all_of_it(world) -> None:
    env = world.environment(await world.site())
    async with contextlib.aclosing(world.rolls.desired()) as messages:
        assert isinstance(await anext(messages), Snapshot)

        def change_often(changes: JobChanges) -> None:
            for _ in range(MESSAGES_COUNT_MAX):
                changes.environment_changed(env.id)

        await world.jobs.commit(change_often)
        for _ in range(MESSAGES_COUNT_MAX):
            assert isinstance(await anext(messages), Changed)


async def test_deployment_that_nobody_was_told_of_is_rolled_all_the_same(world, commit) -> None:
    """Committed and not published, as by a command beside the server."""
    env, job_id = await begin(world, commit)
    await serve(world, env.id)
    first = await ended(world, job_id)
    done = deployments.get(world.records.reader(), first.resource_id)
    order = DeploymentOrder(
        env, done.artifact_id, done.envelope_sha256, Trigger.DEPLOY, done.actor, None, done.commit
    )
    deployment, job = world.records.write(
        lambda db: queue_deployment(world.jobs.changes_in(db), order)
    )
    reaper = asyncio.create_task(world.rolls.reap())
    await world.told(env.id, deployment.id)
    # Nor is anybody told that it is over.
    gone = Failure("deployment.superseded", "on purpose")

    def end(db) -> None:
        changes = world.jobs.changes_in(db)
        changes.fail(job.id, gone)
        deployments.end(db, deployment.id, JobStatus.FAILED, gone, changes.now)

    world.records.write(end)
    again, _ = await world.jobs.commit(lambda changes: queue_deployment(changes, order))
    await world.told(env.id, again.id)
    reaper.cancel()


async def test_roll_whose_damage_cannot_be_looked_at_ends_as_it_was_reported(
    tmp_path, commit
) -> None:
    world = World.open(tmp_path, scrubs=True)
    env, job_id = await begin(world, commit)
    desired = await world.told(env.id)
    world.records.write(lambda db: db.execute("UPDATE artifact SET digest = 'nonsense'").close())
    failure = RollFailure("artifact.corrupt", "index.html is not what it was")
    await world.rolls.report(Report(env.id, desired.deployment_id, "failed", failure))
    job = await ended(world, job_id)
    assert (job.error.code, job.error.message) == (failure.code, failure.message)
    world.records.close()


async def test_database_that_cannot_be_read_for_a_while_ends_no_watch_over_rolls(
    world, tmp_path
) -> None:
    """A command beside makes a site meanwhile: the hosts hear of it once it can be read again."""
    refused = []

    def refuse(*_: object) -> int:
        refused.append(True)
        return sqlite3.SQLITE_DENY

    async with contextlib.aclosing(world.rolls.desired()) as messages, asyncio.timeout(20):
        assert isinstance(await anext(messages), Snapshot)
        reaper = asyncio.create_task(world.rolls.reap())
        world.records.reader().set_authorizer(refuse)
        while len(refused) < 4:  # two turns at least
            await asyncio.sleep(0.05)
            assert not reaper.done()
        beside = Records.open(tmp_path / "gitd.db")
        site = await Sites(Jobs(beside, world.jobs.joblogs), world.repositories).create("b")
        beside.close()
        world.records.reader().set_authorizer(None)
        told = set()
        while len(told) < 2:
            message = await anext(messages)
            if isinstance(message, Changed) and message.environment.site == site.value.name:
                told.add(message.environment.slug)
        assert told == {"production", "staging"}
        reaper.cancel()


async def test_environments_that_were_removed_are_told_from_those_that_were_never_here(
    world, commit
) -> None:
    """Else a host would take what is newer than the records for gone, and its data with it."""
    env, _ = await begin(world, commit)
    site = await world.site("other")
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    await build(world, site)
    gone = world.environment(site).id
    await world.sites.delete(site)
    assert world.rolls.gone([env.id, gone, "env_of_later"]) == [gone]
