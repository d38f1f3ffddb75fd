"""A push, from its refs to its work: contract §5 and §6."""

from __future__ import annotations

from itertools import islice

import pytest

from hooks.branches import preview_hostnames, preview_slugs
from hooks.environments import add_preview
from hooks.errors import RefusedError
from hooks.push import Building, Deleted, Failed, NotDeployed, TornDown
from storage.errors import RecordConflictError
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


async def push(world, site, *moves: RefMove, options=()):
    record = await world.push_hooks.begin(site.id, ACTOR, moves, options)
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


@pytest.mark.parametrize(
    ("options", "clean"), [(("clean",), True), (("nowait", "rebuild"), True), (("nowait",), False)]
)
async def test_push_says_whether_its_builds_are_clean(world, commit, options, clean) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    effects = await push(world, site, branch("main", tip), branch("x", tip), options=options)
    assert [effect.build.clean for effect in effects] == [clean] * 2


async def test_ignored_branch_queues_no_job(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    await world.sites.replace_routes(site, [BranchRoute("*", RouteTarget.IGNORE)])
    (effect,) = await push(world, site, branch("main", tip))
    assert isinstance(effect, NotDeployed)
    assert effect.why == "its branch route says ignore: mf routes show --site acme-store"
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
    taken = next(preview_hostnames("shop", site.id, "topic"))
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


async def test_preview_gets_a_free_slug_whatever_its_neighbours_are_called(world, commit) -> None:
    """A branch may be named as another one's hashed slug, and as the next one after that."""
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    slugs = list(islice(preview_slugs(site.id, "production"), 4))
    await push(world, site, *(branch(slug, tip) for slug in slugs))
    (effect,) = await push(world, site, branch("production", tip))
    assert isinstance(effect, Building)
    assert effect.environment.slug not in slugs
    assert effect.environment.slug.startswith("production-")
    (again,) = await push(world, site, branch("production", tip, old="1" * 40))
    assert again.environment == effect.environment


async def test_made_preview_gets_a_free_slug_too(world) -> None:
    site = await world.site()
    _, hashed = islice(preview_slugs(site.id, "a-b"), 2)
    for name in ("a/b", hashed, "a-b"):
        made = await world.sites.create_environment(site, "preview", name, ephemeral=True)
    assert made.value.slug not in ("a-b", hashed)
    assert made.value.branch == "a-b"


async def test_ref_that_gitd_cannot_act_on_drops_no_other(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    lost = world.environment(site, "staging").id
    world.records.write(lambda db: environments.delete(db, lost))
    moves = [branch(name, tip) for name in ("one", "staging", "main")]
    one, failed, main = await push(world, site, *moves)
    assert failed == Failed("refs/heads/staging")
    assert one.environment.slug == "one"
    assert main.environment.slug == "production"
    queued = job_rows.unfinished(world.records.reader(), JobType.BUILD_RUN)
    assert {job.id for job in queued} == {one.build.job_id, main.build.job_id}


async def test_such_a_ref_does_not_stop_the_recovery_either(world, commit) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    tip = commit(repository, {"index.html": b"hi"})
    commit(repository, {"index.html": b"hi"}, branch="staging")
    lost = world.environment(site, "staging").id
    world.records.write(lambda db: environments.delete(db, lost))
    await world.push_hooks.begin(site.id, ACTOR, (branch("staging", tip), branch("main", tip)), ())
    again = world.reopen()
    await again.push_hooks.recover()
    (job,) = job_rows.unfinished(again.records.reader(), JobType.BUILD_RUN)
    assert job.env_id == again.environment(site).id
    again.records.close()


async def test_failed_part_of_a_transaction_leaves_no_trace(world, commit) -> None:
    site = await world.site()
    seen: list[str] = []
    world.jobs.watch(lambda job: seen.append(job.id))
    world.jobs.watch_environments(seen.append)

    def twice(changes):
        with changes.apart():
            environments.add(changes.db, add_preview(changes, site, "topic"))

    def change(changes):
        with pytest.raises(RecordConflictError):
            twice(changes)
        with changes.apart():
            return add_preview(changes, site, "kept")

    kept = await world.jobs.commit(change)
    assert seen == [kept.id]
    assert environments.preview_of(world.records.reader(), site.id, "topic") is None
    assert environments.preview_of(world.records.reader(), site.id, "kept") == kept


async def test_deleted_ref_is_said_to_be_deleted(world, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    routes = [BranchRoute("main", RouteTarget.LIVE), BranchRoute("*", RouteTarget.IGNORE)]
    await world.sites.replace_routes(site, routes)
    gone = [branch("ignored", ZERO, tip), branch("main", ZERO, tip)]
    effects = await push(world, site, RefMove("refs/tags/v1", tip, ZERO), *gone)
    production = world.environment(site)
    assert effects == [
        Deleted("refs/tags/v1"),
        Deleted("refs/heads/ignored"),
        Deleted("refs/heads/main", stays_on=production),
    ]


@pytest.mark.parametrize("target", [RouteTarget.LIVE, RouteTarget.STAGING, RouteTarget.IGNORE])
async def test_preview_goes_with_the_next_push_once_its_branch_goes_elsewhere(
    world, commit, target: RouteTarget
) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"})
    (made,) = await push(world, site, branch("topic", tip))
    await world.sites.replace_routes(site, [BranchRoute("topic", target)])
    reader = world.records.reader()
    assert environments.preview_of(reader, site.id, "topic") is not None, "it serves on till then"
    gone, then = await push(world, site, branch("topic", tip, old="1" * 40))
    assert gone == TornDown("refs/heads/topic", made.environment, is_deleted=False)
    assert environments.preview_of(reader, site.id, "topic") is None
    if target is RouteTarget.IGNORE:
        assert isinstance(then, NotDeployed)
    else:
        assert then.environment.kind is not EnvironmentKind.PREVIEW
