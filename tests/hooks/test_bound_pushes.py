"""Pushes by a key that is bound to an environment, when routes change while they are on the way.

They were let in by the routes of then (`gitd.site_git`); what they set off goes by those of now.
"""

from __future__ import annotations

import pytest

from hooks.push import BEYOND_KEY, Building, Deleted, Effect, NotDeployed, TornDown
from storage.model import BranchRoute, Environment, RefMove, RouteTarget, Site
from storage.records import api_keys, builds, environments
from tests.hooks.conftest import World
from tests.hooks.test_default_branch import key
from tests.hooks.test_push import ZERO, branch

TIP = "1" * 40
ELSEWHERE = NotDeployed("refs/heads/x", BEYOND_KEY)
LIVE, STAGING, PREVIEW = RouteTarget.LIVE, RouteTarget.STAGING, RouteTarget.PREVIEW


async def route(world: World, site: Site, target: RouteTarget) -> None:
    """Send `x` there."""
    await world.sites.replace_routes(site, [BranchRoute("main", LIVE), BranchRoute("x", target)])


async def preview(world: World, site: Site) -> Environment:
    await route(world, site, PREVIEW)
    return (await world.sites.create_environment(site, "preview", "x", ephemeral=True)).value


async def overtaken(
    world: World, site: Site, move: RefMove, *, bound_to: Environment, by: RouteTarget
) -> list[Effect]:
    """What a push does whose branch goes elsewhere before it lands."""
    record = await world.push_hooks.begin(site.id, key(world, bound_to), (move,), ())
    await route(world, site, by)
    return await world.push_hooks.land(record, (move,))


def build_count(world: World) -> int:
    return int(world.records.reader().execute("SELECT COUNT(*) FROM build").fetchone()[0])


@pytest.mark.parametrize(("bound_to", "by"), [("staging", LIVE), ("production", STAGING)])
async def test_push_that_routes_overtook_builds_for_no_other_environment(
    world: World, bound_to: str, by: RouteTarget
) -> None:
    site = await world.site()
    there = world.environment(site, bound_to)
    assert await overtaken(world, site, branch("x", TIP), bound_to=there, by=by) == [ELSEWHERE]
    assert build_count(world) == 0


async def test_it_makes_no_preview(world: World) -> None:
    site = await world.site()
    staging = world.environment(site, "staging")
    move = branch("x", TIP)
    assert await overtaken(world, site, move, bound_to=staging, by=PREVIEW) == [ELSEWHERE]
    assert environments.preview_of(world.records.reader(), site.id, "x") is None


async def test_its_own_preview_goes_and_nothing_goes_live(world: World) -> None:
    """The key goes with it, before the push has landed."""
    site = await world.site()
    own = await preview(world, site)
    effects = await overtaken(world, site, branch("x", TIP), bound_to=own, by=LIVE)
    assert effects == [TornDown("refs/heads/x", own, is_deleted=False), ELSEWHERE]
    assert build_count(world) == 0


@pytest.mark.parametrize("new", [TIP, ZERO], ids=["moved", "deleted"])
async def test_preview_of_another_key_stays(world: World, new: str) -> None:
    """No route changes on the way here: the branch had a preview before it went to staging."""
    site = await world.site()
    there = await preview(world, site)
    await route(world, site, STAGING)
    bound_to = world.environment(site, "staging")
    move = branch("x", new, old="2" * 40)
    (effect,) = await overtaken(world, site, move, bound_to=bound_to, by=STAGING)
    if new == ZERO:
        assert effect == Deleted("refs/heads/x", bound_to)
    else:
        assert isinstance(effect, Building)
        assert effect.environment == bound_to
    assert environments.preview_of(world.records.reader(), site.id, "x") == there


async def test_deletion_tells_of_no_other_environment(world: World) -> None:
    site = await world.site()
    staging = world.environment(site, "staging")
    move = branch("x", ZERO, old=TIP)
    effects = await overtaken(world, site, move, bound_to=staging, by=LIVE)
    assert effects == [Deleted("refs/heads/x")]


async def test_push_of_a_key_whose_preview_is_gone_makes_no_new_one(world: World) -> None:
    site = await world.site()
    own = await preview(world, site)
    by, move = key(world, own), branch("x", TIP)
    record = await world.push_hooks.begin(site.id, by, (move,), ())
    await world.sites.delete_environment(own)
    assert api_keys.get(world.records.reader(), by.id) is None
    assert await world.push_hooks.land(record, (move,)) == [ELSEWHERE]


async def test_push_that_a_crash_left_open_goes_no_further(world: World, commit) -> None:
    site = await world.site()
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"}, branch="x")
    by = key(world, world.environment(site, "staging"))
    await world.push_hooks.begin(site.id, by, (branch("x", tip),), ())
    await route(world, site, LIVE)
    again = world.reopen()
    await again.push_hooks.recover()
    live = again.environment(site)
    assert builds.newest_deployed_ref(again.records.reader(), live.id) is None
    assert build_count(again) == 0
    again.records.close()
