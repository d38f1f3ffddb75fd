"""Previews come to their end: contract "Sites, environments, branch routes", 1."""

from __future__ import annotations

import subprocess

import pytest

from hooks.errors import RefusedError
from hooks.previews import PreviewKeeper, PreviewLimits
from hooks.push import Building, NotDeployed, PushHooks, PushRules
from storage.model import EnvironmentKind, JobStatus
from storage.records import environments, previews
from tests.hooks.test_push import ACTOR, branch, push

DAY_S = 24 * 3600
LIMITS = PreviewLimits(idle_s_max=30 * DAY_S, count_max=2)


def keeper(world, limits: PreviewLimits = LIMITS) -> PreviewKeeper:
    return PreviewKeeper(world.jobs, world.repositories, limits)


def delete_ref(world, site, name: str) -> None:
    """As somebody does it who works in the repository itself: gitd hears nothing of it."""
    git = ["git", "--git-dir", str(world.repositories.path(site.id))]
    subprocess.run([*git, "update-ref", "-d", f"refs/heads/{name}"], check=True)


def slugs(world, site) -> set[str]:
    return {each.slug for each in environments.of_site(world.records.reader(), site.id)}


async def pushed(world, commit, *names: str):
    site = await world.site()
    path = world.repositories.path(site.id)
    moves = [branch(name, commit(path, {"index.html": b"hi"}, branch=name)) for name in names]
    return site, await push(world, site, *moves)


async def test_preview_goes_when_its_branch_is_deleted_behind_the_servers_back(
    world, commit
) -> None:
    site, effects = await pushed(world, commit, "main", "topic", "other")
    assert await keeper(world).look() == []
    delete_ref(world, site, "topic")
    delete_ref(world, site, "main")  # production lives as long as its site
    assert [e.slug for e in await keeper(world).look()] == ["topic"]
    assert slugs(world, site) == {"production", "staging", "other"}
    assert world.jobs.get(effects[1].build.job_id).status is JobStatus.CANCELED
    assert world.jobs.get(effects[0].build.job_id).status is JobStatus.QUEUED


@pytest.mark.parametrize("harm", ["no branch", "no repository", "damaged refs"])
async def test_repository_that_says_nothing_takes_no_preview_down(world, commit, harm: str) -> None:
    site, _ = await pushed(world, commit, "topic")
    path = world.repositories.path(site.id)
    if harm == "no repository":
        path.rename(path.with_suffix(".away"))
    else:
        delete_ref(world, site, "topic")
    if harm == "damaged refs":
        commit(path, {"index.html": b"hi"}, branch="main")
        (path / "packed-refs").write_bytes(b"what was here is lost\n")
    assert await keeper(world).look() == []
    assert "topic" in slugs(world, site)


async def test_branch_that_a_push_brings_back_keeps_its_preview(world, commit) -> None:
    site, (_, made) = await pushed(world, commit, "main", "topic")
    delete_ref(world, site, "topic")
    again = branch("topic", made.build.commit)
    record = await world.push_hooks.begin(site.id, made.build.actor, [again], ())
    assert await keeper(world).look() == []  # its refs are about to move
    git = ["git", "--git-dir", str(world.repositories.path(site.id))]
    subprocess.run([*git, "update-ref", again.ref, again.new], check=True)
    await world.push_hooks.land(record, [again])
    assert await keeper(world).look() == []
    assert "topic" in slugs(world, site)


async def test_preview_that_changed_since_it_was_looked_at_stays(world, commit) -> None:
    site, (_, made) = await pushed(world, commit, "main", "topic")
    seen = previews.get(world.records.reader(), made.environment.id)
    last_push = keeper(world)._last_push(site.id)
    tip = commit(world.repositories.path(site.id), {"index.html": b"two"}, branch="topic")
    await push(world, site, branch("topic", tip, made.build.commit))
    assert not await keeper(world)._remove(seen, None)
    now = previews.get(world.records.reader(), made.environment.id)
    assert not await keeper(world)._remove(now, last_push)
    assert "topic" in slugs(world, site)


async def test_preview_that_nobody_used_goes_and_one_that_is_to_stay_stays(world, commit) -> None:
    site, effects = await pushed(world, commit, "main", "idle", "busy")
    made = await world.pipeline.create_environment(site, "preview", "hand", ephemeral=True)
    await world.pipeline.create_environment(site, "preview", "stays", ephemeral=False)
    began, at = world.jobs.clock(), {e.environment.slug: e for e in effects}
    world.jobs.clock = lambda: began + 1000 * (30 * DAY_S - 60)
    tip = commit(world.repositories.path(site.id), {"index.html": b"two"}, branch="busy")
    await push(world, site, branch("busy", tip, at["busy"].build.commit))
    assert await keeper(world).look() == []
    world.jobs.clock = lambda: began + 1000 * (30 * DAY_S + 60)
    gone = await keeper(world).look()
    assert {e.slug for e in gone} == {"idle", made.value.slug}
    assert slugs(world, site) == {"production", "staging", "busy", "stays"}
    expires = LIMITS.expires_at(previews.every(world.records.reader())[0])
    assert expires == began + 1000 * (60 * DAY_S - 60)
    world.jobs.clock = lambda: began + 1000 * (400 * DAY_S)
    assert await keeper(world, PreviewLimits(idle_s_max=0)).look() == []
    # The next push makes it anew, where it was.
    (again,) = await push(world, site, branch("idle", tip))
    assert again.environment.hostname == at["idle"].environment.hostname


async def test_site_with_as_many_previews_as_it_may_gets_no_other(world, commit) -> None:
    site = await world.site()
    hooks = PushHooks(world.jobs, world.repositories, PushRules(previews=LIMITS))
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"}, branch="a")
    moves = [branch(name, tip) for name in ("a", "b", "c", "main")]
    effects = await hooks.land(await hooks.begin(site.id, ACTOR, moves, ()), moves)
    assert [type(e) for e in effects] == [Building, Building, NotDeployed, Building]
    assert "2 previews, as many as it may" in effects[2].why
    world.pipeline.preview_limits = LIMITS
    with pytest.raises(RefusedError) as refused:
        await world.pipeline.create_environment(site, "preview", "d", ephemeral=True)
    assert refused.value.code == "environment.too_many"
    moves = [branch("a", "0" * 40, tip), branch("c", tip)]
    effects = await hooks.land(await hooks.begin(site.id, ACTOR, moves, ()), moves)
    assert isinstance(effects[1], Building)
    kinds = [e.kind for e in environments.of_site(world.records.reader(), site.id)]
    assert kinds.count(EnvironmentKind.PREVIEW) == 2
