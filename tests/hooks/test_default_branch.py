"""The default branch: whether the first push says it, and what goes by its name."""

from __future__ import annotations

import pytest

from gitd.api_keys import mint
from hooks.default_branch import goes_live_as_default, moved_routes, said_by
from hooks.errors import RefusedError
from hooks.push import Building, MadeDefault, NotDeployed
from storage.errors import StorageIoError
from storage.model import (
    ActorRef,
    BranchRoute,
    Environment,
    EnvironmentKind,
    RefMove,
    RouteTarget,
    Site,
)
from storage.records import api_keys, sites
from tests.hooks.conftest import World

TIP, ZERO = "1" * 40, "0" * 40
LIVE, STAGING, PREVIEW = RouteTarget.LIVE, RouteTarget.STAGING, RouteTarget.PREVIEW


def made(name: str) -> RefMove:
    return RefMove(f"refs/heads/{name}", ZERO, TIP)


@pytest.mark.parametrize(
    ("pushed", "said"),
    [
        (["master"], "master"),
        (["feature/x", "master", "staging"], "master"),
        (["main"], None),
        (["main", "master"], None),
        (["trunk"], None),
        (["feature/master"], None),
        ([], None),
    ],
)
def test_first_push_says_master_alone(pushed, said) -> None:
    site = Site("site_1", "acme", "main", 0, is_default_open=True)
    moves = [*map(made, pushed), RefMove("refs/tags/main", ZERO, TIP)]
    assert said_by(site, moves) == said


def test_nothing_is_said_where_it_was_chosen_or_by_a_deletion() -> None:
    assert said_by(Site("site_1", "acme", "main", 0), [made("master")]) is None
    gone = RefMove("refs/heads/master", TIP, ZERO)
    assert said_by(Site("site_1", "acme", "main", 0, is_default_open=True), [gone]) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("main=live staging=staging *=preview", "trunk=live staging=staging *=preview"),
        ("dev=preview main=live", "dev=preview trunk=live"),
        ("trunk=staging main=live", "trunk=staging main=live"),
        ("release/*=live *=preview", "release/*=live *=preview"),
    ],
)
def test_route_of_the_old_one_goes_along_unless_the_new_one_has_its_own(before, after) -> None:
    assert moved_routes(routes(before), "main", "trunk") == routes(after)


@pytest.mark.parametrize(
    ("branch", "goes_live"), [("trunk", True), ("v1", True), ("main", True), ("staging", False)]
)
def test_branch_goes_live_as_the_default_one_unless_its_own_route_leads_elsewhere(
    branch, goes_live
) -> None:
    there = routes("main=live staging=staging v?=preview *=preview")
    assert goes_live_as_default(there, "main", branch) is goes_live
    assert not goes_live_as_default(there[1:], "main", branch)


def routes(text: str) -> tuple[BranchRoute, ...]:
    pairs = (each.split("=") for each in text.split())
    return tuple(BranchRoute(pattern, RouteTarget(target)) for pattern, target in pairs)


def key(world: World, bound_to: Environment | None = None) -> ActorRef:
    env_id, site_id = (bound_to.id, bound_to.site_id) if bound_to else (None, None)
    _, made_key = mint("tests", ("deployments:write",), site_id=site_id, env_id=env_id)
    world.records.write(lambda db: api_keys.add(db, made_key))
    return ActorRef("api_key", made_key.id, "tests")


async def push(world: World, site: Site, *moves: RefMove, by: ActorRef | None = None):
    record = await world.push_hooks.begin(site.id, by or key(world), moves, ())
    return await world.push_hooks.land(record, moves)


def now(world: World, site: Site) -> Site:
    found = sites.find(world.records.reader(), site.id)
    assert found is not None
    return found


async def test_first_push_of_master_goes_live_and_head_names_it(world: World) -> None:
    site = await world.site()
    first, second = await push(world, site, made("master"))
    assert first == MadeDefault("refs/heads/master")
    assert isinstance(second, Building)
    assert second.environment.kind is EnvironmentKind.PRODUCTION
    assert world.environment(site).branch == "master"
    assert now(world, site).default_branch == "master"
    assert world.repositories.default_branch(site.id) == "master"
    there = sites.routes(world.records.reader(), site.id)
    assert [route.pattern for route in there] == ["master", "staging", "*"]
    (again,) = await push(world, site, made("main"))
    assert isinstance(again, Building)
    assert again.environment.kind is EnvironmentKind.PREVIEW


@pytest.mark.parametrize("first", ["main", "feature/x"])
async def test_later_push_of_master_is_one_of_any_branch(world: World, first: str) -> None:
    site = await world.site()
    await push(world, site, made(first))
    (effect,) = await push(world, site, made("master"))
    assert isinstance(effect, Building)
    assert effect.environment.kind is EnvironmentKind.PREVIEW
    assert world.repositories.default_branch(site.id) == "main"


async def test_push_of_tags_alone_leaves_it_open(world: World) -> None:
    site = await world.site()
    await push(world, site, RefMove("refs/tags/v1", ZERO, TIP))
    first, *_ = await push(world, site, made("master"))
    assert first == MadeDefault("refs/heads/master")


async def test_branch_that_was_chosen_stays(world: World) -> None:
    chosen = (await world.sites.create("chosen", "main")).value
    routed = await world.site("routed")
    await world.sites.replace_routes(routed, [BranchRoute("main", LIVE)])
    for site in (chosen, routed):
        assert not any(isinstance(e, MadeDefault) for e in await push(world, site, made("master")))
        assert now(world, site).default_branch == "main"


async def preview_of_master(world: World, site: Site) -> Environment:
    return (await world.sites.create_environment(site, "preview", "master", ephemeral=True)).value


async def test_master_that_has_a_preview_stays_there(world: World) -> None:
    """Who made it before the first push has said where that goes."""
    site = await world.site()
    preview = await preview_of_master(world, site)
    (effect,) = await push(world, site, made("master"))
    assert isinstance(effect, Building)
    assert effect.environment == preview
    assert not now(world, site).is_default_open
    assert now(world, site).default_branch == "main"
    assert world.repositories.default_branch(site.id) == "main"


@pytest.mark.parametrize("bound_to", ["staging", "master"])
async def test_key_of_one_environment_chooses_nothing(world: World, bound_to: str) -> None:
    """Not when the preview goes while its push is on the way, and with it the key."""
    site = await world.site()
    preview = await preview_of_master(world, site)
    by = key(world, world.environment(site, bound_to))
    move = made("master")
    record = await world.push_hooks.begin(site.id, by, (move,), ())
    await world.sites.delete_environment(preview)
    (effect,) = await world.push_hooks.land(record, (move,))
    assert isinstance(effect, NotDeployed)
    assert now(world, site).default_branch == "main"


async def test_first_push_of_a_key_of_production_leaves_no_choice_to_the_next(world: World) -> None:
    """What it put live is not taken from there by whoever pushes `master` then."""
    site = await world.site()
    await push(world, site, made("main"), by=key(world, world.environment(site)))
    (effect,) = await push(world, site, made("master"))
    assert isinstance(effect, Building)
    assert effect.environment.kind is EnvironmentKind.PREVIEW


async def test_head_that_a_crash_left_behind_follows_at_the_next_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await world.site()
    with monkeypatch.context() as patch:
        patch.setattr("storage.repos.write_atomic", _no_disk)
        effects = await push(world, site, made("master"))
    assert len(effects) == 2, "the push is not held up"
    assert world.repositories.default_branch(site.id) == "main"
    await world.heads.recover()
    assert world.repositories.default_branch(site.id) == "master"


def _no_disk(*_: object, **__: object) -> None:
    raise StorageIoError("no disk")


async def test_chosen_later_its_route_its_environment_and_head_follow(world: World) -> None:
    site = await world.site()
    await push(world, site, made("main"))
    await world.sites.set_default_branch(site, "trunk")
    assert world.environment(site).branch == "trunk"
    assert world.repositories.default_branch(site.id) == "trunk"
    (effect,) = await push(world, site, made("trunk"))
    assert isinstance(effect, Building)
    assert effect.environment.kind is EnvironmentKind.PRODUCTION


@pytest.mark.parametrize(
    ("before", "chosen"),
    [
        ("main=live staging=staging *=preview", "staging"),
        ("dev=preview main=live", "dev"),
        ("wip/*=ignore main=live", "wip/one"),
    ],
)
async def test_branch_that_would_not_go_live_is_not_chosen_for_one_that_does(
    world: World, before: str, chosen: str
) -> None:
    site = await world.site()
    await world.sites.replace_routes(site, routes(before))
    with pytest.raises(RefusedError, match=f"'{chosen}' is .*'main' would go on") as caught:
        await world.sites.set_default_branch(site, chosen)
    assert caught.value.code == "site.branch_routed_elsewhere"
    assert now(world, site).default_branch == world.repositories.default_branch(site.id) == "main"
    assert sites.routes(world.records.reader(), site.id) == routes(before)


@pytest.mark.parametrize(
    ("before", "chosen"),
    [
        ("staging=live main=preview", "staging"),
        ("staging=live main=live", "staging"),
        ("main=staging release/*=live *=preview", "trunk"),
        ("dev=preview release/*=live *=preview", "dev"),
    ],
)
async def test_routes_that_say_what_goes_live_leave_the_choice(
    world: World, before: str, chosen: str
) -> None:
    site = await world.site()
    await world.sites.replace_routes(site, routes(before))
    await world.sites.set_default_branch(site, chosen)
    assert world.repositories.default_branch(site.id) == chosen
