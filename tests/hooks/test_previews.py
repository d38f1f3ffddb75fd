"""Previews come to their end: contract "Sites, environments, branch routes", 1."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hooks.errors import RefusedError
from hooks.previews import STEP_S_MAX, Graces, PreviewKeeper, PreviewLimits, Why, _Due
from hooks.push import Building, NotDeployed, PushHooks, PushRules
from storage.model import EnvironmentKind, JobStatus
from storage.records import environments, previews
from tests.hooks.test_push import ACTOR, branch, push

DAY_S = 24 * 3600
LIMITS = PreviewLimits(idle_s_max=30 * DAY_S, count_max=2)
AT_ONCE = Graces(idle_s=0, branch_gone_s=0)
GRACES = Graces(idle_s=1200, branch_gone_s=600)


def keeper(world, limits: PreviewLimits = LIMITS, graces: Graces | None = AT_ONCE) -> PreviewKeeper:
    return PreviewKeeper(world.jobs, world.repositories, limits, graces)


class Looks:
    """A keeper with a clock of its own, which looks once a minute."""

    def __init__(self, world, graces: Graces | None = GRACES) -> None:
        self.now_s = 0.0
        self.removed: set[str] = set()
        self._keeper = PreviewKeeper(
            world.jobs, world.repositories, LIMITS, graces, lambda: self.now_s
        )

    async def once(self, after_s: float = 60) -> list[tuple[str, str]]:
        """Look; return the branch and the reason of those that it warned of."""
        self.now_s += after_s
        with capture_logs() as logs:
            self.removed |= {e.slug for e in await self._keeper.look()}
        due = [line for line in logs if line["event"] == "preview_due"]
        assert all(line["log_level"] == "warning" and line["goes_at"] for line in due)
        return sorted((line["branch"], line["why"]) for line in due)

    async def minutes(self, count: int) -> list[tuple[str, str]]:
        return [said for _ in range(count) for said in await self.once()]


def delete_ref(world, site, name: str) -> None:
    """As somebody does it who works in the repository itself: gitd hears nothing of it."""
    git = ["git", "--git-dir", str(world.repositories.path(site.id))]
    subprocess.run([*git, "update-ref", "-d", f"refs/heads/{name}"], check=True)


def pack(repository: Path) -> Path:
    git = ["git", "--git-dir", str(repository)]
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    return repository / "packed-refs"


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


PACKED = {
    "empty packed-refs": lambda _: b"",
    "packed-refs without its first line": lambda content: content.splitlines(keepends=True)[1],
    "packed-refs cut in a name": lambda content: content[: content.index(b"topic") + 1],
}


@pytest.mark.parametrize("harm", ["no branch", "no repository", "damaged refs", *PACKED])
async def test_repository_that_says_nothing_takes_no_preview_down(world, commit, harm: str) -> None:
    site, _ = await pushed(world, commit, "topic")
    path = world.repositories.path(site.id)
    if harm == "no repository":
        path.rename(path.with_suffix(".away"))
    else:
        delete_ref(world, site, "topic")
    if harm == "damaged refs":
        commit(path, {"index.html": b"hi"}, branch="main")
        (path / "packed-refs").write_bytes(b"# pack-refs with: \nwhat was here is lost\n")
    if harm in PACKED:
        for name in ("main", "topic"):
            commit(path, {"index.html": b"hi"}, branch=name)
        packed = pack(path)
        commit(path, {"index.html": b"hi"}, branch="main")  # has a file of its own again
        packed.write_bytes(PACKED[harm](packed.read_bytes()))
        assert "topic" not in world.repositories.branches(site.id)
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
    assert last_push is not None
    tip = commit(world.repositories.path(site.id), {"index.html": b"two"}, branch="topic")
    await push(world, site, branch("topic", tip, made.build.commit))
    assert not await keeper(world)._remove(_Due(seen, Why.IDLE))
    now = previews.get(world.records.reader(), made.environment.id)
    assert not await keeper(world)._remove(_Due(now, Why.BRANCH_GONE, last_push))
    assert "topic" in slugs(world, site)


async def test_preview_that_nobody_used_goes_and_one_that_is_to_stay_stays(world, commit) -> None:
    site, effects = await pushed(world, commit, "main", "idle", "busy")
    made = await world.sites.create_environment(site, "preview", "hand", ephemeral=True)
    await world.sites.create_environment(site, "preview", "stays", ephemeral=False)
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


async def test_first_look_of_a_clock_that_is_ahead_or_of_an_old_backup_removes_nothing(
    world, commit
) -> None:
    site, _ = await pushed(world, commit, "main", "topic")
    began = world.jobs.clock()
    world.jobs.clock = lambda: began + 1000 * 31 * DAY_S
    assert await keeper(world, graces=None).look() == []
    looks = Looks(world)
    assert await looks.minutes(20) == [("topic", "idle")]  # it is told once
    world.jobs.clock = lambda: began + 1000 * 60  # until the clock was set
    assert await looks.once() == []
    world.jobs.clock = lambda: began + 1000 * 31 * DAY_S
    assert await looks.minutes(20) == [("topic", "idle")]  # and what was seen is forgotten
    assert looks.removed == set()
    again = Looks(world)  # a restart begins anew as well
    await again.minutes(20)
    assert again.removed == set()
    assert "topic" in slugs(world, site)
    await looks.once()
    assert looks.removed == {"topic"}


async def test_preview_that_is_used_while_it_is_due_begins_anew(world, commit) -> None:
    site, (_, made) = await pushed(world, commit, "main", "topic")
    began, looks = world.jobs.clock(), Looks(world)
    world.jobs.clock = lambda: began + 1000 * 31 * DAY_S
    await looks.minutes(20)
    tip = commit(world.repositories.path(site.id), {"index.html": b"two"}, branch="topic")
    await push(world, site, branch("topic", tip, made.build.commit))
    world.jobs.clock = lambda: began + 1000 * 62 * DAY_S
    assert await looks.minutes(20) == [("topic", "idle")]
    assert looks.removed == set()


async def test_time_in_which_nobody_looked_is_no_grace(world, commit) -> None:
    """A server that was stopped for a day, or whose records could not be read."""
    await pushed(world, commit, "main", "topic")
    began, looks = world.jobs.clock(), Looks(world)
    world.jobs.clock = lambda: began + 1000 * 31 * DAY_S
    await looks.once()
    for _ in range(int(GRACES.idle_s / STEP_S_MAX) - 1):
        await looks.once(after_s=DAY_S)
    assert looks.removed == set()
    await looks.once(after_s=DAY_S)
    assert looks.removed == {"topic"}


@pytest.mark.parametrize("harm", ["lost", "cut"])
async def test_lost_refs_that_are_brought_back_in_time_cost_no_preview(
    world, commit, harm: str
) -> None:
    site, _ = await pushed(world, commit, "main", "topic")
    path = world.repositories.path(site.id)
    packed = pack(path)
    whole = packed.read_bytes()
    if harm == "lost":
        packed.unlink()
        commit(path, {"index.html": b"hi"}, branch="main")
    else:
        lines = whole.splitlines(keepends=True)
        packed.write_bytes(b"".join(line for line in lines if b"topic" not in line))
    assert await keeper(world, graces=None).look() == []
    looks = Looks(world)
    assert await looks.minutes(10) == [("topic", "branch_gone")]
    packed.write_bytes(whole)
    assert await looks.minutes(10) == []
    packed.write_bytes(whole[: whole.index(b"\n") + 1])
    commit(path, {"index.html": b"hi"}, branch="main")
    assert await looks.minutes(10) == [("topic", "branch_gone")]
    assert looks.removed == set()
    await looks.once()
    assert looks.removed == {"topic"}


async def test_preview_whose_branch_went_while_the_server_was_dead_goes_an_hour_after_its_start(
    world, commit
) -> None:
    site, _ = await pushed(world, commit, "main", "topic")
    again = world.reopen()
    delete_ref(again, site, "topic")
    looks = Looks(again, graces=None)
    assert await looks.minutes(60) == [("topic", "branch_gone")]
    assert looks.removed == set()
    await looks.once()
    assert looks.removed == {"topic"}
    assert slugs(again, site) == {"production", "staging"}
    again.records.close()


async def test_push_that_deletes_a_branch_and_crashes_takes_its_preview_at_the_next_start(
    world, commit
) -> None:
    site, (_, made) = await pushed(world, commit, "main", "topic")
    gone = branch("topic", "0" * 40, made.build.commit)
    await world.push_hooks.begin(site.id, ACTOR, [gone], ())
    delete_ref(world, site, "topic")
    again = world.reopen()
    await again.push_hooks.recover()
    assert slugs(again, site) == {"production", "staging"}
    again.records.close()


async def test_site_with_as_many_previews_as_it_may_gets_no_other(world, commit) -> None:
    site = await world.site()
    hooks = PushHooks(world.jobs, world.repositories, PushRules(previews=LIMITS))
    tip = commit(world.repositories.path(site.id), {"index.html": b"hi"}, branch="a")
    moves = [branch(name, tip) for name in ("a", "b", "c", "main")]
    effects = await hooks.land(await hooks.begin(site.id, ACTOR, moves, ()), moves)
    assert [type(e) for e in effects] == [Building, Building, NotDeployed, Building]
    assert "2 previews, as many as it may" in effects[2].why
    world.sites.preview_limits = LIMITS
    with pytest.raises(RefusedError) as refused:
        await world.sites.create_environment(site, "preview", "d", ephemeral=True)
    assert refused.value.code == "environment.too_many"
    moves = [branch("a", "0" * 40, tip), branch("c", tip)]
    effects = await hooks.land(await hooks.begin(site.id, ACTOR, moves, ()), moves)
    assert isinstance(effects[1], Building)
    kinds = [e.kind for e in environments.of_site(world.records.reader(), site.id)]
    assert kinds.count(EnvironmentKind.PREVIEW) == 2
