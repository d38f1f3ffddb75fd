"""What a slot keeps of a commit for the next build: a tree that no build has seen, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hooks.builds.sandbox.disk import shortage
from hooks.builds.sandbox.limits import Limit, Limits
from hooks.builds.sources.archive import Copying
from hooks.builds.sources.kept_sources import (
    FILES_COUNT_MIN,
    KEPT_COUNT_MAX,
    KeptSources,
    Offer,
    SourceKey,
)
from hooks.builds.wire import SourceHead
from hooks.pipes import wide_pipe
from tests.hooks.builds.conftest import tar_of
from tests.power import disk_of

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


def all_trees(slot):
    """The trees in a slot, whole or not."""
    return [each for each in (slot.scratch / "sources").glob("*") if each.is_dir()]


def files_in(tree):
    return [path for path in tree.rglob("*") if path.is_file()]


async def ready(slot):
    """Wait for the tree that is kept for the next build."""
    async with asyncio.timeout(20):
        while not trees_in(slot) or not await is_at_rest(slot):
            await asyncio.sleep(0.01)
    return trees_in(slot)[0]


async def is_at_rest(slot):
    """Say whether no thread of the slot runs, or waits for a disk or a processor: the last file of
    a tree is there before its unpacking has ended.
    """
    before = None
    for _ in range(2):
        threads = [
            path.read_text().rpartition(")")[2].split()
            for path in Path(f"/proc/{slot.process.pid}/task").glob("*/stat")
        ]
        used = [fields[11:13] for fields in threads]
        if any(fields[0] != "S" for fields in threads) or before not in (None, used):
            return False
        before = used
        await asyncio.sleep(0.05)
    return True


async def test_next_build_gets_the_tree_that_was_kept_and_only_what_is_another(
    control, slot, unpacked
):
    first = await control.build({**site(LISTS), **MANY})
    assert first.bases == [[]]
    await ready(slot)
    files = {**site(LISTS), **MANY, "1/1": b"another\n"}
    del files["2/2"]
    second = await control.build(files)
    assert second.bases == [list(control.given_out)[:1]]
    assert second.stage("source")[0].startswith("600 files, ")
    assert second.stage("source")[0].endswith("; 1 of them fetched, the others were here")
    await slot_is_like_new(control, files, second, unpacked)


async def slot_is_like_new(control, files, job, unpacked):
    """Hold what a build found against what one finds to which the commit came whole."""
    whole = await control.build(files, clean=True)
    assert whole.bases == [[]]
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
    assert kept.bases == [list(control.given_out)[:1]]
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
    assert job.bases == [list(control.given_out)[:1]]
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
    assert job.bases == [[]]


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
    assert job.bases == [list(control.given_out)[:1], []]
    await slot_is_like_new(control, files, job, unpacked)


async def test_tree_that_is_not_what_it_was_is_not_used(control, slot, unpacked):
    await control.build({**site(LISTS), **MANY})
    kept = await ready(slot)
    (kept / "2" / "2").unlink()
    files = {**site(LISTS), **MANY}
    del files["2/2"]
    job = await control.build(files)
    assert job.bases == [list(control.given_out)[:1], []]
    await slot_is_like_new(control, files, job, unpacked)


async def test_tree_that_is_gone_is_not_missed(control, slot, unpacked):
    await control.build({**site(LISTS), **MANY})
    shutil.rmtree(await ready(slot))
    files = {**site(LISTS), **MANY}
    job = await control.build(files)
    assert job.bases == [[]]
    await slot_is_like_new(control, files, job, unpacked)


async def test_source_that_cannot_be_kept_fails_no_build(control, slot):
    await control.build(site(LISTS))  # it has begun, and emptied its folder
    (slot.scratch / "sources").touch()
    job = await control.build({**site(LISTS), **MANY})
    assert job.outcome["status"] == "succeeded"


@pytest.mark.parametrize("is_small", [True, False])
async def test_tree_that_is_of_no_use_to_a_build_is_there_for_the_next_one(
    control, slot, unpacked, is_small
):
    await control.build({**site(LISTS), **MANY})
    tree = await ready(slot)
    control.sends_whole = True
    other = {} if is_small else {f"other/{number}": b"" for number in range(FILES_COUNT_MIN)}
    job = await control.build({**site(LISTS), **other})
    assert job.bases == [list(control.given_out)[:1]]
    assert lists({**site(LISTS), **other}) == unpacked(job.output)["a"].decode()
    assert trees_in(slot) == [tree]


async def test_two_branches_of_a_site_each_get_the_tree_of_their_own(control, slot, unpacked):
    """What they have in common is too little: control would send each of them whole."""
    main = {**site(LISTS), **MANY}
    other = {**site(LISTS), **{f"other/{number}": b"x" for number in range(600)}}

    async def rested(count):
        async with asyncio.timeout(20):
            while [len(files_in(tree)) for tree in all_trees(slot)] != [len(main)] * count:
                await asyncio.sleep(0.01)

    await control.build(main)
    await rested(1)
    control.sends_whole = True
    await control.build(other)
    control.sends_whole = False
    for number in range(2):
        await rested(2)
        for files in (main, other):
            changed = {**files, "new": b"%d" % number}
            job = await control.build(changed)
            said = job.stage("source")[0]
            assert said.endswith("; 1 of them fetched, the others were here")
            assert lists(changed) == unpacked(job.output)["a"].decode()


def lists(files):
    """What `LISTS` writes."""
    sums = [f"{hashlib.sha256(files[name]).hexdigest()}  ./{name}\n" for name in files]
    return "".join(sorted(sums, key=lambda line: line.split()[1]))


FULL_BYTES = 3_000_000  # of the disk; the kept tree takes some 2,500,000


async def test_what_was_kept_counts_to_what_a_build_may_take(control, slot):
    await control.build({**site(LISTS), **MANY})
    await ready(slot)
    files = {**site(LISTS), **MANY, "new": bytes(1_000_000)}
    job = await control.build(files, limits={"disk_bytes_max": FULL_BYTES})
    assert job.bases == [list(control.given_out)[:1]]
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
    assert job.bases == [list(control.given_out)[:1]]
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
    assert job.bases == [[]]
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
    assert after.bases == [[]]
    await ready(second)
    assert second.leftovers == ["sources"]


async def test_slot_that_was_killed_while_it_unpacked_begins_with_nothing(
    control, start_slot, unpacked
):
    """What is whole is known to the process alone: nothing of it is looked for on the disk."""
    many = {f"{number % 100}/{number}": b"%d" % number for number in range(10_000)}
    files = {**site(LISTS), **many}
    first = start_slot()
    await control.build(files)
    async with asyncio.timeout(20):
        while not list(first.scratch.glob("sources/*/1")):  # of "0", "1", "10", "11", ...
            await asyncio.sleep(0.001)
    first.stop(signal.SIGKILL)
    [half] = (path for path in (first.scratch / "sources").iterdir() if path.is_dir())
    assert not (half / "99" / "9999").exists()
    second = start_slot()
    async with asyncio.timeout(20):
        while (first.scratch / "sources").exists():
            await asyncio.sleep(0.01)
    job = await control.build(files)
    assert job.bases == [[]]
    assert lists(files) == unpacked(job.output)["a"].decode()
    assert second.errors == ""


async def test_build_right_behind_one_that_takes_a_moment_gets_a_tree(control, slot, gone):
    job = control.queue({**site("echo begun; sleep 4734"), **MANY})
    await job.said("begun")
    await ready(slot)
    files = {**site(LISTS), **MANY}
    behind = control.queue(files)
    job.canceled.set()
    await asyncio.to_thread(gone, "4734")
    await asyncio.wait_for(behind.finished.wait(), 30)
    assert behind.bases == [list(control.given_out)[:1]]


async def test_clean_build_replaces_what_was_kept(control, slot):
    files = {**site(LISTS), **MANY}
    await control.build(files)
    kept = await ready(slot)
    (kept / "7" / "7").write_bytes(b"damaged\n")
    job = await control.build({**files, "new": b""}, clean=True)
    async with asyncio.timeout(20):
        while kept.exists():
            await asyncio.sleep(0.01)
    await ready(slot)
    after = await control.build(files)
    assert after.bases == [[list(control.given_out)[1]]]
    assert b"damaged" not in (job.output + after.output)


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


TREE = "ab" * 20


def archived(path, files):
    """An archive, as it is written while a build unpacks it."""
    tar = tar_of(files)
    reader, writer = wide_pipe()
    copying = Copying(path)

    def send():
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(tar)

    with ThreadPoolExecutor(1) as thread, os.fdopen(reader, "rb") as stream:
        thread.submit(send)
        with copying.copied(stream) as contents:
            assert contents.read() == tar
    return copying.archive


def given(kept, tmp_path, key=KEY, count=3, *, limits=ROOM, tree=TREE, tree_bytes=None):
    """Give it a source."""
    archive = archived(tmp_path / "archive", {f"{number}": b"x" for number in range(count)})
    size_bytes = count * 4096 if tree_bytes is None else tree_bytes
    kept.keep(key, archive, tree, limits, tree_bytes=size_bytes, tree_names=count)


async def moved(kept, tmp_path, key=KEY, limits=ROOM):
    """Take the first tree that is offered to a build, as that does; None without one."""
    offer = await kept.offer(key, limits)
    if not offer.trees:
        return None
    path = tmp_path / f"taken-{time.monotonic_ns()}"
    offer.trees[0].path.rename(path)
    kept.take(offer.trees[0])
    return dataclasses.replace(offer.trees[0], path=path)


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
            if found := await moved(kept, tmp_path, key):
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
    assert (second.tree, second.taken_bytes, second.taken_names) == ("ab" * 20, 3 * 4096, 3)


async def test_what_was_not_used_for_long_goes_and_the_folder_too(keep, tmp_path):
    kept = keep(kept_s_max=0.2)
    given(kept, tmp_path)
    await taken(kept, tmp_path)
    await all_gone(kept, tmp_path)


async def test_newest_are_kept_as_far_as_they_have_room(keep, tmp_path):
    keys = [KEY._replace(site=name) for name in ("one", "two", "three")]
    kept = keep(kept_bytes_max=2 * (3 * 4096 + 10240))
    for key in keys:
        given(kept, tmp_path, key)
    await taken(kept, tmp_path, keys[1])
    await taken(kept, tmp_path, keys[2])
    kept.rest()
    await asyncio.sleep(0.1)
    assert await kept.offer(keys[0], ROOM) == Offer()


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
        assert await kept.offer(KEY._replace(site="other"), ROOM) == Offer()
    await given_up(tmp_path)
    found = await taken(kept, tmp_path)
    assert len(list(found.path.iterdir())) == 20_000


async def test_nothing_is_begun_after_steps_that_were_over_soon(keep, tmp_path):
    kept = keep(idle_s=0.1)
    given(kept, tmp_path)
    kept.rest()
    kept.hold()
    await asyncio.sleep(0.5)
    assert not trees_below(tmp_path)
    await begun(kept, tmp_path)
    assert await moved(kept, tmp_path)


async def test_what_has_begun_while_steps_ran_goes_on_after_them(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, count=5_000)
    await begun(kept, tmp_path)
    kept.hold()
    assert await moved(kept, tmp_path)


async def test_build_waits_for_its_own_tree_and_for_no_other(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, KEY._replace(site="other"), count=5_000)
    given(kept, tmp_path, count=5_000)
    await begun(kept, tmp_path)
    assert await moved(kept, tmp_path) is not None
    await given_up(tmp_path)


async def forgotten(kept, tmp_path, key=KEY):
    """Let it unpack a source and then forget it, as a clean build does."""
    given(kept, tmp_path, key)
    async with asyncio.timeout(5):
        while not (await kept.offer(key, ROOM)).trees:
            kept.rest()
            await asyncio.sleep(0.01)
    kept.forget(key)
    assert await kept.offer(key, ROOM) == Offer()


async def test_what_a_clean_build_lets_go_of_is_removed_when_the_slot_rests(keep, tmp_path):
    kept = keep()
    await forgotten(kept, tmp_path)
    await asyncio.sleep(0.1)
    assert trees_below(tmp_path), "it was removed beside a build"
    await all_gone(kept, tmp_path)


async def test_what_was_let_go_of_goes_at_once_where_builds_need_the_disk(keep, tmp_path):
    kept = keep()
    await forgotten(kept, tmp_path)
    await kept.give_way(dataclasses.replace(ROOM, disk_bytes=1 << 60))
    async with asyncio.timeout(5):
        while (tmp_path / "sources").exists():
            await asyncio.sleep(0.01)


async def test_no_more_than_one_build_lets_go_of_waits_for_a_rest(keep, tmp_path):
    kept = keep()
    await forgotten(kept, tmp_path)
    kept.forget(KEY._replace(site="other"))
    async with asyncio.timeout(5):
        while (tmp_path / "sources").exists():
            await asyncio.sleep(0.01)


async def test_what_leaves_builds_too_little_of_the_disk_goes(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, limits=Limits(disk_bytes=1 << 60))
    await all_gone(kept, tmp_path)


async def test_tree_is_not_unpacked_where_it_leaves_builds_too_little_of_the_disk(keep, tmp_path):
    kept = keep(kept_bytes_max=1 << 62)
    given(kept, tmp_path, tree_bytes=1 << 60)
    made = trees_below(tmp_path)
    kept.rest()
    async with asyncio.timeout(5):
        while (tmp_path / "sources").exists():
            made += trees_below(tmp_path)
            await asyncio.sleep(0)
    assert not made


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", where]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


async def test_what_was_used_longest_ago_makes_room_for_what_was_used_last(small_disk):
    kept = KeptSources(small_disk, idle_s=0)
    older, newer, limits = KEY._replace(site="older"), KEY, Limits(disk_bytes=50 << 20)
    archive = archived(small_disk / "archive", {"large": bytes(30 << 20)})
    kept.keep(older, archive, TREE, ROOM, tree_bytes=1 << 20, tree_names=1)
    given(kept, small_disk, newer, limits=limits)
    async with contextlib.aclosing(kept):
        await begun(kept, small_disk)
        assert await moved(kept, small_disk, newer, limits)
        assert await kept.offer(older, limits) == Offer()


FEW = Limits(disk_bytes=10 << 20, disk_free_bytes=6 << 20)  # of a disk that holds few files


@pytest.fixture
def disk_of_few_files():
    """One of 64 MiB, of which bytes are never short here, and 1,792 inodes.

    A build may take some 320 of them, and 190 must stay.
    """
    options = ["-N", "1792"]
    with disk_of("ext4", lambda _: None, size_bytes=64 << 20, options=options) as disk:
        yield disk.begin()


async def laid_ready(kept, key):
    """Wait until a tree of this key is there."""
    async with asyncio.timeout(20):
        while not (await kept.offer(key, Limits())).trees:
            kept.rest()
            await asyncio.sleep(0.05)


@pytest.mark.root
@pytest.mark.parametrize("is_clean", [False, True])
async def test_what_is_kept_gives_way_for_files_as_for_bytes(disk_of_few_files, is_clean):
    where, keys = disk_of_few_files, [KEY, KEY._replace(site="other")]
    async with contextlib.aclosing(KeptSources(where, idle_s=0)) as kept:
        for key in keys:
            given(kept, where, key, 700, limits=Limits())  # which ask for no room beside them
            await laid_ready(kept, key)
        assert shortage(where, FEW, new_names=300) == Limit.FILES_FREE
        assert shortage(where, FEW, new_bytes=10 << 20, new_names=100) is None
        if is_clean:
            await kept.give_way(FEW)
        else:
            assert await kept.offer(KEY._replace(site="third"), FEW) == Offer()
        async with asyncio.timeout(20):
            while (where / "sources").exists():
                await asyncio.sleep(0.01)
    assert shortage(where, FEW, new_names=300) is None


@pytest.mark.root
async def test_tree_for_which_the_disk_has_too_few_files_makes_the_oldest_go(disk_of_few_files):
    where, older = disk_of_few_files, KEY._replace(site="older")
    async with contextlib.aclosing(KeptSources(where, idle_s=0)) as kept:
        given(kept, where, older, 700, limits=Limits())
        await laid_ready(kept, older)
        assert kept.wants(SourceHead(FILES_COUNT_MIN, 1, TREE), FEW)
        assert not kept.wants(SourceHead(700, 1, TREE), FEW)
        given(kept, where, count=700, limits=FEW)
        await laid_ready(kept, KEY)
        assert (await kept.offer(older, FEW)).trees == ()
        assert (await kept.offer(KEY, FEW)).trees[0].taken_names == 700


async def test_archive_that_the_disk_does_not_take_is_none_and_takes_none_of_it(small_disk):
    (small_disk / "filler").write_bytes(bytes(60 << 20))
    path = small_disk / "archive"
    assert archived(path, {"large": bytes(6 << 20)}) is None
    assert path.stat().st_blocks == 0


def test_archive_that_cannot_be_begun_holds_up_no_build(tmp_path):
    assert archived(tmp_path / "no" / "folder", {"file": b"x"}) is None


async def test_archive_that_reads_otherwise_than_it_was_written_is_let_go(keep, tmp_path):
    """As after an error of the disk that the kernel told nobody."""
    kept = keep()
    given(kept, tmp_path)
    [archive] = (tmp_path / "sources").iterdir()
    contents = archive.read_bytes()
    assert contents[512:514] == b"x\0"  # that of the first file
    archive.write_bytes(contents[:512] + b"\0" + contents[513:])
    await all_gone(kept, tmp_path)


async def test_site_has_as_many_trees_as_may_be_kept_of_it_and_those_used_last(keep, tmp_path):
    kept = keep()
    trees = [f"{number}" * 40 for number in range(KEPT_COUNT_MAX + 1)]
    for tree in trees:
        given(kept, tmp_path, tree=tree)
    async with asyncio.timeout(5):
        while len((offer := await kept.offer(KEY, ROOM)).trees) < KEPT_COUNT_MAX:
            kept.rest()
            await asyncio.sleep(0.01)
    assert [each.tree for each in offer.trees] == trees[:0:-1]
    assert offer.is_all
    older = offer.trees[1]
    older.path.rename(tmp_path / "away")
    kept.take(older)
    offer = await kept.offer(KEY, ROOM)
    assert ([each.tree for each in offer.trees], offer.is_all) == (trees[2:], False)
    given(kept, tmp_path, tree=TREE)  # in place of the one that was used before `older`
    assert await kept.offer(KEY, ROOM) == Offer((), is_all=False)


async def test_archive_that_cannot_be_unpacked_takes_no_newer_one_with_it(keep, tmp_path):
    kept = keep()
    given(kept, tmp_path, count=20_000, limits=Limits(disk_bytes=40 << 20), tree_bytes=1)
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
