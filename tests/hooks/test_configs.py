"""Configs: what programs are given, pinned to their releases."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hooks.builds.wire import Finish, RunCommands
from hooks.configs import KEEP_COUNT, differences, line_of
from hooks.deploys.wire import Report, config_digest
from hooks.errors import RefusedError
from storage.digest import Digest
from storage.joblog import LogLine
from storage.model import ActorRef, JobStatus, Trigger, VariableUse
from storage.reader import StoreReader
from storage.records import artifacts, deployments, environment_configs, releases
from storage.release_statement import ConfigPin

ACTOR = ActorRef("api_key", "key_1", "tests")
RUN = VariableUse.RUN
RUNS = Finish(
    "slot-0", "succeeded", profile="procfile", output="source", folder=".", run=RunCommands("./run")
)


class Running:
    """An environment of a site that runs a program."""

    def __init__(self, world, site, commit) -> None:
        self.world = world
        self.site = site
        self.commit = commit
        self.production = world.environment(site)

    async def push(self, content: bytes, *, is_over: bool = True, outcome=RUNS):
        path = self.world.repositories.path(self.site.id)
        self.commit(path, {"run": content, "index.html": content})
        made = await self.world.pipeline.start_build(
            self.production, ACTOR, ref="main", deploy=True, clean=True
        )
        lease = await self.world.builds.lease("slot-0", 5)
        await self.world.builds.finish(lease.job_id, outcome)
        job = self.world.jobs.get(made.value.id)
        return await self.served() if is_over else self.deployment(job.result["deployment_id"])

    async def set(self, name: str, value: str, *, where=None, is_secret=False, **options):
        options = {"used_in": RUN, "roll_by": ACTOR, **options}
        return (
            await self.world.variables.put(
                self.site, where, name, value, is_secret=is_secret, **options
            )
        )[1]

    async def unset(self, name: str, *, where=None):
        return await self.world.variables.delete(
            self.site, where, name, is_secret=False, roll_by=ACTOR
        )

    async def served(self):
        """Let the host serve what is wanted next; the deployment that did it."""
        waiting = deployments.unfinished(self.reader, self.production.id)
        desired = await self.world.told(self.production.id, waiting[0].id)
        await self.world.rolls.report(Report(self.production.id, desired.deployment_id, "serving"))
        return self.deployment(desired.deployment_id)

    def given(self, deployment):
        """What a host that serves it gets for its programs."""
        config = self.world.rolls.config_of(deployment.id)
        return None if config is None else {**config.plain, **config.secrets}

    def deployment(self, deployment_id: str):
        return deployments.get(self.reader, deployment_id)

    @property
    def reader(self):
        return self.world.records.reader()

    @property
    def current(self):
        return releases.current(self.reader, self.production.id)


@pytest.fixture
async def running(world, commit) -> Running:
    return Running(world, await world.site(), commit)


async def test_change_makes_a_release_of_the_same_artifact_with_another_config(running) -> None:
    first = await running.push(b"one")
    assert (first.config_version, running.given(first)) == (0, None)
    (job,) = await running.set("DATABASE_URL", "postgres://one", is_secret=True)
    second = await running.served()
    assert (second.job_id, second.trigger, second.config_version) == (job.id, Trigger.CONFIG, 1)
    assert second.artifact_id == first.artifact_id
    assert running.given(second) == {"DATABASE_URL": "postgres://one"}
    assert (running.current.deployment_id, running.current.config_version) == (second.id, 1)
    assert running.given(first) is None, "what is not wanted any more is given nothing"
    said = [item.entry for item in running.world.jobs.read_log(job.id)]
    lines = [entry.line for entry in said if isinstance(entry, LogLine)]
    assert "config 1: DATABASE_URL added" in lines
    assert await running.set("DATABASE_URL", "postgres://one", is_secret=True) == []
    assert await running.set("NPM_TOKEN", "for builds", used_in=VariableUse.BUILD) == []
    assert await running.set("LATER", "x", roll_by=None) == []
    third = await running.push(b"two")
    assert running.given(third) == {"DATABASE_URL": "postgres://one", "LATER": "x"}
    assert third.config_version == 2


async def test_several_values_at_once_make_one_roll_that_has_them_all(running) -> None:
    await running.push(b"one")
    values = {"DB_HOST": "db.example", "DB_PASSWORD": "hunter2"}
    _, (job,) = await running.world.variables.put_all(
        running.site, None, values, is_secret=True, used_in=RUN, roll_by=ACTOR
    )
    rolled = await running.served()
    assert (rolled.job_id, rolled.config_version, running.given(rolled)) == (job.id, 1, values)
    assert deployments.unfinished(running.reader, running.production.id) == []


async def test_release_statement_names_the_config_and_tells_nothing_of_it(running) -> None:
    await running.set("TOKEN", "canary-77aa10", is_secret=True)
    await running.push(b"one")
    desired = await running.world.told(running.production.id)
    config = running.world.rolls.config_of(desired.deployment_id)
    digest = Digest.parse(desired.artifact.digest)
    reader = StoreReader(running.world.store.layout.root)
    verified = reader.verify(digest, desired.artifact.envelope, site="acme-store")
    said = reader.verify_release(
        desired.release.encode(), verified, env_id=running.production.id, above=None, now_ms=0
    )
    assert said.config == ConfigPin(1, config_digest(config))
    assert "canary" not in desired.release + repr(config)
    running.world.records.close()
    for path in running.world.root.glob("gitd.db*"):
        assert b"canary-77aa10" not in path.read_bytes()


async def test_environment_wins_and_others_are_left_alone(running) -> None:
    await running.push(b"one")
    await running.set("URL", "its own", where=running.production)
    await running.served()
    assert await running.set("URL", "of the site") == []
    (job,) = await running.unset("URL", where=running.production)
    rolled = await running.served()
    assert (rolled.job_id, running.given(rolled)) == (job.id, {"URL": "of the site"})
    (job,) = await running.unset("URL")
    rolled = await running.served()
    assert (rolled.job_id, rolled.config_version, running.given(rolled)) == (job.id, 0, None)


async def test_site_that_runs_nothing_is_not_rolled(running) -> None:
    await running.push(b"one", outcome=Finish("slot-0", "succeeded", output="source", folder="."))
    assert await running.set("URL", "x") == []


async def test_rollback_brings_back_what_its_release_was_given(running) -> None:
    await running.set("URL", "old", roll_by=None)
    first = await running.push(b"one")
    await running.set("URL", "new", roll_by=None)
    second = await running.push(b"two")
    assert (first.config_version, second.config_version) == (1, 2)
    for with_its_config, given in ((True, "old"), (False, "new")):
        await running.world.pipeline.start_rollback(
            running.production, first.release_id, ACTOR, with_its_config=with_its_config
        )
        back = await running.served()
        assert back.artifact_id == first.artifact_id
        assert running.given(back) == {"URL": given}
        await running.world.pipeline.start_rollback(running.production, second.release_id, ACTOR)
        await running.served()


async def test_config_that_is_kept_no_more_is_said_before_the_roll(running) -> None:
    await running.set("URL", "old", roll_by=None)
    first = await running.push(b"one")
    await running.set("URL", "new", roll_by=None)
    await running.push(b"two")
    env_id = running.production.id
    running.world.records.write(lambda db: environment_configs.prune(db, env_id, keep_count=1))
    with pytest.raises(RefusedError) as raised:
        await running.world.pipeline.start_rollback(running.production, first.release_id, ACTOR)
    assert raised.value.code == "release.config_gone"
    await running.world.pipeline.start_rollback(
        running.production, first.release_id, ACTOR, with_its_config=False
    )
    assert running.given(await running.served()) == {"URL": "new"}


async def test_values_that_cannot_be_opened_fail_the_roll_and_not_the_build(running) -> None:
    await running.set("TOKEN", "a secret of what runs", is_secret=True, roll_by=None)
    running.world.records.write(lambda db: db.execute("UPDATE variable SET sealed = x'00'"))
    deployment = await running.push(b"one", is_over=False)
    async with asyncio.timeout(20):
        while not (job := running.world.jobs.get(deployment.job_id)).status.is_final:
            await asyncio.sleep(0.01)
    assert job.error.code == "release.config_unreadable"
    assert artifacts.get(running.reader, deployment.artifact_id) is not None


async def test_what_is_served_keeps_its_config_however_many_come_after(running) -> None:
    await running.set("URL", "x", roll_by=None)
    first = await running.push(b"one")
    held = environment_configs.get(running.reader, running.production.id, 1)

    def age(db) -> None:
        for version in range(2, KEEP_COUNT + 5):
            environment_configs.add(db, replace(held, version=version))
        environment_configs.prune(db, running.production.id, keep_count=KEEP_COUNT)

    running.world.records.write(age)
    kept = [
        version
        for version in range(1, 6)
        if environment_configs.get(running.reader, running.production.id, version)
    ]
    assert kept == [1, 5]
    assert running.given(first) == {"URL": "x"}


async def test_changes_in_a_row_are_rolled_once_and_never_undo_a_push(running) -> None:
    await running.push(b"one")
    (begun,) = await running.set("A", "1")
    await running.world.told(running.production.id, begun.resource_id)
    (second,) = await running.set("B", "2")
    (third,) = await running.set("C", "3")
    assert third.id == second.id, "it waits, and is given what is set when it begins"
    pushed = await running.push(b"two", is_over=False)
    assert running.world.jobs.get(second.id).status is JobStatus.CANCELED
    assert running.world.jobs.get(second.id).error.code == "deployment.superseded"
    assert (await running.set("D", "4"))[0].id == pushed.job_id
    assert running.given(await running.served()) == {"A": "1"}
    last = await running.served()
    assert (last.id, running.given(last)) == (
        pushed.id,
        {"A": "1", "B": "2", "C": "3", "D": "4"},
    )
    assert running.world.jobs.get(begun.id).status is JobStatus.SUCCEEDED


async def test_change_during_a_roll_rolls_what_that_one_left(running) -> None:
    await running.push(b"one")
    under_way = await running.push(b"two", is_over=False)
    await running.world.told(running.production.id, under_way.id)
    (job,) = await running.set("A", "1")
    await running.served()
    rolled = await running.served()
    assert (rolled.job_id, rolled.artifact_id) == (job.id, under_way.artifact_id)


def test_differences_are_told_by_name() -> None:
    assert differences({"A": "1", "B": "1"}, {"B": "2", "C": "3"}) == [
        "A removed",
        "B changed",
        "C added",
    ]
    assert line_of(3, ["A added", "B changed"]) == "config 3: A added, B changed"
    assert line_of(0, ["A removed"]) == "no variables: A removed"
