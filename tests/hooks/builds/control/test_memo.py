"""The build memo: the same inputs give the same artifact, without a builder."""

from __future__ import annotations

import asyncio
import io
import secrets
from pathlib import Path

import pytest

from hooks.builds.profiles.toolchain import toolchain_digest
from hooks.builds.wire import BuildError, CacheRequest, Finish
from storage.digest import Digest
from storage.joblog import LogLine, StateChange
from storage.model import ActorRef, JobStatus
from storage.parts import Part, PartKind
from storage.records import attestations, builds, deployments, retention
from storage.repair import Repairer
from tests.spoiling import flip

ACTOR = ActorRef("api_key", "key_1", "tests")
SOON_S = 10.0
PAGE = {"index.html": b"one"}
MACHINE = {"node": "20.1.0"}


def done(folder=".", **rest) -> Finish:
    rest = {"toolchain": MACHINE, "profile": "static", "output": "source", **rest}
    return Finish("slot-0", "succeeded", folder=folder, **rest)


FAILED = Finish("slot-0", "failed", error=BuildError("build.command_failed", "no", 1))


class Builds:
    """The builds of one site, on a server with one slot."""

    def __init__(self, world, site) -> None:
        self.world = world
        self.site = site

    async def ask(self, slug="production", *, ref="main", site=None, **options):
        """Ask for a build; the id of its job."""
        environment = self.world.environment(site or self.site, slug)
        made = await self.world.pipeline.start_build(environment, ACTOR, ref=ref, **options)
        return made.value.id

    async def preview(self, slug) -> None:
        await self.world.sites.create_environment(self.site, "preview", slug, ephemeral=True)

    async def make(self, slug="production", *, outcome=None, **options):
        """Ask for a build, and let a slot build it; its job."""
        job_id = await self.ask(slug, **options)
        lease = await self.lease()
        assert lease is not None, "it was answered without a slot"
        assert lease.job_id == job_id
        await self.world.builds.finish(job_id, outcome or done())
        return self.job(job_id)

    async def lease(self, *, toolchain=MACHINE, wait_s=SOON_S):
        return await self.world.builds.lease("slot-0", wait_s, toolchain=toolchain)

    async def answered(self, job_id):
        """Wait until the job is over, with no slot there; its job."""
        async with asyncio.timeout(SOON_S):
            while not (job := self.job(job_id)).status.is_final:
                await self.world.jobs.wait_for_change(job, SOON_S)
        return job

    async def is_for_a_slot(self, job_id) -> bool:
        """Say whether the build comes to a slot that asks."""
        lease = await self.lease()
        return lease is not None and lease.job_id == job_id

    def job(self, job_id):
        return self.world.jobs.get(job_id)

    def build(self, job):
        return builds.get(self.world.records.reader(), job.resource_id)

    def lines(self, job) -> list[str]:
        entries = [item.entry for item in self.world.jobs.joblogs.read(job.id)]
        return [entry.line for entry in entries if isinstance(entry, LogLine) and not entry.mark]

    def statement(self, job):
        """The statement of what the job's build made itself."""
        reader = self.world.records.reader()
        made_by = reader.execute(
            "SELECT envelope_sha256 FROM attestation WHERE build_id = ?", (job.resource_id,)
        ).fetchone()
        return made_by and attestations.by_envelope(reader, made_by[0])


@pytest.fixture
async def made(world, commit) -> Builds:
    """A site with a commit on main."""
    site = await world.site()
    commit(world.repositories.path(site.id), PAGE)
    return Builds(world, site)


async def test_same_inputs_give_the_artifact_at_once_on_any_environment(made) -> None:
    first = await made.make()
    again = await made.answered(await made.ask("staging", deploy=True))
    assert again.status is JobStatus.SUCCEEDED
    assert again.result["artifact_id"] == first.result["artifact_id"]
    build = made.build(again)
    assert build.cached
    assert build.profile == "static"
    assert not made.build(first).cached
    (said, taken) = made.lines(again)
    assert said.startswith(f"nothing to build: {first.resource_id}, of ")
    assert said.endswith(" had the same inputs")
    assert first.result["artifact_id"] in taken
    rolled = deployments.get(made.world.records.reader(), again.result["deployment_id"])
    assert rolled.envelope_sha256 == made.statement(first).envelope_sha256
    assert (rolled.env_id, rolled.commit) == (build.env_id, build.commit)


async def test_merge_that_changes_no_input_builds_nothing(made, commit) -> None:
    first = await made.make()
    path = made.world.repositories.path(made.site.id)
    commit(path, {**PAGE, "other.html": b"two"}, branch="topic")
    assert await made.is_for_a_slot(await made.ask(ref="topic"))
    commit(path, PAGE, branch="back")
    back = await made.answered(await made.ask("staging", ref="back"))
    assert back.result["artifact_id"] == first.result["artifact_id"]


async def test_only_the_folder_of_the_site_is_its_input(made, commit) -> None:
    path = made.world.repositories.path(made.site.id)
    files = {"managed.toml": b'[build]\nroot = "web"', "web/index.html": b"one"}
    commit(path, {**files, "README": b"one"})
    first = await made.make(outcome=done("web"))
    commit(path, {**files, "README": b"two"})
    again = await made.answered(await made.ask())
    assert again.result["artifact_id"] == first.result["artifact_id"]
    settings = b'[build]\nroot = "web"\ncommand = "make"'
    commit(path, {**files, "managed.toml": settings})
    assert await made.is_for_a_slot(await made.ask())


async def test_same_files_in_another_folder_are_built_for_themselves(made, commit) -> None:
    """Their statement names the folder."""
    path = made.world.repositories.path(made.site.id)
    commit(path, {"managed.toml": b'[build]\nroot = "a"', "a/index.html": b"x"})
    await made.make(outcome=done("a"))
    commit(path, {"managed.toml": b'[build]\nroot = "b"', "b/index.html": b"x"})
    assert await made.is_for_a_slot(await made.ask())


async def test_settings_in_the_folder_of_the_site_count_as_those_above_it_do(made, commit) -> None:
    settings = b'[build]\nfacts = ["environment"]'
    path = made.world.repositories.path(made.site.id)
    files = {"managed.toml": b'[build]\nroot = "web"', "web/index.html": b"one"}
    commit(path, {**files, "web/managed.toml": settings})
    await made.make(outcome=done("web"))
    assert await made.is_for_a_slot(await made.ask("staging"))


async def test_output_folder_is_an_input_and_folders_of_other_sites_are_none(made, commit) -> None:
    path = made.world.repositories.path(made.site.id)
    settings = b'[build]\nroot = "web"\noutput = "a"\n'
    files = {"managed.toml": settings, "web/a/index.html": b"one", "web/b/index.html": b"two"}
    commit(path, files)
    first = await made.make(outcome=done("web/a"))
    commit(path, {**files, "managed.toml": settings + b'[sites]\nother = "api"\n'})
    again = await made.answered(await made.ask())
    assert again.result["artifact_id"] == first.result["artifact_id"]
    commit(path, {**files, "managed.toml": settings.replace(b'"a"', b'"b"')})
    assert await made.is_for_a_slot(await made.ask())


async def test_other_gitd_builds_again(made) -> None:
    await made.make()
    made.world.builds._packer.memo._version = "0.0.1"
    assert await made.is_for_a_slot(await made.ask("staging"))


async def test_what_a_build_asked_to_know_is_an_input(made, commit) -> None:
    path = made.world.repositories.path(made.site.id)
    commit(path, {**PAGE, "managed.toml": b'[build]\nfacts = ["environment"]'})
    await made.make()
    assert (await made.answered(await made.ask())).status is JobStatus.SUCCEEDED
    assert await made.is_for_a_slot(await made.ask("staging"))


async def test_other_toolchain_builds_again(made) -> None:
    await made.make()
    newer = {**MACHINE, "node": "20.2.0"}
    assert await made.lease(toolchain=newer, wait_s=0) is None
    job_id = await made.ask("staging")
    assert (await made.lease(toolchain=newer)).job_id == job_id


async def test_build_that_waits_is_looked_up_anew_when_slots_build_with_something_else(
    made,
) -> None:
    first = await made.make()
    assert await made.lease(toolchain={**MACHINE, "node": "20.2.0"}, wait_s=0) is None
    job_id = await made.ask("staging")
    assert made.world.jobs.place(job_id) is not None, "nothing was built with that"
    assert await made.lease(wait_s=0) is None
    again = await made.answered(job_id)
    assert again.result["artifact_id"] == first.result["artifact_id"]


async def test_other_site_builds_for_itself(made, commit) -> None:
    await made.make()
    other = await made.world.site("other")
    commit(made.world.repositories.path(other.id), PAGE)
    assert await made.is_for_a_slot(await made.ask(site=other))


async def test_clean_build_is_built_and_found_identical(made) -> None:
    first = await made.make()
    again = await made.make(clean=True)
    assert not made.build(again).cached
    assert made.lines(again) == [
        f"reproducible: identical to what {first.resource_id}, which had the same inputs, gave"
    ]


async def test_clean_build_of_what_was_not_built_before_says_that_it_compared_nothing(
    made, commit
) -> None:
    said = ["not compared: no earlier build of the same inputs has an artifact that is kept"]
    assert made.lines(await made.make(clean=True)) == said
    commit(made.world.repositories.path(made.site.id), {"index.html": b"two"})
    assert made.lines(await made.make()) == [], "nobody asked"
    commit(made.world.repositories.path(made.site.id), {"index.html": b"three"})
    assert made.lines(await made.make(clean=True)) == said


async def test_clean_build_that_differs_names_the_files_and_counts_from_then_on(
    made, commit
) -> None:
    commit(made.world.repositories.path(made.site.id), {"a/x": b"1", "a/y": b"1", "b/y": b"2"})
    first = await made.make(outcome=done("a"))
    other = await made.make(clean=True, outcome=done("b"))
    which = f"{first.resource_id}, which had the same inputs"
    assert made.lines(other) == [
        f"not reproducible: 2 of its files differ from what {which}, gave",
        "  missing x",
        "  changed y",
    ]
    later = await made.answered(await made.ask())
    assert later.result["artifact_id"] == other.result["artifact_id"]


async def test_clean_build_beside_a_damaged_earlier_artifact_is_heard_of_and_rolled(
    made, commit
) -> None:
    commit(made.world.repositories.path(made.site.id), {"a/x": b"1", "b/y": b"2"})
    await made.make(outcome=done("a"))
    (tree,) = (path for path in (made.world.root / "store/trees").rglob("*") if path.is_file())
    content = bytearray(tree.read_bytes())
    content[20] ^= 1
    tree.chmod(0o600)
    tree.write_bytes(content)
    other = await made.make(clean=True, deploy=True, outcome=done("b"))
    assert other.status is JobStatus.SUCCEEDED
    (said,) = made.lines(other)
    assert said.startswith("not compared: ")
    last = made.world.jobs.joblogs.read(other.id)[-1].entry
    assert (type(last), last.status) == (StateChange, JobStatus.SUCCEEDED)
    environment = made.world.environment(made.site)
    assert await made.world.told(environment.id, other.result["deployment_id"])


async def test_artifact_that_expired_or_went_is_built_again(made) -> None:
    first = await made.make()
    artifact_id = first.result["artifact_id"]
    made.world.records.write(lambda db: retention.expire(db, [artifact_id], 1))
    second = await made.make()
    assert second.result["artifact_id"] == artifact_id
    made.world.records.write(lambda db: retention.drop(db, artifact_id, 1))
    assert await made.is_for_a_slot(await made.ask())


async def test_artifact_that_is_damaged_is_built_again(made) -> None:
    first = await made.make()
    part = Part(PartKind.BLOB, Digest.of(PAGE["index.html"]).hex())
    flip(Path(made.world.store.layout.blob(part.digest, executable=False)))
    (found,) = Repairer(made.world.store, made.world.records).condemn([part])
    assert found.part == part
    again = await made.make()
    assert again.result["artifact_id"] == first.result["artifact_id"]
    assert (await made.answered(await made.ask())).status is JobStatus.SUCCEEDED  # it is whole now


async def test_artifact_whose_statement_proves_nothing_is_built_again(made) -> None:
    first = await made.make()
    key_id = made.statement(first).key_id
    made.world.records.write(lambda db: attestations.revoke(db, [key_id]))
    assert await made.is_for_a_slot(await made.ask())


async def test_statement_that_was_signed_again_is_the_one_that_counts(made) -> None:
    first = await made.make()
    old, new = made.statement(first).envelope_sha256, secrets.token_hex(32)
    made.world.records.write(
        lambda db: attestations.replace(db, old, new_sha256=new, key_id="k", signature="s")
    )
    again = await made.answered(await made.ask("staging", deploy=True))
    rolled = deployments.get(made.world.records.reader(), again.result["deployment_id"])
    assert rolled.envelope_sha256 == new


async def test_failed_build_is_remembered_for_nothing(made) -> None:
    assert (await made.make(outcome=FAILED)).status is JobStatus.FAILED
    assert await made.is_for_a_slot(await made.ask())


async def test_who_waited_for_a_build_of_the_same_gets_its_artifact(made) -> None:
    first, second = await made.ask("production"), await made.ask("staging")
    assert await made.is_for_a_slot(first)
    assert made.world.jobs.place(second).behind == made.job(first).resource_id
    await made.world.builds.finish(first, done())
    answered = await made.answered(second)
    assert answered.result["artifact_id"] == made.job(first).result["artifact_id"]


async def test_who_waited_for_a_build_that_failed_builds(made) -> None:
    first, second = await made.ask("production"), await made.ask("staging")
    assert await made.is_for_a_slot(first)
    await made.world.builds.finish(first, FAILED)
    assert await made.is_for_a_slot(second)


async def test_builds_that_wait_for_a_slot_at_a_restart_are_answered_after_it(made) -> None:
    await made.make()
    again = made.world.reopen()
    later = Builds(again, made.site)
    job_id = await later.ask("staging")
    again.builds.recover()
    assert later.job(job_id).status is JobStatus.QUEUED
    assert await later.lease(wait_s=0) is None
    assert (await later.answered(job_id)).status is JobStatus.SUCCEEDED
    again.records.close()


async def test_build_that_is_canceled_before_the_answer_stays_canceled(made) -> None:
    await made.make()
    await made.world.builds.close()  # it answers nothing by itself any more
    job_id = await made.ask("staging")
    build = made.build(made.job(job_id))
    made.world.records.write(
        lambda db: made.world.jobs.changes_in(db).cancel(job_id)  # behind the runner's back
    )
    assert await made.world.builds._packer.reuse(build, toolchain_digest(MACHINE))
    assert made.job(job_id).status is JobStatus.CANCELED


async def test_submodule_that_the_actor_may_not_read_is_no_inheritance(made, commit) -> None:
    theme = await made.world.site("theme")
    pinned = commit(made.world.repositories.path(theme.id), {"a.css": b"body{}"})
    modules = b'[submodule "t"]\n\tpath = theme\n\turl = ../theme.git\n'
    path = made.world.repositories.path(made.site.id)
    commit(path, {**PAGE, ".gitmodules": modules}, submodules={"theme": pinned})
    made.world.readable.add(theme.id)
    first = await made.make()
    again = await made.answered(await made.ask("staging"))
    assert again.result["artifact_id"] == first.result["artifact_id"]
    made.world.readable.discard(theme.id)
    assert await made.is_for_a_slot(await made.ask("staging"))


async def test_addresses_of_submodules_are_an_input(made, commit) -> None:
    """They stand above the folder of a site; without one the build fails, and says so."""
    theme = await made.world.site("theme")
    made.world.readable.add(theme.id)
    pinned = commit(made.world.repositories.path(theme.id), {"a.css": b"body{}"})
    modules = b'[submodule "t"]\n\tpath = web/theme\n\turl = ../theme.git\n'
    path = made.world.repositories.path(made.site.id)
    files = {"managed.toml": b'[build]\nroot = "web"', "web/index.html": b"one"}
    commit(path, {**files, ".gitmodules": modules}, submodules={"web/theme": pinned})
    assert (await made.make(outcome=done("web"))).status is JobStatus.SUCCEEDED
    commit(path, files, submodules={"web/theme": pinned})
    assert await made.is_for_a_slot(await made.ask("staging"))


WANTED = CacheRequest("static", {"package-lock.json": "sha256:1"})
LEFT = "home/.cache/a"


class Cached:
    """Builds of the site that begin with a cache, which stands in their output, and leave one."""

    def __init__(self, made: Builds, packed, unpacked) -> None:
        self.made = made
        self.builds = made.world.builds
        self._packed = packed
        self._unpacked = unpacked

    async def make(self, slug, *, leaves=b""):
        """Ask for a build, and let a slot build it; its job."""
        job_id = await self.begin(slug)
        began_with = await self.fetch(job_id)
        if leaves:
            tar = self.made.world.root / "cache.tar"
            tar.write_bytes(self._packed({LEFT: leaves}))
            assert (await self.builds.supplies.keep_cache(job_id, WANTED, tar)).digest
        return await self.finish(job_id, began_with)

    async def begin(self, slug):
        if slug not in ("production", "staging"):
            await self.made.preview(slug)
        job_id = await self.made.ask(slug)
        assert await self.made.is_for_a_slot(job_id)
        return job_id

    async def fetch(self, job_id) -> bytes:
        found = await self.builds.supplies.find_cache(job_id, WANTED)
        if found.digest is None:
            return b"nothing"
        out = io.BytesIO()
        self.builds.supplies.cache(job_id, found.digest)(out)
        return self._unpacked(out.getvalue())[LEFT]

    async def finish(self, job_id, began_with):
        tar = self._packed({"index.html": b"began with " + began_with})
        self.builds.output_path(job_id).write_bytes(tar)
        await self.builds.finish(job_id, done(output="tar"))
        return self.made.job(job_id)


@pytest.fixture
def cached(made, packed, unpacked) -> Cached:
    return Cached(made, packed, unpacked)


async def test_what_began_with_the_cache_of_a_preview_reaches_previews_alone(
    made, cached, commit
) -> None:
    await cached.make("evil", leaves=b"evil")
    path = made.world.repositories.path(made.site.id)
    commit(path, {"index.html": b"innocent"})
    first = await cached.make("topic")
    await made.preview("other")
    other = await made.answered(await made.ask("other"))
    assert other.result["artifact_id"] == first.result["artifact_id"]
    merged = await cached.make("production")
    assert merged.result["artifact_id"] != first.result["artifact_id"]
    for slug in ("staging", "other"):  # that is everybody's
        again = await made.answered(await made.ask(slug))
        assert again.result["artifact_id"] == merged.result["artifact_id"]


async def test_merge_of_what_began_with_productions_cache_builds_nothing(
    made, cached, commit
) -> None:
    await cached.make("evil", leaves=b"evil")
    path = made.world.repositories.path(made.site.id)
    commit(path, {"index.html": b"two"})
    await cached.make("production", leaves=b"good")
    commit(path, {"index.html": b"three"})
    first = await cached.make("topic")
    merged = await made.answered(await made.ask("production"))
    assert merged.result["artifact_id"] == first.result["artifact_id"]


async def test_what_a_preview_began_with_before_a_restart_is_nobodys_guess(
    made, cached, packed, unpacked
) -> None:
    job_id = await cached.begin("topic")
    async with asyncio.timeout(SOON_S):
        while (job := made.job(job_id)).status is not JobStatus.RUNNING:
            await made.world.jobs.wait_for_change(job, SOON_S)
    again = made.world.reopen()
    again.builds.recover()
    later = Builds(again, made.site)
    job = await Cached(later, packed, unpacked).finish(job_id, b"what nobody knows")
    assert job.status is JobStatus.SUCCEEDED
    assert await later.is_for_a_slot(await later.ask("production"))
    again.records.close()


DECLARES = {**PAGE, "managed.toml": b'[build]\ncommand = "make"\nvariables = ["TOKEN"]'}


class Given:
    """The variable that the builds of a site declare."""

    def __init__(self, made: Builds) -> None:
        self.made = made

    async def set(self, value: str, slug: str | None = None) -> None:
        world, site = self.made.world, self.made.site
        where = world.environment(site, slug) if slug is not None else None
        await world.variables.put(site, where, "TOKEN", value, is_secret=True)

    async def make(self, slug="production", *, asks=("TOKEN",), changes_to=None, **options):
        """As `Builds.make`; the slot asks for what is declared before it builds."""
        job_id = await self.made.ask(slug, **options)
        lease = await self.made.lease()
        assert lease is not None, "it was answered without a slot"
        if asks:
            self.made.world.builds.supplies.variables(job_id, asks)
        if changes_to is not None:
            await self.set(changes_to)
        await self.made.world.builds.finish(job_id, done())
        return self.made.job(job_id)


@pytest.fixture
def given(made, commit) -> Given:
    commit(made.world.repositories.path(made.site.id), DECLARES)
    return Given(made)


async def test_what_a_build_was_given_is_an_input(made, given) -> None:
    await given.set("one long secret")
    first = await given.make()
    again = await made.answered(await made.ask("staging"))
    assert again.result["artifact_id"] == first.result["artifact_id"]
    await given.set("another secret", "staging")
    assert made.build(await given.make("staging")).cached is False
    await given.set("another secret")
    assert (await made.answered(await made.ask())).status is JobStatus.SUCCEEDED
    await given.set("one long secret")
    assert (await made.answered(await made.ask())).status is JobStatus.SUCCEEDED


async def test_value_that_changed_during_a_build_is_not_taken_for_its_input(made, given) -> None:
    await given.set("one long secret")
    await given.make(changes_to="another secret")
    assert await made.is_for_a_slot(await made.ask("staging"))
    await made.world.builds.finish((await made.ask("staging")), FAILED)
    await given.set("one long secret")
    assert (await made.answered(await made.ask("staging"))).status is JobStatus.SUCCEEDED


async def test_build_that_was_given_two_values_is_not_remembered_for_either(made, given) -> None:
    """A slot asks again when it did not hear the answer."""
    values = ("one long secret", "another secret")
    job_id = await made.ask()
    assert await made.is_for_a_slot(job_id)
    for value in values:
        await given.set(value)
        made.world.builds.supplies.variables(job_id, ["TOKEN"])
    await made.world.builds.finish(job_id, done())
    for value in values:
        await given.set(value)
        assert not made.build(await given.make("staging", asks=())).cached


async def test_value_that_changed_while_a_build_waited_is_what_counts(made, given) -> None:
    await given.set("one long secret")
    await given.make()
    await made.world.builds.close()  # it answers nothing by itself any more
    job_id = await made.ask("staging")
    build = made.build(made.job(job_id))
    await given.set("another secret")
    assert not await made.world.builds._packer.reuse(build, toolchain_digest(MACHINE))


async def test_build_whose_values_nobody_knows_is_not_remembered(made, given) -> None:
    await given.set("one long secret")
    await given.make(asks=())
    assert await made.is_for_a_slot(await made.ask("staging"))


async def test_values_show_in_no_record_of_what_is_remembered(made, given) -> None:
    await given.set("canary-90f1ab")
    await given.make()
    made.world.records.close()
    for path in made.world.root.glob("gitd.db*"):
        assert b"canary-90f1ab" not in path.read_bytes()
