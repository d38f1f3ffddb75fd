"""What a push prints while its work goes on, and how it ends: contract §6."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hooks.builds.wire import BuildError, Finish
from hooks.deploys.wire import Changed, Desired, Report, RollFailure, Running, Snapshot
from hooks.domains import Domains
from hooks.follow import Addresses, PushNarrator, place_in_words, shown
from hooks.hostnames import PlatformNames
from hooks.jobs import QueuePlace
from hooks.push import Deleted, Failed, NotDeployed, TornDown
from storage.joblog import LogLine
from storage.model import ActorRef, BranchRoute, RefMove, RouteTarget
from storage.records import deployments

ACTOR = ActorRef("api_key", "key_1", "tests")
DONE = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")
FAILED = Finish("slot-0", "failed", error=BuildError("build.command_failed", "no", 2))


class Ear:
    """The client at the other end."""

    is_gone = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._heard = asyncio.Event()

    async def say(self, *lines: str) -> None:
        self.lines.extend(line.strip() for line in lines)
        self._heard.set()

    async def hears(self, text: str) -> None:
        async with asyncio.timeout(20):
            while not any(text in line for line in self.lines):
                self._heard.clear()
                await self._heard.wait()


@pytest.fixture
def narrator(world) -> PushNarrator:
    def url(environment):
        return f"http://{environment.hostname}.localhost"

    return PushNarrator(world.jobs, Addresses(of_environment=url, server="http://here"))


@pytest.fixture
def push(world, commit):
    async def push(site, content=b"one", branch="main"):
        tip = commit(world.repositories.path(site.id), {"index.html": content})
        moves = (RefMove(f"refs/heads/{branch}", "1" * 40, tip),)
        record = await world.push_hooks.begin(site.id, ACTOR, moves, ())
        (effect,) = await world.push_hooks.land(record, moves)
        return effect

    return push


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (QueuePlace(2), "2 builds before this one"),
        (QueuePlace(1), "1 build before this one"),
        (QueuePlace(1, "build_1"), "1 build before this one; build_1 must end too"),
        (
            QueuePlace(0, "build_1"),
            "next, when build_1 has ended: it deploys there too, or builds the same",
        ),
        (QueuePlace(0), "next, when a builder is free"),
        (
            QueuePlace(0, has_builders=False),
            "next, when there is a builder: none is connected yet",
        ),
    ],
)
def test_place_in_words(place: QueuePlace, words: str) -> None:
    assert place_in_words(place) == words


async def test_place_in_the_queue_is_told_as_it_moves(world, narrator, push) -> None:
    other, site = await world.site("other"), await world.site()
    await push(other)
    effect = await push(site)
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    await ear.hears("1 build before this one")
    lease = await world.builds.lease("slot-0", 5)
    await ear.hears("next, when a builder is free")
    await world.builds.finish(lease.job_id, FAILED)
    lease = await world.builds.lease("slot-0", 5)
    assert lease.job_id == effect.build.job_id
    await world.builds.finish(lease.job_id, FAILED)
    await following
    assert sum("queued" in line for line in ear.lines) == 2


async def test_push_ends_with_the_custom_domains_beside_the_platforms_name(
    world, narrator, push
) -> None:
    site = await world.site()
    production = world.environment(site)
    domains = Domains(world.jobs, PlatformNames())
    for number in range(5):
        await domains.add(production, f"shop-{number}.example", ACTOR)
    effect = await push(site)
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    deployment, *_ = deployments.unfinished(world.records.reader(), production.id)
    told = await world.told(production.id, deployment.id)
    await world.rolls.report(Report(production.id, told.deployment_id, "serving"))
    ear = Ear()
    await narrator.follow(effect, ear)
    live = next(at for at, line in enumerate(ear.lines) if "production is live" in line)
    assert ear.lines[live].endswith("http://acme-store.localhost")
    assert ear.lines[live + 1 : live + 5] == [
        "and by its domain: http://shop-0.example",
        "and by its domain: http://shop-1.example",
        "and by its domain: http://shop-2.example",
        "and by 2 more: mf domains --site acme-store --env production",
    ]


async def test_nothing_is_said_of_the_queue_where_a_builder_is_free(world, narrator, push) -> None:
    site = await world.site()
    waiting = asyncio.create_task(world.builds.lease("slot-0", 10))
    await asyncio.sleep(0)
    effect = await push(site)
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    lease = await waiting
    await world.builds.finish(lease.job_id, FAILED)
    await following
    assert not any("queued" in line for line in ear.lines)


async def test_superseded_push_hears_in_plain_words_who_took_over(world, narrator, push) -> None:
    site = await world.site()
    older = await push(site, b"one")
    ear = Ear()
    following = asyncio.create_task(narrator.follow(older, ear))
    await ear.hears("none is connected yet")
    newer = await push(site, b"two")
    await following
    said = "\n".join(ear.lines)
    assert f"superseded by a newer push, of commit {newer.build.commit[:12]}" in said
    assert f"nothing failed: {newer.build.id} took over" in said
    assert f"watch it with: mf jobs wait {newer.build.job_id}" in said
    assert "FAILED" not in said


async def test_push_of_what_is_on_its_way_says_so_and_follows_that(world, narrator, push) -> None:
    site = await world.site()
    first = await push(site)
    again = await push(site)
    ear = Ear()
    await narrator.announce(again, ear)
    assert ear.lines == [f"main -> production: {first.build.id} (of this commit, asked for before)"]
    following = asyncio.create_task(narrator.follow(again, ear))
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, FAILED)
    await following
    assert any("BUILD FAILED" in line for line in ear.lines)


async def told(world, env_id) -> Desired:
    """What the host is told of an environment, once there is something that it should serve."""
    async with contextlib.aclosing(world.rolls.desired()) as news, asyncio.timeout(20):
        async for message in news:
            all_of_them = message.environments if isinstance(message, Snapshot) else ()
            for desired in (message.environment,) if isinstance(message, Changed) else all_of_them:
                if desired.env_id == env_id and desired.deployment_id is not None:
                    return desired
    raise AssertionError(f"{env_id} was not told")


async def test_failure_ends_with_the_command_that_tries_again(world, narrator, push) -> None:
    site = await world.site()
    effect = await push(site, branch="topic/$(x)")
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, FAILED)
    ear = Ear()
    await narrator.follow(effect, ear)
    slug = effect.environment.slug
    again = f"mf build --site acme-store --env {slug} --ref 'topic/$(x)' --deploy --wait"
    assert f"or, if it was not the commit's fault: {again}" in ear.lines
    assert "mend it, commit, and push again" in ear.lines

    effect = await push(site)
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    desired = await told(world, effect.environment.id)
    failure = RollFailure("deployment.start_failed", "no")
    await world.rolls.report(Report(desired.env_id, desired.deployment_id, "failed", failure))
    await following
    again = f"mf deploy {desired.artifact.id} --site acme-store --env production --wait"
    assert ear.lines[-3:-1] == [
        "mend it, commit, and push again",
        f"or, if it was not the commit's fault: {again}",
    ]


@pytest.mark.parametrize("code", ["build.builder_lost", "build.variable_missing"])
async def test_what_is_not_the_commits_fault_is_tried_again_as_it_is(
    world, narrator, push, code
) -> None:
    effect = await push(await world.site())
    lease = await world.builds.lease("slot-0", 5)
    error = BuildError(code, "no", None)
    await world.builds.finish(lease.job_id, Finish("slot-0", "failed", error=error))
    ear = Ear()
    await narrator.follow(effect, ear)
    again = "mf build --site acme-store --env production --ref main --deploy --wait"
    assert ear.lines[-2] == f"to try again without a push: {again}"
    assert not any("mend" in line for line in ear.lines)


async def test_suspended_environment_is_not_said_to_serve(world, narrator, push) -> None:
    site = await world.site()
    effect = await push(site)
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    desired = await told(world, effect.environment.id)
    await world.rolls.report(Report(desired.env_id, desired.deployment_id, "serving"))
    await world.sites.suspend_environment(world.environment(site), lambda: None)
    effect = await push(site, b"two")
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, FAILED)
    ear = Ear()
    await narrator.follow(effect, ear)
    resume = "mf env resume production --site acme-store"
    assert f"production is suspended and serves nothing ({resume})" in ear.lines
    assert not any("still serves" in line for line in ear.lines)


@pytest.mark.parametrize(
    ("status", "is_told"), [(500, True), (400, True), (404, False), (None, False)]
)
async def test_push_says_that_the_front_page_is_broken(world, push, status, is_told) -> None:
    addresses = Addresses(of_environment=lambda _: "http://acme", server="http://here")
    narrator = PushNarrator(world.jobs, addresses, world.rolls.running)
    effect = await push(await world.site())
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    env_id = effect.environment.id
    deployment_id = (await told(world, env_id)).deployment_id
    async with contextlib.aclosing(world.rolls.desired()) as host:
        await anext(host)  # it is there
        running = Running("serving", 0, None, first_answer=status)
        report = Report(env_id, deployment_id, "serving", serves=deployment_id, running=running)
        await world.rolls.report(report)
        await following
    (live,) = [line for line in ear.lines if "is live after" in line]
    broken = f" (GET / answers {status}: mf logs --site acme-store --env production)"
    assert live.endswith(f"http://acme{broken}" if is_told else "http://acme")


async def test_push_says_that_it_resumed_what_was_suspended(world, narrator, push) -> None:
    site = await world.site()
    await world.sites.suspend_environment(world.environment(site), lambda: None)
    effect = await push(site)
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    desired = await told(world, effect.environment.id)
    await world.rolls.report(Report(desired.env_id, desired.deployment_id, "serving"))
    await following
    assert "production was suspended: this push resumed it" in ear.lines
    soon = "production is suspended: it is resumed when this release is live"
    assert any(line.endswith(soon) for line in ear.lines)


@pytest.mark.parametrize(
    "code", ["build.config_invalid", "build.undetected", "build.output_missing"]
)
async def test_commit_that_can_only_fail_again_is_not_built_again(
    world, narrator, push, code
) -> None:
    site = await world.site()
    effect = await push(site)
    lease = await world.builds.lease("slot-0", 5)
    error = BuildError(code, "no", None)
    await world.builds.finish(lease.job_id, Finish("slot-0", "failed", error=error))
    ear = Ear()
    await narrator.follow(effect, ear)
    assert "mend it, commit, and push again: no retry helps" in ear.lines
    assert f"full log: mf logs {effect.build.job_id}" in ear.lines
    assert not any("mf build" in line or "http://here" in line for line in ear.lines)


async def test_push_beside_a_production_that_waits_says_what_it_waits_for(
    world, narrator, push
) -> None:
    site = (await world.sites.create("acme-store", "main")).value
    waits = "production waits for main: git push managed master:main"

    async def said(branch: str) -> list[str]:
        ear = Ear()
        effect = await push(site, branch.encode(), branch=branch)
        await narrator.tell_how_to_follow(effect, ear, was_asked=True)
        return ear.lines

    made = "mf sites set acme-store --default-branch master"
    itself = f"or, with sites:write, let master go live itself: {made}"
    build = "mf build --site acme-store --env production --ref master --deploy --wait"
    lines = await said("master")
    assert lines[-3:] == [waits, itself, f"and then, as it is pushed already: {build}"]
    ear = Ear()
    effect = await push(site, branch="master")
    following = asyncio.create_task(narrator.follow(effect, ear))
    lease = await world.builds.lease("slot-0", 5)
    await world.builds.finish(lease.job_id, DONE)
    desired = await told(world, effect.environment.id)
    await world.rolls.report(Report(desired.env_id, desired.deployment_id, "serving"))
    await following
    assert waits in ear.lines
    routes = (BranchRoute("v?", RouteTarget.LIVE), BranchRoute("*", RouteTarget.PREVIEW))
    await world.sites.replace_routes(site, routes)
    assert not any("waits for" in line for line in await said("master")), "no one branch"
    await world.sites.replace_routes(site, (BranchRoute("trunk", RouteTarget.LIVE), *routes))
    lines = await said("master")
    assert any("git push managed master:trunk" in line for line in lines)
    assert not any("go live itself" in line for line in lines), "no route would be its"
    assert not any("waits for" in line for line in await said("trunk"))
    assert not any("waits for" in line for line in await said("master")), "it is on its way"


@pytest.mark.parametrize("was_asked", [True, False])
async def test_missing_terminal_is_named_only_where_it_may_be_the_reason(
    narrator, world, push, was_asked
) -> None:
    ear = Ear()
    await narrator.tell_how_to_follow(await push(await world.site()), ear, was_asked=was_asked)
    assert any("mf jobs wait job_" in line for line in ear.lines)
    assert any("--progress" in line for line in ear.lines) is not was_asked


def test_stage_of_a_failure_is_not_called_done() -> None:
    end = LogLine("== build: 0.12 s", "now", "build", mark="end", seconds=0.12)
    assert shown(end) == "  build    took 0.1 s"


@pytest.mark.parametrize("is_in_the_log", [True, False])
async def test_why_a_build_failed_is_said_once(world, narrator, push, is_in_the_log) -> None:
    site = await world.site()
    effect = await push(site)
    ear = Ear()
    following = asyncio.create_task(narrator.follow(effect, ear))
    lease = await world.builds.lease("slot-0", 5)
    if is_in_the_log:
        world.jobs.log.add(lease.job_id, ["no luck", "at all"], stage="build")
    error = BuildError("build.command_failed", "no luck\nat all", 2)
    await world.builds.finish(lease.job_id, Finish("slot-0", "failed", error=error))
    await following
    assert "BUILD FAILED (build.command_failed)" in ear.lines
    for line in ("no luck", "at all"):
        assert sum(said.endswith(line) for said in ear.lines) == 1


async def test_what_became_of_refs_without_a_build_is_said(world, narrator) -> None:
    site = await world.site()
    production = world.environment(site)
    preview = (await world.sites.create_environment(site, "preview", "x", ephemeral=True)).value
    ear = Ear()
    for effect in (
        Deleted("refs/tags/v1"),
        Deleted("refs/heads/main", stays_on=production),
        TornDown("refs/heads/x", preview, is_deleted=True),
        TornDown("refs/heads/x", preview, is_deleted=False),
        NotDeployed("refs/tags/v2", "only branches are deployed"),
        Failed("refs/heads/y"),
    ):
        await narrator.announce(effect, ear)
    assert ear.lines == [
        "v1: deleted",
        "main: deleted; what it deployed stays on production",
        "x: deleted, and its preview x with it",
        "x: its preview x is gone: its route leads elsewhere",
        "v2: kept, not deployed (only branches are deployed)",
        "y: kept, not deployed: gitd failed to act on it; see its log",
    ]
