"""Plain commits: packed by control, without a slot."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hooks.builds.profiles.plain import CONTROL, plain_plan
from hooks.builds.wire import CONFIG_FILES, Folder, RootEntry
from hooks.clock import now_ms, rfc3339
from storage.errors import StorageError
from storage.joblog import LogLine, StateChange
from storage.model import ActorRef, JobStatus
from storage.records import builds, deployments, environments, vouching
from storage.records import jobs as job_rows
from tests.hooks.conftest import World

ACTOR = ActorRef("api_key", "key_1", "tests")
MACHINE = {"node": "20.1.0"}
SOON_S = 60.0
PAGES = {"index.html": b"one", "css/a.css": b"a", ".env": b"hidden", "css/.b": b"hidden"}


def folder(*names: str) -> Folder:
    entries = tuple(
        RootEntry(name.removesuffix("/"), "dir" if name.endswith("/") else "file") for name in names
    )
    return Folder("0" * 40, entries, {})


@pytest.mark.parametrize("names", [("index.html",), ("css/", "index.html", "README.md")])
def test_files_alone_are_plain(names) -> None:
    plan = plain_plan(folder(*names))
    assert plan is not None
    assert (plan.profile, plan.source_folder, plan.is_public) == ("static", ".", True)


@pytest.mark.parametrize(
    "names",
    [
        *[("index.html", name) for name in CONFIG_FILES],
        *[("index.html", f"{name}/") for name in CONFIG_FILES],
        ("README.md",),
        ("index.php",),
        ("index.html", "index.php", "composer.json"),
    ],
)
def test_what_a_text_could_change_is_for_a_slot(names) -> None:
    assert plain_plan(folder(*names)) is None


class Site:
    """A site on a server whose slots have said what they build with, and are busy."""

    def __init__(self, world: World, site, commit) -> None:
        self.world = world
        self.site = site
        self._commit = commit

    def commit(self, files) -> str:
        return self._commit(self.world.repositories.path(self.site.id), files)

    async def ask(self, slug="production", **options) -> str:
        environment = self.world.environment(self.site, slug)
        made = await self.world.pipeline.start_build(environment, ACTOR, ref="main", **options)
        return made.value.id

    async def ended(self, job_id):
        """Return the job once it is over, and its log says so."""
        async with asyncio.timeout(SOON_S):
            while not (job := self.world.jobs.get(job_id)).status.is_final:
                await self.world.jobs.wait_for_change(job, SOON_S)
            while self.log(job_id)[-1:] != [job.status.value]:
                await asyncio.sleep(0.01)
        return job

    def log(self, job_id) -> list[str]:
        entries = [item.entry for item in self.world.jobs.joblogs.read(job_id)]
        return [
            entry.status.value if isinstance(entry, StateChange) else entry.line
            for entry in entries
            if isinstance(entry, StateChange) or (isinstance(entry, LogLine) and not entry.mark)
        ]

    def made_by(self, build):
        reader = self.world.records.reader()
        where = environments.get(reader, build.env_id)
        return vouching.best(reader, where, build.artifact_id).attestation

    def paths(self, job) -> list[bytes]:
        build = builds.get(self.world.records.reader(), job.resource_id)
        assert self.made_by(build).build_id
        with self.world.store.reading(self._digest(build.artifact_id)) as manifest:
            return [entry.path for entry in manifest.entries]

    def provenance(self, job) -> dict:
        build = builds.get(self.world.records.reader(), job.resource_id)
        made_by = self.made_by(build)
        envelope = Path(self.world.store.layout.envelope(made_by.envelope_sha256)).read_bytes()
        return json.loads(base64.b64decode(json.loads(envelope)["payload"]))["predicate"]

    def _digest(self, artifact_id):
        from storage.digest import Digest
        from storage.records import artifacts

        return Digest.parse(artifacts.get(self.world.records.reader(), artifact_id).digest)


@pytest.fixture
async def plain(tmp_path: Path, commit) -> AsyncIterator[Site]:
    world = World.open(tmp_path, packs_plain=True)
    made = Site(world, await world.site(), commit)
    made.commit(PAGES)
    assert await world.builds.lease("slot-0", 0, toolchain=MACHINE) is None
    yield made
    world.records.close()


async def test_plain_commit_is_packed_without_a_slot(plain) -> None:
    told = []
    plain.world.builds.watch_plain(told.append)
    job = await plain.ended(await plain.ask(deploy=True))
    assert job.status is JobStatus.SUCCEEDED
    assert plain.paths(job) == [b"css", b"css/a.css", b"index.html"]
    assert plain.log(job.id) == [
        "queued",
        "running",
        "static, by index.html: serves the whole tree, as committed",
        "succeeded",
    ]
    assert deployments.get(plain.world.records.reader(), job.result["deployment_id"]) is not None
    assert told == [plain.world.environment(plain.site).id]


async def test_next_commit_is_packed_as_it_is_and_not_as_it_was(plain) -> None:
    first = await plain.ended(await plain.ask())
    files = {**PAGES, "css/b.css": b"b", "js/c.js": b"c"}
    del files["css/a.css"]
    plain.commit(files)
    second = await plain.ended(await plain.ask())
    plain.commit(PAGES)
    third = await plain.ended(await plain.ask(clean=True))
    assert plain.paths(second) == [b"css", b"css/b.css", b"index.html", b"js", b"js/c.js"]
    assert third.result["artifact_id"] == first.result["artifact_id"]
    assert second.result["artifact_id"] != first.result["artifact_id"]


async def test_plain_commit_of_too_many_bytes_is_told_the_bound_and_its_setting(
    tmp_path: Path, commit
) -> None:
    world = World.open(tmp_path, packs_plain=True, output_bytes_max=1 << 20)
    site = Site(world, await world.site(), commit)
    assert await world.builds.lease("slot-0", 0, toolchain=MACHINE) is None
    site.commit({"index.html": bytes(1 << 20)})
    assert (await site.ended(await site.ask())).status is JobStatus.SUCCEEDED
    site.commit({"index.html": bytes(1 << 20), "one.txt": b"1"})
    job = await site.ended(await site.ask())
    assert job.error.code == "build.output_too_large"
    said = "output: its files are larger than 1 MiB together (builders.output_bytes_max)."
    assert job.error.message == said
    world.records.close()


async def test_a_folder_known_by_one_path_is_not_taken_for_another(plain) -> None:
    plain.commit({"index.html": b"one", "a/x.css": b"x"})
    await plain.ended(await plain.ask())
    plain.commit({"index.html": b"one", "a/x.css": b"x", "b/x.css": b"x", ".c/x.css": b"x"})
    again = await plain.ended(await plain.ask())
    assert plain.paths(again) == [b"a", b"a/x.css", b"b", b"b/x.css", b"index.html"]


async def test_known_files_that_the_store_lost_are_read_again(plain) -> None:
    first = await plain.ended(await plain.ask())
    plain.world.records.write(lambda db: db.execute("UPDATE blob SET state = 1"))
    plain.commit({**PAGES, "index.html": b"two"})
    second = await plain.ended(await plain.ask())
    assert (first.status, second.status) == (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED)
    assert plain.paths(second) == [b"css", b"css/a.css", b"index.html"]


async def test_slot_builds_what_is_not_plain(plain) -> None:
    plain.commit({**PAGES, "managed.toml": b"[build]\ncommand = 'true'\noutput = '.'\n"})
    job_id = await plain.ask()
    lease = await plain.world.builds.lease("slot-0", SOON_S, toolchain=MACHINE)
    assert lease.job_id == job_id


async def test_plain_commit_waits_until_a_slot_said_what_it_would_build_with(
    tmp_path: Path, commit
) -> None:
    world = World.open(tmp_path, packs_plain=True)
    site = Site(world, await world.site(), commit)
    site.commit(PAGES)
    job_id = await site.ask()
    assert world.jobs.get(job_id).status is JobStatus.QUEUED
    await asyncio.sleep(0.002)
    waited_until = rfc3339(now_ms())
    assert await world.builds.lease("slot-0", 0, toolchain=MACHINE) is None
    job = await site.ended(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert waited_until <= site.provenance(job)["runDetails"]["metadata"]["startedOn"]
    world.records.close()


async def test_many_plain_commits_are_all_packed(plain) -> None:
    job_ids = []
    for _ in range(6):
        plain.commit({"index.html": secrets.token_bytes(8)})
        job_ids.append(await plain.ask(deploy=True))
    ended = [await plain.ended(job_id) for job_id in job_ids]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    assert len({job.result["artifact_id"] for job in ended}) == 6


async def test_two_plain_commits_are_packed_at_once_and_a_slot_helps_with_the_next(
    tmp_path: Path, commit
) -> None:
    world = World.open(tmp_path, packs_plain=True)
    site = Site(world, await world.site(), commit)
    job_ids = []
    for number in range(4):
        site.commit({"index.html": b"%d" % number})
        job_ids.append(await site.ask())
    may_write = threading.Event()
    world.records.submit(lambda _: may_write.wait(SOON_S))
    try:
        lease = await world.builds.lease("slot-0", SOON_S, toolchain=MACHINE)
        world.builds.dispatcher.stir()
        held = {running.job.id: running.slot for running in world.builds.leases}
    finally:
        may_write.set()
    assert held == dict(zip(job_ids, (CONTROL, CONTROL, "slot-0"), strict=False))
    assert lease is not None
    assert lease.job_id == job_ids[2]
    ended = [await site.ended(job_ids[number]) for number in (0, 1, 3)]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    world.records.close()


async def test_plain_commit_that_cannot_be_packed_fails_with_the_reason(plain) -> None:
    plain.commit({"index.html": b"one", "new\nline": b"x"})
    job = await plain.ended(await plain.ask())
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.output_invalid")
    assert plain.log(job.id)[:2] == ["queued", "running"]


async def test_canceled_plain_build_deploys_nothing(plain) -> None:
    job_id = await plain.ask(deploy=True)
    await plain.world.pipeline.cancel_job(job_id)
    job = await plain.ended(job_id)
    production = plain.world.environment(plain.site)
    rolls = deployments.unfinished(plain.world.records.reader(), production.id)
    if job.status is JobStatus.CANCELED:  # it may have been over before
        assert rolls == []
    else:
        assert [roll.id for roll in rolls] == [job.result["deployment_id"]]


def after_a_crash(plain, job_id, *, attempts) -> World:
    """A server that starts after one that ended while it packed this build."""
    plain.world.records.write(
        lambda db: db.execute(
            "UPDATE job SET status = 'running', owner = ?, attempts = ?, result = NULL,"
            " finished_at = NULL WHERE id = ?",
            (CONTROL, attempts, job_id),
        )
    )
    plain.world.records.close()
    plain.world = World.open(plain.world.root, packs_plain=True)
    plain.world.builds.recover()
    return plain.world


async def test_packing_that_a_restart_broke_off_is_done_again_and_is_no_loss(plain) -> None:
    job_id = await plain.ask()
    await plain.ended(job_id)
    world = after_a_crash(plain, job_id, attempts=1)
    assert await world.builds.lease("slot-0", 0, toolchain=MACHINE) is None
    job = await plain.ended(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job_rows.get(world.records.reader(), job_id).losses == 0
    world.records.close()


async def test_what_control_did_not_survive_twice_is_for_a_slot(plain) -> None:
    job_id = await plain.ask(clean=True)  # not answered by what it gave before
    await plain.ended(job_id)
    world = after_a_crash(plain, job_id, attempts=2)
    lease = await world.builds.lease("slot-0", SOON_S, toolchain=MACHINE)
    assert lease is not None
    assert lease.job_id == job_id


async def test_plain_build_that_cannot_begin_is_queued_again(tmp_path: Path, commit) -> None:
    world = World.open(tmp_path, packs_plain=True)
    site = Site(world, await world.site(), commit)
    site.commit(PAGES)
    job_id = await site.ask()
    failures = [StorageError("the disk is slow")]

    def clock() -> int:
        if failures:
            raise failures.pop()
        return now_ms()

    world.jobs.clock = clock
    lease = await world.builds.lease("slot-0", SOON_S, toolchain=MACHINE)
    assert lease is not None
    assert lease.job_id == job_id
    assert failures == []
    await world.builds.started(job_id)
    world.records.close()


async def test_no_slot_has_the_name_of_control(plain) -> None:
    with pytest.raises(ValueError, match="control"):
        await plain.world.builds.lease(CONTROL, 0, toolchain=MACHINE)
