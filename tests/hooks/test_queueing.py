"""What an order of a build gets: the same build, or a new one and the end of older ones."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from hooks.builds.wire import Finish, Heartbeat
from hooks.push import PushHooks, PushRules
from hooks.queueing import BuildOrder, same_build, superseded
from storage.model import (
    Action,
    ActorRef,
    Build,
    Environment,
    EnvironmentKind,
    EnvironmentStatus,
    JobStatus,
    PushPolicy,
    RefMove,
)
from storage.records import audit_log, builds, deployments
from tests.rows import build_row

ACTOR = ActorRef("api_key", "key_1", "tests")
ZERO = "0" * 40
QUEUED, RUNNING = JobStatus.QUEUED, JobStatus.RUNNING
HERE = Environment(
    *("env_1", "site_1", "production", EnvironmentKind.PRODUCTION, "main"),
    ephemeral=False,
    status=EnvironmentStatus.ACTIVE,
    hostname="acme-store",
    created_at=0,
)
BUILD = build_row(
    "build_0", ref="main", commit="c1", status=QUEUED, deploys=True, pushed=True, actor=ACTOR
)
ORDER = BuildOrder(HERE, "main", "c1", ACTOR, deploys=True, pushed=True)


def unfinished(*changes) -> list[Build]:
    return [replace(BUILD, id=f"build_{n}", **change) for n, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("older", "order", "same"),
    [
        pytest.param([], {}, None, id="nothing is on its way"),
        pytest.param([{}], {}, 0, id="the same is queued"),
        pytest.param([{"status": RUNNING}], {}, 0, id="the same is running"),
        pytest.param([{"pushed": False}], {}, 0, id="however it was asked for"),
        pytest.param([{"commit": "c2"}], {}, None, id="another commit"),
        pytest.param([{"ref": "release"}], {}, None, id="a build can see its ref"),
        pytest.param([{"ref": "release"}], {"ref": None}, 0, id="a commit by whatever name"),
        pytest.param([{"ref": None}], {}, None, id="by its name, where it has none"),
        pytest.param([{}], {"clean": True}, None, id="clean is never shared"),
        pytest.param([{"clean": True}], {}, 0, id="clean will do"),
        pytest.param([{}], {"deploys": False}, None, id="that one would deploy"),
        pytest.param([{"deploys": False}], {}, None, id="that one would not deploy"),
        pytest.param([{}, {"commit": "c2"}], {}, None, id="something else was pushed since"),
        pytest.param([{}, {"commit": "c2", "deploys": False}], {}, 0, id="nothing that deploys"),
        pytest.param(
            [{"deploys": False}, {"commit": "c2", "deploys": False}],
            {"deploys": False},
            0,
            id="where nothing deploys the order is nothing",
        ),
    ],
)
def test_same_build(older, order, same) -> None:
    found = same_build(unfinished(*older), replace(ORDER, **order))
    assert found == (None if same is None else unfinished(*older)[same])


@pytest.mark.parametrize(
    ("policy", "ended"),
    [(PushPolicy.OVERRIDE, [0, 2, 3]), (PushPolicy.WAIT, [2, 3]), (PushPolicy.ALL, [])],
)
def test_superseded(policy, ended) -> None:
    older = unfinished(
        {"status": RUNNING},
        {"status": QUEUED, "deploys": False, "pushed": False},
        {"status": QUEUED, "pushed": False},
        {"status": QUEUED},
    )
    assert superseded(older, policy) == [older[n] for n in ended]


async def push(world, site, tip, branch="main"):
    moves = (RefMove(f"refs/heads/{branch}", "1" * 40, tip),)
    record = await world.push_hooks.begin(site.id, ACTOR, moves, ())
    (effect,) = await world.push_hooks.land(record, moves)
    return effect


async def pushed_four_times(world, commit, site):
    """Four commits, of which the first is being built when the others come; their jobs."""
    repository = world.repositories.path(site.id)
    tips = [commit(repository, {"index.html": b"%d" % n}) for n in range(4)]
    effects = [await push(world, site, tips[0])]
    lease = await world.builds.lease("slot-0", 5)
    assert lease is not None
    await until(world, effects[0].build.job_id, RUNNING)
    effects += [await push(world, site, tip) for tip in tips[1:]]
    return effects, lease


def audited(world):
    reader = world.records.reader()
    return audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=100).items


async def until(world, job_id, status) -> None:
    async with asyncio.timeout(20):
        while (job := world.jobs.get(job_id)).status is not status:
            await world.jobs.wait_for_change(job, 10)


def statuses(world, effects) -> list[str]:
    return [world.jobs.get(effect.build.job_id).status.value for effect in effects]


async def test_newer_push_ends_the_older_builds_and_says_which_one_took_over(world, commit) -> None:
    site = await world.site()
    effects, lease = await pushed_four_times(world, commit, site)
    assert statuses(world, effects) == ["canceled", "canceled", "canceled", "queued"]
    for older, newer in itertools.pairwise(effects):
        error = world.jobs.get(older.build.job_id).error
        assert error.code == "build.superseded"
        for what in (newer.build.id, newer.build.commit[:12]):
            assert what in error.message
        ended = builds.get(world.records.reader(), older.build.id)
        assert (ended.status.value, ended.superseded_by) == ("canceled", newer.build.id)
        canceled = [entry for entry in audited(world) if entry.target == older.build.job_id]
        assert [(entry.action, entry.actor) for entry in canceled] == [
            (Action.JOB_CANCELED, newer.build.actor)
        ]
    assert world.builds.leases.heartbeat(lease.job_id, Heartbeat("slot-0")).canceled


@pytest.mark.parametrize("where", ["server", "site", "environment"])
async def test_wait_lets_the_running_build_finish_then_builds_the_newest(
    world, commit, where
) -> None:
    site = await world.site()
    if where == "server":
        world.push_hooks = PushHooks(world.jobs, world.repositories, PushRules(PushPolicy.WAIT))
    elif where == "site":
        await world.sites.set_push_policy(site, PushPolicy.WAIT)
    else:
        await world.sites.set_push_policy(site, PushPolicy.ALL)
        await world.sites.set_push_policy(world.environment(site), PushPolicy.WAIT)
    effects, _ = await pushed_four_times(world, commit, site)
    assert statuses(world, effects) == ["running", "canceled", "canceled", "queued"]


async def test_all_builds_every_one_in_order_and_rolls_them_in_order(world, commit) -> None:
    site = await world.site()
    await world.sites.set_push_policy(site, PushPolicy.ALL)
    effects, lease = await pushed_four_times(world, commit, site)
    done = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")
    for number, effect in enumerate(effects):
        if number:
            lease = await world.builds.lease("slot-0", 5)
            assert await world.builds.lease("slot-1", 0) is None, "one at a time"
        assert lease.job_id == effect.build.job_id
        await world.builds.finish(lease.job_id, done)
    assert statuses(world, effects) == ["succeeded"] * 4
    rolls = deployments.unfinished(world.records.reader(), effects[0].environment.id)
    assert [roll.commit for roll in rolls] == [effect.build.commit for effect in effects]


async def test_all_gives_way_to_what_is_asked_for_by_itself(world, commit) -> None:
    """Pushes wait for each other; a rollback is meant for now, and does not wait for them."""
    site = await world.site()
    await world.sites.set_push_policy(site, PushPolicy.ALL)
    effects, lease = await pushed_four_times(world, commit, site)
    done = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")
    for effect in effects:
        if lease is None:
            lease = await world.builds.lease("slot-0", 5)
        await world.builds.finish(effect.build.job_id, done)
        lease = None
    here = effects[0].environment
    under_way, *waiting = deployments.unfinished(world.records.reader(), here.id)
    assert len(waiting) == 3
    await until(world, under_way.job_id, RUNNING)
    asked = await world.pipeline.start_deployment(here, under_way.artifact_id, ACTOR)
    left = deployments.unfinished(world.records.reader(), here.id)
    assert [roll.job_id for roll in left] == [under_way.job_id, asked.value.id]
    for roll in waiting:
        error = world.jobs.get(roll.job_id).error
        assert error.code == "deployment.superseded"
        assert left[-1].id in error.message
    tip = commit(world.repositories.path(site.id), {"index.html": b"last"})
    newest = await push(world, site, tip)
    assert await world.builds.lease("slot-0", 5) is not None
    await world.builds.finish(newest.build.job_id, done)
    left = deployments.unfinished(world.records.reader(), here.id)
    assert [roll.job_id for roll in left[:2]] == [under_way.job_id, asked.value.id]
    assert len(left) == 3, "what was asked for by itself is not dropped"


async def test_build_that_went_on_to_deploy_is_left_alone_by_a_newer_push(world, commit) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    first = await push(world, site, commit(repository, {"index.html": b"1"}))
    lease = await world.builds.lease("slot-0", 5)
    done = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")
    await world.builds.finish(lease.job_id, done)
    second = await push(world, site, commit(repository, {"index.html": b"2"}))
    assert statuses(world, [first, second]) == ["succeeded", "queued"]
    (roll,) = deployments.unfinished(world.records.reader())
    await until(world, roll.job_id, RUNNING)


async def test_pushes_to_other_environments_and_builds_alone_are_left_alone(world, commit) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    old = commit(repository, {"index.html": b"1"})
    alone = (await world.pipeline.start_build(world.environment(site), ACTOR)).value
    elsewhere = await push(world, site, old, "topic")
    await push(world, site, commit(repository, {"index.html": b"2"}))
    assert world.jobs.get(alone.id).status is QUEUED
    assert statuses(world, [elsewhere]) == ["queued"]


async def test_same_commit_asked_for_again_and_again_is_one_build(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"1"})
    here = world.environment(site)
    first = await push(world, site, tip)
    assert first.is_new_build
    again = await push(world, site, tip)
    assert (again.is_new_build, again.build) == (False, first.build)
    asked = await asyncio.gather(
        *(world.pipeline.start_build(here, ACTOR, ref=tip, deploy=True) for _ in range(100))
    )
    assert {made.value.id for made in asked} == {first.build.job_id}
    assert not any(made.replayed for made in asked)
    clean = await world.pipeline.start_build(here, ACTOR, ref=tip, deploy=True, clean=True)
    assert clean.value.id != first.build.job_id


async def test_what_is_pushed_again_after_something_else_is_built_again(world, commit) -> None:
    site = await world.site()
    await world.sites.set_push_policy(site, PushPolicy.ALL)
    repository = world.repositories.path(site.id)
    one, two = (commit(repository, {"index.html": b"%d" % n}) for n in range(2))
    effects = [await push(world, site, tip) for tip in (one, two, one)]
    assert all(effect.is_new_build for effect in effects)
    assert statuses(world, effects) == ["queued"] * 3
