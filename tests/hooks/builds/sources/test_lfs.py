"""Pointers of Git LFS: known, told by name, and taken when that is wished."""

from __future__ import annotations

import msgspec
import pytest

from hooks.builds.errors import BuildFailedError
from hooks.builds.sources.lfs import POINTER_BYTES_MAX, is_pointer, pointers_found
from hooks.builds.wire import Finish
from storage.model import ActorRef, JobStatus
from tests.hooks.builds.sources.test_tree import unpacked_to

OID = b"4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
VERSION = b"version https://git-lfs.github.com/spec/v1\n"
POINTER = VERSION + b"oid sha256:" + OID + b"\nsize 12345\n"
EXTENSION = b"ext-0-x %b\n" % (b"y" * (POINTER_BYTES_MAX - len(POINTER) - len(b"ext-0-x \n")))
LONGEST = VERSION + EXTENSION + POINTER.removeprefix(VERSION)


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        (POINTER, True),
        (POINTER.rstrip(), True),
        (POINTER.replace(b"git-lfs", b"hawser"), True),
        (VERSION + b"ext-0-foo sha256:" + OID + b"\n" + POINTER.removeprefix(VERSION), True),
        (LONGEST, True),
        (LONGEST.replace(b"y", b"yy", 1), False),
        (b"", False),
        (VERSION, False),
        (POINTER.removeprefix(VERSION), False),
        (POINTER + b"more\n", False),
        (b"# " + POINTER, False),
        (POINTER.replace(b"sha256", b"md5"), False),
        (POINTER.replace(b"12345", b"many"), False),
        (POINTER.replace(b"\nsize", b"\n" + b"ext-0-x y\n" * 100 + b"size"), False),
        (VERSION + b"ext-0-x y\n" * 200 + POINTER.removeprefix(VERSION), False),
    ],
)
def test_pointer_is_told_from_other_files(content, is_one):
    assert is_pointer(content) == is_one


def test_failure_names_the_first_files_and_counts_the_rest():
    assert "1 file is a pointer of Git LFS" in str(pointers_found(["a.psd"]))
    message = str(pointers_found([f"{n}.psd" for n in range(1200)]))
    assert message.startswith("1,200 files are pointers of Git LFS")
    assert "8.psd, 9.psd and 1,190 more." in message
    for advice in ("git lfs migrate export", '[build] lfs = "ignore"'):
        assert advice in message


def test_pointers_in_a_builds_source_are_found_while_it_is_unpacked(tmp_path, packed):
    files = {"a": b"a", "video/intro.mp4": POINTER, "big": b"x" * 5000}
    with pytest.raises(BuildFailedError, match=r"the commit: video/intro\.mp4\.") as caught:
        unpacked_to(tmp_path / "app", packed(files))
    assert caught.value.code == "build.lfs_pointers"
    size = unpacked_to(tmp_path / "b", packed(files), ignores_lfs=True)
    assert size.files == 3
    assert (tmp_path / "b/video/intro.mp4").read_bytes() == POINTER


@pytest.mark.parametrize(
    ("name", "options", "status"),
    [
        ("intro.mp4", {}, JobStatus.FAILED),
        ("intro.mp4", {"ignores_lfs": True}, JobStatus.SUCCEEDED),
        ("img/video/intro.mp4", {}, JobStatus.FAILED),
        (".cache/intro.mp4", {}, JobStatus.SUCCEEDED),  # shown to nobody
    ],
)
async def test_site_without_steps_is_looked_through_too(world, commit, name, options, status):
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"<p>", name: POINTER})
    actor = ActorRef("api_key", "key_1", "ci")
    made = await world.pipeline.start_build(world.environment(site), actor, ref="main")
    lease = await world.builds.lease("slot-0", 5)
    done = Finish("slot-0", "succeeded", profile="static", output="source", **options)
    await world.builds.finish(lease.job_id, done)
    job = world.jobs.get(made.value.id)
    assert job.status is status, job.error
    if status is JobStatus.FAILED:
        assert job.error.code == "build.lfs_pointers"
        assert name in job.error.message


async def test_pointer_that_a_build_took_as_it_is_is_refused_where_it_is_not_wanted(world, commit):
    """What one build knows of a folder, the next one goes by."""
    site = await world.site()
    actor = ActorRef("api_key", "key_1", "ci")
    files = {"public/index.html": b"<p>", "public/img/intro.mp4": LONGEST}
    for number, ignores_lfs in enumerate((True, True, False)):
        commit(world.repositories.path(site.id), {**files, "number": b"%d" % number})
        made = await world.pipeline.start_build(
            world.environment(site), actor, ref="main", clean=True
        )
        lease = await world.builds.lease("slot-0", 5)
        done = Finish("slot-0", "succeeded", profile="static", output="source", folder="public")
        done = msgspec.structs.replace(done, ignores_lfs=ignores_lfs)
        await world.builds.finish(lease.job_id, done)
        job = world.jobs.get(made.value.id)
        assert (job.error is None) == ignores_lfs, job.error
    assert job.error.code == "build.lfs_pointers"
    assert "not in the commit: img/intro.mp4." in job.error.message
