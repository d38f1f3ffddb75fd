"""Whose word an environment goes by: an artifact's id covers its files, and not how they are run.

The attacker may push to one preview, and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from hooks.builds.wire import Finish, RunCommands
from hooks.deploys.wire import Report
from hooks.environments import add_preview
from hooks.errors import NotFoundError, RefusedError
from hooks.orders import standing
from storage.model import ActorRef, JobStatus, Trigger
from storage.records import artifacts, attestations, builds, deployments, releases, vouching

SOON_S = 60.0
ACTOR = ActorRef("api_key", "key_1", "tests")
FILES = {"index.html": b"hello"}
OWN, EVIL = "exec python3 server.py", "env > index.html; python3 -m http.server"


class Shop:
    """A site with a preview `feat`, and a host that does what it is told."""

    def __init__(self, world, site) -> None:
        self.world = world
        self.site = site

    @property
    def db(self):
        return self.world.records.reader()

    def where(self, slug: str):
        return self.world.environment(self.site, slug)

    async def build(self, slug: str, web: str | None = OWN, *, deploy=False):
        """A build of the same files that is to be run by `web`."""
        job_id = await self.start(slug, deploy=deploy)
        job = await self.finish(job_id, web)
        assert job.status is JobStatus.SUCCEEDED, job.error
        if deploy:
            await self.serve(slug)
        return builds.get(self.db, job.resource_id)

    async def start(self, slug: str, *, deploy: bool) -> str:
        """Begin a build; returns its job."""
        await self.world.pipeline.start_build(
            self.where(slug), ACTOR, ref="main", deploy=deploy, clean=True
        )
        return (await self.world.builds.lease("slot-0", 5)).job_id

    async def finish(self, job_id: str, web: str | None = OWN):
        run = RunCommands(web=web)
        profile = "procfile" if web else "static"
        done = Finish("slot-0", "succeeded", profile=profile, output="source", folder=".", run=run)
        await self.world.builds.finish(job_id, done)
        return self.world.jobs.get(job_id)

    async def deploy(self, slug: str, artifact_id: str, **options):
        await self.world.pipeline.start_deployment(self.where(slug), artifact_id, ACTOR, **options)
        return await self.serve(slug)

    async def serve(self, slug: str) -> str:
        """Let the host serve what waits; return by which command it was told to run it."""
        env_id = self.where(slug).id
        waiting = deployments.unfinished(self.db, env_id)[0]
        desired = await self.world.told(env_id, waiting.id)
        await self.world.rolls.report(Report(env_id, desired.deployment_id, "serving"))
        return self.command(desired.artifact.envelope)

    def command(self, envelope_sha256: str) -> str:
        envelope = Path(self.world.store.layout.envelope(envelope_sha256)).read_bytes()
        body = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        return body["predicate"]["buildDefinition"]["externalParameters"]["run"]["web"]

    def shown(self, slug: str, artifact_id: str, **options):
        return artifacts.of_environment(self.db, self.where(slug), artifact_id, **options)

    def listed(self, slug: str, **options) -> list[str]:
        page = artifacts.page(
            self.db, self.where(slug), newest=None, last=None, limit_count=9, **options
        )
        return [item.attestation.build_id for item in page.items]


@pytest.fixture
async def shop(world, commit) -> Shop:
    site = await world.site()
    commit(world.repositories.path(site.id), FILES)
    await world.jobs.commit(lambda changes: add_preview(changes, site, "feat"))
    return Shop(world, site)


async def test_newer_statement_of_a_preview_says_nothing_to_production(shop) -> None:
    own = await shop.build("production", deploy=True)
    evil = await shop.build("feat", EVIL)
    assert evil.artifact_id == own.artifact_id
    assert shop.listed("production") == [own.id]
    assert shop.listed("feat") == [evil.id]
    assert await shop.deploy("production", own.artifact_id) == OWN
    assert await shop.deploy("staging", own.artifact_id) == OWN
    assert await shop.deploy("feat", own.artifact_id) == EVIL
    later = await shop.build("staging", "exec later")
    assert await shop.deploy("production", later.artifact_id) == "exec later"


async def test_what_previews_alone_built_is_promoted_and_not_deployed(shop) -> None:
    tried = await shop.build("feat", "exec tried", deploy=True)
    assert shop.listed("production") == []
    with pytest.raises(RefusedError) as refused:
        await shop.deploy("production", tried.artifact_id)
    assert refused.value.code == "artifact.previews_only"
    await shop.world.pipeline.start_promotion(shop.where("feat"), "production", ACTOR)
    assert await shop.serve("production") == "exec tried"
    evil = await shop.build("feat", EVIL)
    assert evil.artifact_id == tried.artifact_id
    assert await shop.deploy("production", tried.artifact_id) == "exec tried"
    release = releases.current(shop.db, shop.where("production").id)
    made_by = deployments.get(shop.db, release.deployment_id)
    assert (made_by.trigger, shop.listed("production")) == (Trigger.DEPLOY, [tried.id])


async def test_build_that_finds_what_a_preview_built_of_its_inputs_vouches_for_it(shop) -> None:
    first = await shop.build("feat")
    assert shop.listed("production") == []
    made = await shop.world.pipeline.start_build(shop.where("production"), ACTOR, ref="main")
    await shop.world.builds.lease("slot-0", 0.1)
    job = shop.world.jobs.get(made.value.id)
    assert (job.status, builds.get(shop.db, job.resource_id).cached) == (JobStatus.SUCCEEDED, True)
    assert shop.listed("production") == [first.id]
    assert await shop.deploy("production", first.artifact_id) == OWN


async def test_build_that_is_canceled_while_it_is_packed_vouches_for_what_it_gave(shop) -> None:
    job_id = await shop.start("production", deploy=True)
    packer, loop = shop.world.builds._packer, asyncio.get_running_loop()
    seal = packer._seal

    def cancel_and_seal(statement: bytes):  # on the thread that packs, when it is nearly done
        canceling = shop.world.pipeline.cancel_job(job_id)
        asyncio.run_coroutine_threadsafe(canceling, loop).result(SOON_S)
        return seal(statement)

    packer._seal = cancel_and_seal
    job = await shop.finish(job_id)
    canceled = builds.get(shop.db, job.resource_id)
    assert (job.status, canceled.status) == (JobStatus.CANCELED, JobStatus.CANCELED)
    assert deployments.unfinished(shop.db) == []
    assert shop.listed("production") == [canceled.id]
    assert await shop.deploy("production", canceled.artifact_id) == OWN


async def test_revoked_statement_is_not_replaced_by_a_previews(shop) -> None:
    own = await shop.build("production", deploy=True)
    old = shop.world.custody.signing_key().key_id
    shop.world.custody.rotate(shop.world.store.layout.trust)
    await shop.build("feat", EVIL)
    keyring = shop.world.custody.revoke(shop.world.store.layout.trust, old, reason="a test")
    shop.world.records.write(lambda db: attestations.revoke(db, keyring.revoked))
    production = shop.where("production")
    running = deployments.get(shop.db, releases.current(shop.db, production.id).deployment_id)
    with pytest.raises(RefusedError):
        standing(shop.db, running, production)
    for act in (
        shop.deploy("production", own.artifact_id),
        shop.world.pipeline.start_promotion(production, "staging", ACTOR),
    ):
        with pytest.raises(RefusedError) as refused:
            await act
        assert refused.value.code == "artifact.revoked"
    (lost,) = vouching.affected(shop.db)
    assert (lost.environment, lost.artifact_id) == ("production", own.artifact_id)


async def test_whoever_knows_one_environment_knows_its_artifacts_alone(shop, commit) -> None:
    feat = shop.where("feat").id
    own = await shop.build("production")
    assert shop.shown("feat", own.artifact_id, only_its_own=True) is None
    assert shop.listed("feat", only_its_own=True) == []
    with pytest.raises(NotFoundError):
        await shop.deploy("feat", own.artifact_id, only_env=feat)
    for act in (shop.world.pipeline.pin_artifact, shop.world.pipeline.unpin_artifact):
        actor = (ACTOR,) if act == shop.world.pipeline.pin_artifact else ()
        with pytest.raises(NotFoundError):
            await act(shop.where("feat"), own.artifact_id, *actor, only_env=feat)
    await shop.deploy("feat", own.artifact_id)  # by somebody who knows both
    assert shop.listed("feat", only_its_own=True) == [own.id]
    again = await shop.build("feat", "exec mine")
    assert shop.shown("feat", own.artifact_id, only_its_own=True).attestation.build_id == again.id
    assert await shop.deploy("feat", own.artifact_id, only_env=feat) == "exec mine"
