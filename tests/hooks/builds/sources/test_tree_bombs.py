"""Tree bombs: a few objects of git that have more paths than any machine could walk."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace

import pytest

from hooks.builds.control.memo import Memo
from hooks.builds.control.packing import Packer
from hooks.builds.errors import BuildFailedError, BuildOverError
from hooks.builds.sources.sources import Sources
from hooks.builds.sources.submodules import Submodules
from hooks.builds.wire import Finish, SandboxLimits
from storage.errors import TreeTooLargeError
from storage.manifest import ENTRIES_MAX
from storage.model import ActorRef, JobStatus
from storage.records import builds
from storage.trees import Visits
from tests.hooks.builds.profiles.test_plain import MACHINE, SOON_S, Site
from tests.hooks.conftest import World

ACTOR = ActorRef("api_key", "key_1", "tests")
PUBLISHED = Finish("slot-0", "succeeded", profile="static", output="source", is_public=True)
# With less than these the walks below would come to their end, and say something else.
WIDTH = 1100
LEVELS = 2
assert WIDTH**LEVELS > ENTRIES_MAX


@pytest.fixture
def bomb():
    """Commit an `index.html` beside `LEVELS` trees, of `WIDTH` times the one below; its id."""

    def run(repository, *arguments, stdin=b""):
        names = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
        environ = {**os.environ, "GIT_DIR": str(repository)} | {f"GIT_{n}": "a@b.c" for n in names}
        done = subprocess.run(
            ["git", *arguments], env=environ, input=stdin, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def tree(repository, entries):
        content = b"".join(b"%s %s\0%s" % entry for entry in entries)
        return run(repository, "hash-object", "-t", "tree", "-w", "--stdin", stdin=content)

    def make(repository, *, leaf, submodule=False, width=WIDTH, levels=LEVELS, is_beside_it=True):
        blob = bytes.fromhex(run(repository, "hash-object", "-w", "--stdin"))
        mode, oid = (b"160000", b"\x12" * 20) if submodule else (b"100644", blob)
        for _ in range(levels):
            names = (b"%s%06d" % (leaf, number) for number in range(width))
            oid = bytes.fromhex(tree(repository, [(mode, name, oid) for name in names]))
            mode, leaf = b"40000", b"d"
        top = oid.hex()
        if is_beside_it:
            top = tree(repository, [(b"100644", b"index.html", blob), (b"40000", b"z", oid)])
        commit = run(repository, "commit-tree", "-m", "b", top)
        run(repository, "update-ref", "refs/heads/main", commit)
        return commit

    return make


@pytest.fixture
async def leased(world):
    """Begin a build of what `main` is; its records, as a slot leased it."""

    async def start(site):
        await world.pipeline.start_build(world.environment(site), ACTOR, ref="main")
        lease = await world.builds.lease("slot-0", SOON_S)
        return builds.get(world.records.reader(), lease.build_id)

    return start


def is_refused(error):
    message = str(error)
    assert error.code == "build.output_too_large", message
    assert "source: there are more than 200,000 files and folders" in message
    return True


@pytest.mark.parametrize("ignores_submodules", [False, True])
async def test_source_of_a_build_is_refused_before_a_byte_of_it_is_sent(
    world, bomb, leased, ignores_submodules
) -> None:
    site = await world.site()
    bomb(world.repositories.path(site.id), leaf=b"x")
    build = await leased(site)
    with pytest.raises(BuildFailedError, check=is_refused):
        await world.builds.supplies.source(build.job_id, ".", ignores_submodules=ignores_submodules)


async def test_submodules_count_together(world, bomb, commit, leased) -> None:
    theme = await world.site("theme")
    world.readable.add(theme.id)
    half = bomb(world.repositories.path(theme.id), leaf=b"x", width=380)  # more than half of it
    for name, paths, is_too_large in (("one", ("a",), False), ("two", ("a", "b"), True)):
        listed = "".join(f'[submodule "{n}"]\n\tpath = {n}\n\turl = ../theme.git\n' for n in paths)
        site = await world.site(name)
        commit(
            world.repositories.path(site.id),
            {".gitmodules": listed.encode()},
            submodules=dict.fromkeys(paths, half),
        )
        build = await leased(site)
        asked = world.builds.supplies.source(build.job_id, ".", ignores_submodules=False)
        if is_too_large:
            with pytest.raises(BuildFailedError, check=is_refused):
                await asked
        else:
            await asked


@pytest.fixture
async def plain(tmp_path, commit):
    """A server whose control packs plain commits itself."""
    world = World.open(tmp_path, packs_plain=True)
    made = Site(world, await world.site(), commit)
    assert await world.builds.lease("slot-0", 0, toolchain=MACHINE) is None
    yield made
    world.records.close()


async def test_plain_commit_is_refused_and_the_next_one_is_packed(plain, bomb) -> None:
    bomb(plain.world.repositories.path(plain.site.id), leaf=b".x")  # shown to nobody, and walked
    job = await plain.ended(await plain.ask())
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.output_too_large")
    plain.commit({"index.html": b"one"})
    assert (await plain.ended(await plain.ask())).status is JobStatus.SUCCEEDED


async def test_plain_commit_of_submodules_that_are_hidden_is_refused(plain, bomb) -> None:
    bomb(plain.world.repositories.path(plain.site.id), leaf=b".x", submodule=True)
    job = await plain.ended(await plain.ask())
    assert job.status is JobStatus.FAILED
    assert job.error.code == "build.output_too_large"


async def test_one_tree_of_too_many_entries_is_neither_packed_nor_listed(
    world, bomb, leased
) -> None:
    site = await world.site()
    bomb(world.repositories.path(site.id), leaf=b".x", levels=1, width=ENTRIES_MAX + 1)
    build = await leased(site)
    assert len((await world.builds.supplies.folder(build.job_id, ".")).entries) == 2
    with pytest.raises(TreeTooLargeError):
        await world.builds.supplies.folder(build.job_id, "z")
    await world.builds.finish(build.job_id, PUBLISHED)
    job = world.jobs.get(build.job_id)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.output_too_large")


async def test_slot_gets_no_build_whose_root_has_too_many_entries(world, bomb) -> None:
    site = await world.site()
    flat = {"levels": 1, "width": ENTRIES_MAX + 1, "is_beside_it": False}
    bomb(world.repositories.path(site.id), leaf=b"x", **flat)
    made = await world.pipeline.start_build(world.environment(site), ACTOR, ref="main")
    assert await world.builds.lease("slot-0", SOON_S) is None
    job = world.jobs.get(made.value.id)
    assert job.status is JobStatus.FAILED
    assert is_refused(job.error)


@pytest.fixture
def small_disk(world):
    """Let no build take more than 2 MiB of the disk."""
    leases = world.builds.leases
    leases.limits = replace(leases.limits, sandbox=SandboxLimits(disk_bytes_max=2 << 20))


@pytest.mark.usefixtures("small_disk")
async def test_commit_that_fills_the_disk_of_its_build_is_refused_before_any_of_it_is_sent(
    world, commit, bomb, leased
) -> None:
    site = await world.site()
    repository = world.repositories.path(site.id)
    source = world.builds.supplies.source
    bomb(repository, leaf=b"x", levels=1, width=600)  # names take a block each
    many = await leased(site)
    with pytest.raises(BuildFailedError, match=r"2 MiB \(builders\.disk_bytes_max\)"):
        await source(many.job_id, ".", ignores_submodules=False)
    commit(repository, {"web/index.html": b"<p>", "big": bytes(3 << 20)})
    large = await leased(site)
    with pytest.raises(BuildFailedError) as refused:
        await source(large.job_id, ".", ignores_submodules=False)
    assert refused.value.code == "build.limit_exceeded"
    assert await source(large.job_id, "web", ignores_submodules=False)


def sources_of(world, **options):
    """What reads commits, and asks after each folder and file whether it is to go on."""
    submodules = Submodules(
        world.records, world.repositories, lambda *_: True, server_url="https://forge.example"
    )
    options = {"timeout_s": 900, "check_every_s": 0.0, **options}
    return Sources(world.repositories, submodules, world.jobs, **options)


async def test_build_that_is_over_is_read_no_further_and_keeps_nothing(world, commit, leased):
    site = await world.site()
    commit(
        world.repositories.path(site.id),
        {"index.html": b"<p>", "a/b/c.css": b"c", ".gitmodules": b"\n"},
    )
    build = await leased(site)
    sources = sources_of(world)
    memo = Memo(world.records, sources)
    assert memo.may_read(build)
    assert len(list(sources.files(build, PUBLISHED, {}))) == 2
    assert sources.grafts(build, ".") == {}
    await world.pipeline.cancel_job(build.job_id)
    with pytest.raises(BuildOverError):
        list(sources.files(build, PUBLISHED, {}))
    for ignores in (False, True):
        with pytest.raises(BuildOverError):
            sources.list_files(build, ".", ignores_submodules=ignores, disk_bytes_max=1 << 20)
    assert not memo.may_read(build)
    packer = Packer(
        world.jobs,
        sources,
        world.store,
        world.custody.seal,
        scratch=world.root / "tmp",
        size_bytes_max=1 << 20,
    )
    async with asyncio.timeout(SOON_S):
        await packer.keep(build, PUBLISHED)
    kept = world.records.reader().execute("SELECT count(*) FROM artifact").fetchone()
    assert kept[0] == 0


async def test_reading_a_commit_takes_no_longer_than_its_build_may(world, commit, leased) -> None:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"<p>"})
    build = await leased(site)
    with pytest.raises(BuildFailedError, match=r"longer than 0 s \(builders\.timeout_s\)") as ended:
        sources_of(world, timeout_s=0).grafts(build, ".")
    assert ended.value.code == "build.timed_out"


def test_visits_are_bounded_and_ask_now_and_then() -> None:
    asked = []
    visits = Visits(lambda: asked.append(1), check_every_s=3600)
    visits.add(ENTRIES_MAX)
    assert asked == []
    with pytest.raises(TreeTooLargeError, match="more than 200,000 files and folders"):
        visits.add(1)
