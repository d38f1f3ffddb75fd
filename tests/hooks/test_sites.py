"""What is done to sites and their environments: contract §2 Idempotency, §5."""

from __future__ import annotations

import pytest

from hooks.branches import default_routes
from hooks.errors import NotFoundError, RefusedError
from storage.model import ActorRef, PushPolicy, RefMove
from storage.records import audit_log
from storage.records.idempotency import Claim

ACTOR = ActorRef("api_key", "key_1", "tests")


async def test_site_made_twice_with_one_key_is_one_site(world) -> None:
    claim = Claim(ACTOR.id, "k1", b"a" * 32)
    one = await world.sites.create("shop", claim=claim)
    two = await world.sites.create("shop", claim=claim)
    assert (one.value, two.replayed) == (two.value, True)
    with pytest.raises(RefusedError, match="already"):
        await world.sites.create("shop")
    repositories = [path.name for path in world.repositories.root.iterdir() if path.suffix]
    assert repositories == [f"{one.value.id}.git"]


async def test_preview_made_by_hand_is_kept_for_its_first_push(world, commit) -> None:
    site = await world.site()
    made = await world.sites.create_environment(site, "preview", "topic", ephemeral=True)
    tip = commit(world.repositories.path(site.id), {"index.html": b"one"}, branch="topic")
    moves = (RefMove("refs/heads/topic", "0" * 40, tip),)
    record = await world.push_hooks.begin(site.id, ACTOR, moves, ())
    (effect,) = await world.push_hooks.land(record, moves)
    assert effect.environment == made.value
    with pytest.raises(RefusedError, match="has a preview"):
        await world.sites.create_environment(site, "preview", "topic", ephemeral=True)
    with pytest.raises(RefusedError, match="only previews"):
        await world.sites.delete_environment(world.environment(site))


@pytest.mark.parametrize("branch", ["main", "staging", "nowhere"])
async def test_preview_of_a_branch_that_goes_elsewhere_is_refused(world, branch: str) -> None:
    site = await world.site()
    routes = [r for r in default_routes("main") if r.pattern != "*"]
    await world.sites.replace_routes(site, routes)
    with pytest.raises(RefusedError) as caught:
        await world.sites.create_environment(site, "preview", branch, ephemeral=True)
    assert caught.value.code == "environment.routed_elsewhere"


async def test_what_is_gone_when_its_turn_comes_is_not_changed_and_not_noted(world) -> None:
    """Of requests at the same moment each has found it, and one was the first."""
    site = await world.site()
    production, staging = (world.environment(site, slug) for slug in ("production", "staging"))
    made = await world.sites.create_environment(site, "preview", "topic", ephemeral=True)
    await world.sites.delete_environment(made.value)
    with pytest.raises(NotFoundError):
        await world.sites.delete_environment(made.value)
    await world.sites.delete(site)
    value = {"name": "A", "value": "1", "is_secret": False}
    for change in (
        world.sites.delete(site),
        world.sites.set_push_policy(site, PushPolicy.WAIT),
        world.sites.set_push_policy(production, PushPolicy.WAIT),
        world.sites.create_environment(site, "preview", "other", ephemeral=True),
        world.variables.put(site, None, **value),
        world.variables.put(site, staging, **value, roll_by=ACTOR),
    ):
        with pytest.raises(NotFoundError):
            await change
    page = audit_log.page(
        world.records.reader(), site_id=None, env_id=None, before=None, limit_count=100
    )
    told = [entry.action for entry in page.items]
    assert told[0] == "site.deleted"
    assert told.count("site.deleted") == 1
    assert told.count("environment.deleted") == 3
