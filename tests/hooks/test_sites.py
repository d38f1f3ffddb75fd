"""What is done to sites and their environments: contract §2 Idempotency, §5."""

from __future__ import annotations

import pytest

from hooks.branches import default_routes
from hooks.errors import RefusedError
from storage.model import ActorRef, RefMove
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
