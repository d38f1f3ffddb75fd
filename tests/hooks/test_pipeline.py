"""The use cases, with the runners' own records: contract §2 Idempotency, §4."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import pytest

from hooks.builds.wire import BuildError, Finish, Heartbeat, RunCommands
from hooks.deploys.wire import Desired, Report, RollFailure
from hooks.errors import (
    AmbiguousEnvironmentError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NotFoundError,
    RefusedError,
)
from storage.digest import Digest
from storage.model import ActorRef, BranchRoute, JobStatus, RefMove, RouteTarget, Trigger
from storage.reader import StoreReader
from storage.records import artifacts, builds, deployments, releases
from storage.records.idempotency import Claim

ACTOR = ActorRef("api_key", "key_1", "tests")
DONE = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")


async def build(world, site, *, slug="production", deploy=False, ref="main"):
    """A build that a slot carries out, through the runner itself."""
    environment = world.environment(site, slug)
    made = await world.pipeline.start_build(environment, ACTOR, ref=ref, deploy=deploy)
    lease = await world.builds.lease("slot-0", 5)
    assert lease is not None
    await world.builds.finish(lease.job_id, DONE)
    return world.jobs.get(made.value.id)


async def serve(world, env_id: str, *, status="serving", error=None, sequence=0) -> Desired:
    """What the site host would answer to the deployment that is under way, once it is told."""
    waiting = deployments.unfinished(world.records.reader(), env_id)
    desired = await world.told(env_id, waiting[0].id if waiting else None)
    report = Report(env_id, desired.deployment_id, status, error, sequence=sequence)
    await world.rolls.report(report)
    return desired


async def deploy(world, site, content: bytes, commit, slug="production"):
    commit(world.repositories.path(site.id), {"index.html": content})
    job = await build(world, site, slug=slug, deploy=True)
    await serve(world, world.environment(site, slug).id)
    return deployments.get(world.records.reader(), job.result["deployment_id"])


def current(world, site, slug="production"):
    return releases.current(world.records.reader(), world.environment(site, slug).id)


async def test_build_gives_an_artifact_and_deploys_nothing(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    job = await build(world, site)
    assert job.status is JobStatus.SUCCEEDED
    assert set(job.result) == {"artifact_id", "build_id"}
    timings = builds.get(world.records.reader(), job.result["build_id"]).timings
    assert list(timings) == ["queued", "pack"]
    assert current(world, site) is None
    listed = artifacts.page(
        world.records.reader(), world.environment(site), newest=None, last=None, limit_count=10
    )
    assert [item.artifact.id for item in listed.items] == [job.result["artifact_id"]]


async def test_equal_content_has_an_equal_artifact_id_on_every_site(world, commit) -> None:
    ids = set()
    for name in ("one", "two"):
        site = await world.site(name)
        commit(world.repositories.path(site.id), {"index.html": b"same", "a/b.css": b"x"})
        ids.add((await build(world, site)).result["artifact_id"])
    assert len(ids) == 1


async def test_dot_files_and_settings_are_not_published(world, commit) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    commit(repository, {"index.html": b"same"})
    plain = (await build(world, site)).result["artifact_id"]
    commit(
        repository,
        {"index.html": b"same", ".env": b"SECRET=1", ".gitignore": b"x", "managed.toml": b""},
    )
    assert (await build(world, site)).result["artifact_id"] == plain


async def test_promotion_rolls_the_same_artifact_without_a_build(world, commit) -> None:
    site = await world.site()
    staged = await deploy(world, site, b"one", commit, "staging")
    made = await world.pipeline.start_promotion(
        world.environment(site, "staging"), "production", ACTOR
    )
    await serve(world, world.environment(site).id)
    assert world.jobs.get(made.value.id).status is JobStatus.SUCCEEDED
    release = current(world, site)
    assert release.artifact_id == staged.artifact_id
    assert deployments.get(world.records.reader(), release.deployment_id).trigger is (
        Trigger.PROMOTE
    )
    assert (
        len(
            builds.page(
                world.records.reader(), world.environment(site).id, before=None, limit_count=9
            ).items
        )
        == 0
    )


async def test_rollback_goes_back_to_what_ran_before_and_adds_to_the_history(world, commit) -> None:
    site = await world.site()
    env = world.environment(site)
    first = await deploy(world, site, b"one", commit)
    second = await deploy(world, site, b"two", commit)
    made = await world.pipeline.start_rollback(env, second.id, ACTOR)
    assert not (await world.told(env.id, made.value.resource_id)).release_command
    await serve(world, env.id)
    assert world.jobs.get(made.value.id).status is JobStatus.SUCCEEDED
    assert current(world, site).artifact_id == first.artifact_id
    history = releases.page(world.records.reader(), env.id, before=None, limit_count=10).items
    assert [r.is_current for r in history] == [True, False, False]


async def test_rollback_by_release_id_brings_that_very_release_back(world, commit) -> None:
    site = await world.site()
    env = world.environment(site)
    await deploy(world, site, b"one", commit)
    wanted = current(world, site)
    await deploy(world, site, b"two", commit)
    await deploy(world, site, b"three", commit)
    await world.pipeline.start_rollback(env, wanted.id, ACTOR)
    await serve(world, env.id)
    assert current(world, site).artifact_id == wanted.artifact_id
    with pytest.raises(RefusedError) as refused:
        await world.pipeline.start_rollback(env, current(world, site).id, ACTOR)
    assert refused.value.code == "release.already_current"


async def test_rollback_with_nothing_before_is_refused(world, commit) -> None:
    site = await world.site()
    first = await deploy(world, site, b"one", commit)
    with pytest.raises(RefusedError) as refused:
        await world.pipeline.start_rollback(world.environment(site), first.id, ACTOR)
    assert refused.value.code == "release.no_previous"


async def test_rollback_of_a_failed_deployment_keeps_what_is_current(world, commit) -> None:
    site = await world.site()
    env = world.environment(site)
    await deploy(world, site, b"one", commit)
    commit(world.repositories.path(site.id), {"index.html": b"two"})
    job = await build(world, site, deploy=True)
    await serve(world, env.id, status="failed", error=RollFailure("artifact.corrupt", "bad"))
    failed = deployments.get(world.records.reader(), job.result["deployment_id"])
    assert failed.status is JobStatus.FAILED
    assert failed.error.code == "artifact.corrupt"
    assert current(world, site) is not None
    with pytest.raises(RefusedError) as refused:
        await world.pipeline.start_rollback(env, failed.id, ACTOR)
    assert refused.value.code == "release.already_current"


async def test_promotion_says_what_it_cannot_do(world, commit) -> None:
    site = await world.site()
    staging, production = world.environment(site, "staging"), world.environment(site)
    with pytest.raises(RefusedError) as refused:
        await world.pipeline.start_promotion(staging, "production", ACTOR)
    assert refused.value.code == "environment.nothing_running"
    await deploy(world, site, b"one", commit)
    with pytest.raises(InvalidRequestError):
        await world.pipeline.start_promotion(production, production.slug, ACTOR)
    with pytest.raises(NotFoundError):
        await world.pipeline.start_promotion(production, "preview", ACTOR)
    for branch in ("a", "b"):
        await world.sites.create_environment(site, "preview", branch, ephemeral=True)
    with pytest.raises(AmbiguousEnvironmentError) as ambiguous:
        await world.pipeline.start_promotion(production, "preview", ACTOR)
    assert ambiguous.value.slugs == ("a", "b")


async def test_artifact_of_another_site_cannot_be_deployed(world, commit) -> None:
    one, two = await world.site("one"), await world.site("two")
    commit(world.repositories.path(one.id), {"index.html": b"one"})
    job = await build(world, one)
    with pytest.raises(NotFoundError):
        await world.pipeline.start_deployment(
            world.environment(two), job.result["artifact_id"], ACTOR
        )


async def test_racing_requests_with_one_key_run_the_work_once(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    env = world.environment(site)
    claim = Claim(ACTOR.id, "k1", b"a" * 32)
    made = await asyncio.gather(
        *(world.pipeline.start_build(env, ACTOR, claim=claim) for _ in range(50))
    )
    assert len({m.value.id for m in made}) == 1
    assert sum(not m.replayed for m in made) == 1
    again = world.reopen()
    replay = await again.pipeline.start_build(env, ACTOR, claim=claim)
    assert (replay.replayed, replay.value.id) == (True, made[0].value.id)
    with pytest.raises(IdempotencyKeyReusedError):
        await again.pipeline.start_build(env, ACTOR, claim=Claim(ACTOR.id, "k1", b"b" * 32))
    again.records.close()


async def test_failed_build_is_a_result_of_its_job(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    made = await world.pipeline.start_build(world.environment(site), ACTOR, deploy=True)
    lease = await world.builds.lease("slot-0", 5)
    error = BuildError("build.command_failed", "exited with 2", 2)
    outcome = Finish("slot-0", "failed", error=error, timings={"build": 1.5})
    for _ in range(2):
        await world.builds.finish(lease.job_id, outcome)
    job = world.jobs.get(made.value.id)
    assert job.status is JobStatus.FAILED
    assert job.error.exit_status == 2
    timings = builds.get(world.records.reader(), lease.build_id).timings
    assert list(timings) == ["queued", "build"]


async def test_canceled_build_ends_at_its_slot_and_leaves_no_deployment(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    made = await world.pipeline.start_build(world.environment(site), ACTOR, deploy=True)
    lease = await world.builds.lease("slot-0", 5)
    canceled = await world.pipeline.cancel_job(made.value.id)
    assert canceled.status is JobStatus.CANCELED
    assert world.builds.leases.heartbeat(lease.job_id, Heartbeat("slot-0")).canceled
    await world.builds.finish(lease.job_id, DONE)
    assert world.jobs.get(made.value.id).status is JobStatus.CANCELED
    assert deployments.unfinished(world.records.reader()) == []


async def test_build_under_way_at_a_restart_goes_on_or_is_taken_back(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    kept = await world.pipeline.start_build(world.environment(site), ACTOR)
    staging = world.environment(site, "staging")
    lost = await world.pipeline.start_build(staging, ACTOR, ref="main", clean=True)
    for slot in ("slot-0", "slot-1"):
        assert await world.builds.lease(slot, 5)
    await asyncio.sleep(0.05)
    again = world.reopen()
    again.builds.recover()
    reaper = asyncio.create_task(again.builds.reap())
    await again.builds.finish(kept.value.id, DONE)
    assert again.jobs.get(kept.value.id).status is JobStatus.SUCCEEDED
    lease = await again.builds.lease("slot-9", 5)
    assert lease.job_id == lost.value.id
    reaper.cancel()
    again.records.close()


async def test_roll_under_way_at_a_restart_is_desired_again(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    job = await build(world, site, deploy=True)
    again = world.reopen()
    again.rolls.recover()
    await serve(again, again.environment(site).id)
    found = deployments.get(again.records.reader(), job.result["deployment_id"])
    assert found.status is JobStatus.SUCCEEDED
    again.records.close()


async def test_roll_without_any_site_host_fails_and_says_so(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    reaper = asyncio.create_task(world.rolls.reap())
    job = await build(world, site, deploy=True)
    dep = deployments.get(world.records.reader(), job.result["deployment_id"])
    async with asyncio.timeout(20):
        async for _ in world.jobs.follow(dep.job_id, heartbeat_s=10):
            pass
    assert world.jobs.get(dep.job_id).error.code == "deployment.host_unavailable"
    reaper.cancel()


async def test_deployments_of_one_environment_go_one_after_the_other(world, commit) -> None:
    site = await world.site()
    env = world.environment(site)
    first = await deploy(world, site, b"one", commit)
    second = await deploy(world, site, b"two", commit)
    jobs = [
        (await world.pipeline.start_deployment(env, wanted.artifact_id, ACTOR)).value.id
        for wanted in (first, second, first)
    ]
    for done in range(3):
        states = [world.jobs.get(job).status for job in jobs]
        assert states[:done] == [JobStatus.SUCCEEDED] * done
        assert JobStatus.SUCCEEDED not in states[done:]
        await serve(world, env.id)
    assert current(world, site).artifact_id == first.artifact_id


async def test_signed_statement_says_all_that_the_output_depends_on(world, commit) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"Procfile": b"web: ./serve\n"})
    await world.pipeline.start_build(world.environment(site), ACTOR, clean=True)
    lease = await world.builds.lease("slot-0", 5)
    assert lease.files["Procfile"] == "web: ./serve\n"
    run = RunCommands(web="./serve", health="/up")
    outcome = Finish(
        "slot-0",
        "succeeded",
        profile="procfile",
        run=run,
        output="source",
        settings={"output": "."},
        toolchain={"node": "20.20.2"},
        cache_inputs={"npm": "blake3:00"},
    )
    await world.builds.finish(lease.job_id, outcome)
    (item,) = artifacts.page(
        world.records.reader(), world.environment(site), newest=None, last=None, limit_count=1
    ).items
    verified = StoreReader(world.store.layout.root).verify(
        Digest.parse(item.artifact.digest), item.attestation.envelope_sha256
    )
    said = verified.provenance
    assert (said.run.web, said.run.health) == ("./serve", "/up")
    assert said.commit == lease.commit
    assert said.tree == world.repositories.tree_of(site.id, lease.commit)
    assert said.environment == "production"
    assert said.settings == {"output": ".", "clean": "true"}
    assert said.toolchain == {"node": "20.20.2"}
    assert said.cache_inputs == {"npm": "blake3:00"}
    assert said.gitd_version == version("gitd")


async def test_build_without_a_ref_takes_what_was_pushed_last_where_a_pattern_maps(
    world, commit
) -> None:
    site = await world.site()
    await world.sites.replace_routes(site, [BranchRoute("release/*", RouteTarget.STAGING)])
    staging = world.environment(site, "staging")
    with pytest.raises(InvalidRequestError, match="nothing was pushed to it yet: name a ref"):
        await world.pipeline.start_build(staging, ACTOR)
    for name in ("release/1", "release/2"):
        tip = commit(world.repositories.path(site.id), {"index.html": name.encode()}, branch=name)
        move = RefMove(f"refs/heads/{name}", "0" * 40, tip)
        record = await world.push_hooks.begin(site.id, ACTOR, [move], ())
        await world.push_hooks.land(record, [move])
    newer = commit(world.repositories.path(site.id), {"index.html": b"3"}, branch="release/2")
    job = (await world.pipeline.start_build(staging, ACTOR)).value
    build = builds.get(world.records.reader(), job.resource_id)
    assert (build.ref, build.commit) == ("refs/heads/release/2", newer)


@pytest.mark.parametrize("branch", ["heads/main", "HEAD", "v1", "{tip}"])
async def test_build_without_a_ref_is_of_the_branch_and_of_nothing_else_that_has_its_name(
    world, commit, branch
) -> None:
    site = await world.site()
    path = world.repositories.path(site.id)
    tip = commit(path, {"index.html": b"of main"})
    (path / "refs" / "tags" / "v1").write_text(f"{tip}\n")
    branch = branch.format(tip=tip)
    made = await world.sites.create_environment(site, "preview", branch, ephemeral=True)
    with pytest.raises(NotFoundError):
        await world.pipeline.start_build(made.value, ACTOR)
    own = commit(path, {"index.html": b"its own"}, branch=branch)
    job = (await world.pipeline.start_build(made.value, ACTOR)).value
    build = builds.get(world.records.reader(), job.resource_id)
    assert (build.ref, build.commit) == (f"refs/heads/{branch}", own)
