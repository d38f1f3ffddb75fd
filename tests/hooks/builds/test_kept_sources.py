"""What a slot keeps of a commit for the next build: a tree that no build has seen, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time

import pytest

from hooks.builds.kept_sources import FILES_COUNT_MIN, KeptSources, SourceKey
from hooks.builds.limits import Limits
from hooks.builds.wire import SourceHead
from tests.hooks.builds.conftest import tar_of

MANY = {f"{number % 10}/{number}": f"number {number}\n".encode() for number in range(600)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
LISTS = "find . -type f -exec sha256sum {} + | sort -k2 > /tmp/a; mkdir dist; cp /tmp/a dist"
ROOM = Limits(disk_bytes=100 << 20, disk_free_bytes=1 << 20)
KEY = SourceKey("acme", ".", ignores_submodules=False, ignores_lfs=False)


def site(command):
    return {"managed.toml": f"[build]\ncommand = '{command}'\noutput = 'dist'\n".encode()}


def trees_in(slot):
    """The trees that lie ready in a slot, whole."""
    folder = slot.scratch / "sources"
    with contextlib.suppress(FileNotFoundError):
        trees = [each for each in folder.iterdir() if each.is_dir()]
        return [each for each in trees if (each / "9" / "599").exists()]  # that comes last
    return []


async def ready(slot):
    """Wait for the tree that is kept for the next build."""
    async with asyncio.timeout(20):
        while not trees_in(slot):
            await asyncio.sleep(0.01)
    return trees_in(slot)[0]


async def test_next_build_gets_the_tree_that_was_kept_and_only_what_is_another(
    control, slot, unpacked
):
    first = await control.build({**site(LISTS), **MANY})
    assert first.bases == [None]
    await ready(slot)
    files = {**site(LISTS), **MANY, "1/1": b"another\n"}
    del files["2/2"]
    second = await control.build(files)
    assert second.bases == list(control.given_out)[:1]
    assert second.stage("source")[0].startswith("600 files, ")
    assert second.stage("source")[0].endswith("; 1 of them fetched, the others were here")
    await slot_is_like_new(control, files, second, unpacked)


async def slot_is_like_new(control, files, job, unpacked):
    """Hold what a build found against what one finds to which the commit came whole."""
    whole = await control.build(files, clean=True)
    assert whole.bases == [None]
    assert unpacked(job.output) == unpacked(whole.output)


async def test_build_sees_one_time_of_all_files_whether_its_tree_was_kept_or_came_whole(
    control, slot, unpacked
):
    """Tools that compare times decide the same then: here make, of a target that is committed."""
    step = (
        b"find . -printf '%T@\\n' | sort | uniq -c | sed 's/ [0-9.]*$//' > /tmp/times\n"
        b"make > /tmp/made\n"
        b"mkdir dist\n"
        b"cp /tmp/times /tmp/made dist\n"
    )
    same = {**site("sh step"), "step": step}
    same |= MANY | {"Makefile": b"target: source\n\techo made again\n", "target": b"made\n"}
    same |= {"link": "target", "5/deep/er/still": b"", "5/deep/er/gone": b"", "6/deep/gone": b""}
    await control.build({**same, "source": b"first\n"})
    await ready(slot)
    files = {**same, "source": b"second\n", "link": "source", "7/new/er": b"", "8/1": "../link"}
    for gone in ("5/deep/er/gone", "6/deep/gone", "8/8"):
        del files[gone]
    kept = await control.build(files)
    assert kept.bases == list(control.given_out)[:1]
    found = unpacked(kept.output)
    folders = 1 + 10 + len(["5/deep", "5/deep/er", "7/new"])
    assert found["times"].split() == [str(len(files) + folders).encode()]
    assert b"up to date" in found["made"]
    await slot_is_like_new(control, files, kept, unpacked)


async def test_files_of_a_kept_tree_that_no_step_touched_are_not_sent_back(control, slot):
    settings = b"[build]\ncommand = 'echo more >> 1/1; touch 2/2'\noutput = '.'\n"
    await control.build({"managed.toml": settings, **MANY})
    await ready(slot)
    job = await control.build({"managed.toml": settings, **MANY, "new": b"new\n"})
    assert job.bases == list(control.given_out)[:1]
    touched = {"1/1", "2/2", "managed.toml"}
    assert set(job.outcome["unchanged"]["paths"]) == {*MANY, "new"} - touched


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "another"},
        {"clean": True},
    ],
)
async def test_what_is_kept_of_a_site_is_for_its_own_builds_and_no_clean_ones(
    control, slot, changes
):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    job = await control.build({**site(LISTS), **MANY}, **changes)
    assert job.outcome["status"] == "succeeded"
    assert job.bases == [None]


async def test_pointers_that_were_taken_as_they_are_are_not_kept_for_who_refuses_them(
    control, slot
):
    takes = {"managed.toml": site(LISTS)["managed.toml"] + b"lfs = 'ignore'\n"}
    await control.build({**takes, **MANY, "film": POINTER})
    await ready(slot)
    job = await control.build({**site(LISTS), **MANY, "film": POINTER})
    assert job.outcome["error"]["code"] == "build.lfs_pointers"


async def test_difference_that_breaks_off_is_fetched_whole(control, slot, unpacked):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    control.breaking = {"source": True}
    files = {**site(LISTS), **MANY, **{f"new/{n}": bytes(n << 10) for n in range(9)}}
    job = await control.build(files)
    assert job.bases == [next(iter(control.given_out)), None]
    await slot_is_like_new(control, files, job, unpacked)


async def test_tree_that_is_not_what_it_was_is_not_used(control, slot, unpacked):
    await control.build({**site(LISTS), **MANY})
    kept = await ready(slot)
    (kept / "2" / "2").unlink()
    files = {**site(LISTS), **MANY}
    del files["2/2"]
    job = await control.build(files)
    assert job.bases == [next(iter(control.given_out)), None]
    await slot_is_like_new(control, files, job, unpacked)


async def test_tree_that_is_gone_is_not_missed(control, slot, unpacked):
    await control.build({**site(LISTS), **MANY})
    shutil.rmtree(await ready(slot))
    files = {**site(LISTS), **MANY}
    job = await control.build(files)
    assert job.bases == [None]
    await slot_is_like_new(control, files, job, unpacked)


async def test_source_that_cannot_be_kept_fails_no_build(control, slot):
    await control.build(site(LISTS))  # it has begun, and emptied its folder
    (slot.scratch / "sources").touch()
    job = await control.build({**site(LISTS), **MANY})
    assert job.outcome["status"] == "succeeded"


async def test_tree_that_is_of_no_use_is_removed_before_the_steps(control, slot, gone):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    control.sends_whole = True
    job = control.queue({**site("echo begun; sleep 4733"), **MANY})
    await job.said("begun")
    assert job.bases == list(control.given_out)[:1]
    [app] = slot.scratch.glob("*/app")
    assert not (app.parent / "kept").exists()
    job.canceled.set()
    await asyncio.to_thread(gone, "4733")


async def test_source_is_let_go_when_the_site_s_commits_are_none_to_be_kept(control, slot):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    control.sends_whole = True
    job = await control.build(site(LISTS))
    assert job.bases == list(control.given_out)[:1]
    await slot.cleaned()


FULL_BYTES = 3_000_000  # of the disk; the kept tree takes some 2,500,000


async def test_what_was_kept_counts_to_what_a_build_may_take(control, slot):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    files = {**site(LISTS), **MANY, "new": bytes(1_000_000)}
    job = await control.build(files, limits={"disk_bytes_max": FULL_BYTES})
    assert job.bases == list(control.given_out)[:1]
    assert job.outcome["error"]["code"] == "build.limit_exceeded"
    assert job.stage("build") == []


async def test_what_goes_counts_no_more_and_folders_that_were_there_not_again(control, slot):
    many = {f"{number // 2}/{number}": b"" for number in range(FILES_COUNT_MIN)}
    most = 4096 * (FILES_COUNT_MIN + FILES_COUNT_MIN // 2 + 50) + 1_000_000
    await control.build({**site(LISTS), **many, "old": bytes(1_000_000)})
    async with asyncio.timeout(20):
        while not list(slot.scratch.glob("sources/*/old")):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # until the rest of it is there
    changed = {f"{number // 2}/{number}": b"another" for number in range(0, 200, 2)}
    files = {**site("mkdir dist; echo > dist/x"), **many, **changed, "new": bytes(1_000_000)}
    job = await control.build(files, limits={"disk_bytes_max": most})
    assert job.bases == list(control.given_out)[:1]
    assert job.outcome["error"] is None
    assert job.outcome["status"] == "succeeded"


async def test_small_commit_is_not_kept(control, slot):
    few = dict(list(MANY.items())[: FILES_COUNT_MIN - 2])
    await control.build({**site(LISTS), **few})
    await slot.cleaned()


@pytest.mark.parametrize("is_clean", [False, True])
async def test_nothing_is_kept_from_a_build_that_may_need_the_disk(control, slot, is_clean):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    job = await control.build(
        {**site(LISTS), **MANY}, limits={"disk_bytes_max": 1 << 60}, clean=is_clean
    )
    assert job.outcome["status"] == "succeeded"
    assert job.bases == [None]
    await slot.cleaned()


async def test_clean_build_gets_the_room_that_it_may_need_before_its_source_comes(control, slot):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    files = {**site(LISTS), **MANY, "film": POINTER}
    job = await control.build(files, limits={"disk_bytes_max": 1 << 60}, clean=True)
    assert job.outcome["error"]["code"] == "build.lfs_pointers"  # no more than the source came
    await slot.cleaned()


async def test_canceled_build_leaves_what_is_kept_alone(control, slot, gone):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    stuck = site("echo begun; sleep 4731")
    job = control.queue({**stuck, **MANY})
    await job.said("begun")
    job.canceled.set()
    await asyncio.to_thread(gone, "4731")
    await ready(slot)
    assert slot.leftovers == ["sources"]


async def test_slot_that_was_killed_begins_with_nothing(control, start_slot, gone):
    first = start_slot()
    await control.build({**site(LISTS), **MANY})
    await ready(first)
    job = control.queue({**site("echo begun; sleep 4732"), **MANY})
    await job.said("begun")
    assert "sources" in first.leftovers
    first.stop(signal.SIGKILL)
    await asyncio.to_thread(gone, "4732")
    second = start_slot()
    after = await control.build({**site(LISTS), **MANY})
    assert after.bases == [None]
    await ready(second)
    assert second.leftovers == ["sources"]


# -- what is kept, and for how long ---------------------------------------------------------------


@pytest.fixture
async def keep(tmp_path):
    """Keep a source of so many files; the kept sources are made with `options`."""
    opened = []

    def make(**options):
        opened.append(KeptSources(tmp_path, **{"idle_s": 0.0, **options}))
        return opened[-1]

    yield make
    for kept in opened:
        await kept.aclose()


def given(kept, tmp_path, key=KEY, count=3, limits=ROOM):
    """Give it a source."""
    files = {f"{number}": b"x" for number in range(count)}
    archive = tmp_path / "archive"
    archive.write_bytes(tar_of(files))
    kept.keep(key, archive, SourceHead(count, count, tree="ab" * 20), limits)


def trees_below(tmp_path):
    """The trees in the folder of what is kept, whole or not."""
    return [each for each in (tmp_path / "sources").iterdir() if each.is_dir()]


async def begun(kept, tmp_path):
    """Wait until something is being unpacked."""
    kept.rest()
    async with asyncio.timeout(5):
        while not trees_below(tmp_path):
            await asyncio.sleep(0)


async def given_up(tmp_path):
    """Wait until it is not any more, and nothing of it is left."""
    async with asyncio.timeout(5):
        while trees_below(tmp_path):
            await asyncio.sleep(0.01)


async def taken(kept, tmp_path, key=KEY):
    """Wait until the tree for a build is there, and take it."""
    async with asyncio.timeout(5):
        while True:
            kept.rest()
            await asyncio.sleep(0.01)
            if found := await kept.take(key, tmp_path / f"taken-{time.monotonic_ns()}", ROOM):
                return found


async def all_gone(kept, tmp_path):
    """Wait until nothing is kept, and no folder either."""
    async with asyncio.timeout(5):
        while (tmp_path / "sources").exists():
            kept.rest()
            await asyncio.sleep(0.02)


async def test_each_build_gets_a_tree_of_its_own(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path)
    first, second = [await taken(kept, tmp_path) for _ in range(2)]
    (first.path / "1").write_bytes(b"poison")
    assert (second.path / "1").read_bytes() == b"x"
    assert first.path.stat().st_ino != second.path.stat().st_ino
    assert (second.tree, second.taken_bytes) == ("ab" * 20, 3 * 4096)


async def test_what_was_not_used_for_long_goes_and_the_folder_too(keep, tmp_path):
    kept = keep(kept_s_max=0.2)
    given(kept, tmp_path)
    await taken(kept, tmp_path)
    await all_gone(kept, tmp_path)


async def test_newest_are_kept_as_far_as_they_have_room(keep, tmp_path):
    keys = [KEY._replace(site=name) for name in ("one", "two", "three")]
    kept = keep(kept_bytes_max=2 * 2 * 3 * 4097)
    for key in keys:
        given(kept, tmp_path, key)
    await taken(kept, tmp_path, keys[1])
    await taken(kept, tmp_path, keys[2])
    kept.rest()
    await asyncio.sleep(0.1)
    assert await kept.take(keys[0], tmp_path / "none", ROOM) is None


@pytest.mark.parametrize("is_clean", [False, True])
async def test_unpacking_gives_way_to_a_build_that_has_no_use_for_it_and_begins_again(
    keep, tmp_path, is_clean
):
    kept = keep()
    given(kept, tmp_path, count=20_000)
    await begun(kept, tmp_path)
    if is_clean:
        await kept.give_way(ROOM)
    else:
        assert await kept.take(KEY._replace(site="other"), tmp_path / "none", ROOM) is None
    await given_up(tmp_path)
    found = await taken(kept, tmp_path)
    assert len(list(found.path.iterdir())) == 20_000


async def test_build_waits_for_its_own_tree_and_for_no_other(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, KEY._replace(site="other"), count=5_000)
    given(kept, tmp_path, count=5_000)
    await begun(kept, tmp_path)
    found = await kept.take(KEY, tmp_path / "taken", ROOM)
    assert found is not None
    await given_up(tmp_path)


async def test_what_leaves_builds_too_little_of_the_disk_goes(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, limits=Limits(disk_bytes=1 << 60))
    await all_gone(kept, tmp_path)


async def test_archive_that_cannot_be_unpacked_takes_no_newer_one_with_it(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, count=20_000, limits=Limits(disk_bytes=40 << 20))
    await begun(kept, tmp_path)
    given(kept, tmp_path)
    found = await taken(kept, tmp_path)
    assert len(list(found.path.iterdir())) == 3


async def test_archive_that_cannot_be_unpacked_is_let_go(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path)
    [archive] = (tmp_path / "sources").iterdir()
    archive.write_bytes(archive.read_bytes()[:700])
    await all_gone(kept, tmp_path)


def test_commit_is_kept_where_it_is_large_and_not_too_large(tmp_path):
    kept = KeptSources(tmp_path)
    tree = "ab" * 20
    assert kept.wants(SourceHead(FILES_COUNT_MIN, 1 << 20, tree), ROOM)
    assert not kept.wants(SourceHead(FILES_COUNT_MIN - 1, 1 << 20, tree), ROOM)
    assert not kept.wants(SourceHead(FILES_COUNT_MIN, 1 << 40, tree), ROOM)
    assert not kept.wants(SourceHead(FILES_COUNT_MIN, 1 << 20), ROOM)
    assert not kept.wants(SourceHead(FILES_COUNT_MIN, 1, tree), Limits(disk_bytes=1 << 60))
