"""A push, from its refs to its work: contract §5 and §6."""

from __future__ import annotations

import pytest

from hooks.branches import preview_hostname
from hooks.errors import RefusedError
from hooks.push import Building, NotDeployed, TornDown
from storage.model import (
    ActorRef,
    BranchRoute,
    EnvironmentKind,
    JobStatus,
    JobType,
    RefMove,
    RouteTarget,
)
from storage.records import builds, environments
from storage.records import jobs as job_rows

ACTOR = ActorRef("api_key", "key_1", "tests")
ZERO = "0" * 40


async def push(world, site, *moves: RefMove):
    record = await world.push_hooks.begin(site.id, ACTOR, moves, ())
    return await world.push_hooks.land(record, moves)


def branch(name: str, new: str, old: str = ZERO) -> RefMove:
    return RefMove(f"refs/heads/{name}", old, new)


async def test_branches_go_where_their_routes_say(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    effects = await push(
        world,
        site,
        branch("main", tip),
        branch("staging", tip),
        branch("feature/x", tip),
        RefMove("refs/tags/v1", ZERO, tip),
    )
    kinds = [e.environment.kind for e in effects[:3] if isinstance(e, Building)]
    assert kinds == [EnvironmentKind.PRODUCTION, EnvironmentKind.STAGING, EnvironmentKind.PREVIEW]
    assert isinstance(effects[3], NotDeployed)
    assert effects[2].environment.hostname.startswith("acme-store-feature-x-")
    assert effects[2].environment.slug == "feature-x"


async def test_ignored_branch_queues_no_job(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    await world.pipeline.replace_routes(site, [BranchRoute("*", RouteTarget.IGNORE)])
    (effect,) = await push(world, site, branch("main", tip))
    assert isinstance(effect, NotDeployed)
    assert "ignore" in effect.why
    assert world.records.reader().execute("SELECT COUNT(*) FROM job").fetchone()[0] == 0


async def test_branches_that_slug_alike_get_previews_of_their_own(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    one, other = await push(world, site, branch("a/b", tip), branch("a-b", tip))
    assert one.environment.slug == "a-b"
    assert other.environment.slug != "a-b"
    assert one.environment.hostname != other.environment.hostname
    (again,) = await push(world, site, branch("a/b", tip, old="1" * 40))
    assert again.environment == one.environment


async def test_deleting_a_branch_tears_its_preview_down_and_cancels_its_work(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    (made,) = await push(world, site, branch("topic", tip))
    (gone,) = await push(world, site, branch("topic", ZERO, old=tip))
    assert isinstance(gone, TornDown)
    assert environments.get(world.records.reader(), made.environment.id) is None
    assert world.jobs.get(made.build.job_id).status is JobStatus.CANCELED


async def test_newer_push_takes_the_place_of_the_queued_older(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    (older,) = await push(world, site, branch("main", tip))
    (newer,) = await push(world, site, branch("main", tip, old="1" * 40))
    ended = world.jobs.get(older.build.job_id)
    assert ended.status is JobStatus.CANCELED
    assert ended.error.code == "build.superseded"
    assert newer.build.id in ended.error.message
    assert world.jobs.get(newer.build.job_id).status is JobStatus.QUEUED


async def test_push_that_a_crash_left_open_is_done_at_the_next_start(world, commit) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    tip = commit(repository, {"index.html": b"hi"})
    moves = (branch("main", tip), branch("never-moved", "2" * 40), branch("gone", ZERO, old=tip))
    await world.push_hooks.begin(site.id, ACTOR, moves, ())
    again = world.reopen()
    await again.push_hooks.recover()
    found = builds.page(
        again.records.reader(), again.environment(site).id, before=None, limit_count=10
    )
    assert [(b.commit, b.actor) for b in found.items] == [(tip, ACTOR)]
    await again.push_hooks.recover()
    rows = job_rows.page(
        again.records.reader(),
        status=None,
        resource_type=None,
        site_id=site.id,
        env_id=None,
        before=None,
        limit_count=10,
    )
    assert len(rows.items) == 1
    again.records.close()


async def test_landing_twice_queues_once(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    moves = (branch("main", tip),)
    record = await world.push_hooks.begin(site.id, ACTOR, moves, ())
    assert len(await world.push_hooks.land(record, moves)) == 1
    assert await world.push_hooks.land(record, moves) == []


async def test_preview_whose_address_a_site_has_gets_another(world, commit) -> None:
    site = await world.site("shop")
    taken = preview_hostname("shop", site.id, "topic")
    await world.site(taken)
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    (effect,) = await push(world, site, branch("topic", tip))
    assert effect.environment.hostname != taken
    assert effect.environment.hostname.startswith("shop-topic-")
    with pytest.raises(RefusedError, match="preview has the address"):
        await world.site(effect.environment.hostname)


async def test_push_that_cannot_be_recovered_does_not_stop_the_start(world, commit) -> None:
    lost, site = await world.site("lost"), await world.site("kept")
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    for one in (lost, site):
        await world.push_hooks.begin(one.id, ACTOR, (branch("main", tip),), ())
    world.repositories.remove(lost.id)
    again = world.reopen()
    await again.push_hooks.recover()
    assert len(job_rows.unfinished(again.records.reader(), JobType.BUILD_RUN)) == 1
    again.records.close()
