"""What a fetch is sent: never less than what the client lacks, held against git's own walk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from storage.git.errors import PackOutgrownError
from storage.git.object_filter import parse_filter
from storage.git.pack_builder import PackTask, build_pack
from storage.git.pack_links import read_links
from storage.git.selection import select_objects

Made = Any
FILE, FOLDER = b"100644", b"40000"


def sent(made: Made, want: bytes, *haves: bytes, filter_spec: str | None = None) -> set[bytes]:
    found = select_objects(
        made.repository.objects,
        wants=[want],
        haves=haves,
        object_filter=parse_filter(filter_spec) if filter_spec else None,
    )
    assert len(set(found.oids)) == len(found.oids)
    return set(found.oids)


def test_a_clock_that_went_back_hides_nothing(made: Made) -> None:
    """A revert, and merges that let its commits be seen before their parents."""
    base = (FILE, b"base", made.blob(b"base"))
    common = made.blob(b"in both trees, and new")
    one, two = (
        made.tree(base, (FILE, b"e", common), (FILE, b"f", made.blob(text)))
        for text in (b"one", b"two")
    )
    had = made.commit(made.tree(base))
    first = made.commit(one, had, time=99)
    second = made.commit(two, first, time=98)
    revert = made.commit(one, second, time=97)
    sides = made.commit(one, first, time=100), made.commit(two, second, time=100)
    tip = made.commit(one, *sides, revert, time=101)
    assert not made.push(tip).broken
    assert sent(made, tip, had) == made.reached(tip, without=[had])


def test_a_long_history_is_sent_from_anywhere_in_it(made: Made) -> None:
    """More trees than are at hand at a time, one of them larger than any that is."""
    many = [(FILE, b"f%04d" % number, made.blob(b"x")) for number in range(1_100)]
    tips = [made.commit(made.tree(*many))]
    for number in range(100):
        folder = made.tree((FILE, b"n", made.blob(b"%d" % number)))
        tips.append(made.commit(made.tree(*many, (FOLDER, b"g", folder)), tips[-1], time=number))
        many = many[: 1_100 - number]
    assert not made.push(tips[-1]).broken
    for have in tips[0], tips[20], tips[99]:
        assert sent(made, tips[-1], have) == made.reached(tips[-1], without=[have])


# Of each commit: its parents (how far back), its time, and which of few contents its files have.
HISTORIES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 4), max_size=3, unique=True),
        st.integers(0, 6),
        st.tuples(st.integers(0, 3), st.integers(0, 2)),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, had=st.integers(0, 13))
def test_whatever_the_clocks_say_all_that_lacks_is_sent(
    make: Callable[[str], Made], history: list[Any], had: int
) -> None:
    made = make(os.urandom(6).hex())
    commits: list[bytes] = []
    for number, (backs, time, (one, two)) in enumerate(history):
        folder = made.tree((FILE, b"x", made.blob(b"%d" % one)), (FILE, b"y", made.blob(b"same")))
        tree = made.tree((FOLDER, b"d", folder), (FILE, b"f", made.blob(b"f%d" % two)))
        parents = dict.fromkeys(commits[-back] for back in backs if back <= len(commits))
        commits.append(made.commit(tree, *parents, time=time, more=b"%d" % number))
    tip = made.commit(made.tree(), *commits[-3:], time=3)
    assert not made.push(*commits, tip).broken
    have = commits[had % len(commits)]
    reached, client = made.reached(tip), made.reached(have)
    found = sent(made, tip, have)
    assert reached - client <= found <= reached
    assert sent(made, tip) == reached


@pytest.mark.parametrize("mode", [b"040000", b"40755", b"1040000"])
def test_a_folder_is_one_however_its_mode_is_written(made: Made, mode: bytes) -> None:
    had = made.commit(made.tree())
    inner = made.tree((b"0100644", b"n", made.blob(b"new")), (b"100664", b"o", made.blob(b"old")))
    entries = (b"0160000", b"a", b"\1" * 20), (mode, b"d", inner), (b"777", b"e", b"\2" * 20)
    tip = made.commit(made.tree(*entries), had, time=1)
    assert not made.push(tip).broken
    assert made.reached(tip) == sent(made, tip)
    assert made.reached(tip, without=[had]) == sent(made, tip, had)
    assert len(sent(made, tip, filter_spec="tree:1")) == 4  # two commits with their trees
    assert len(sent(made, tip, filter_spec="tree:3")) == 7


def test_bitmaps_hide_no_tag_that_is_to_come_along(made: Made) -> None:
    tip = made.commit(made.tree())
    made.push(tip)
    made.point("main", tip)
    subprocess.run(["git", "repack", "-adbq"], cwd=made.path, check=True)
    tag = made.tag(tip)
    assert not made.push(tag).broken
    task = PackTask(repository=str(made.path), wants=[tip])
    assert build_pack(task, made.repository).path is not None
    with_tag = PackTask(repository=str(made.path), wants=[tip], tags=[(tag, tip)])
    assert build_pack(with_tag, made.repository).object_count == 3


@pytest.mark.parametrize("wants_tag", [False, True])
def test_a_tag_that_came_along_is_no_root_that_was_wanted(made: Made, *, wants_tag: bool) -> None:
    tip = made.commit(made.tree())
    tag = made.tag(tip)
    made.push(tag)
    for record in (made.path / "objects/info/gitd-links").iterdir():
        record.unlink()
    wants = [tip, tag] if wants_tag else [tip]
    task = PackTask(repository=str(made.path), wants=wants, tags=[(tag, tip)])
    assert build_pack(task, made.repository).object_count == 3
    (pack,) = made.repository.objects.packs()
    assert (read_links(pack) is not None) is wants_tag


@pytest.mark.parametrize("kind", ["commit", "tree"])
def test_large_commits_and_trees_are_not_read_where_memory_is_scarce(made: Made, kind: str) -> None:
    """Neither packed nor loose."""
    tree = made.tree()
    if kind == "tree":
        blob, name = made.blob(b""), b"%07d" + b"n" * 2_000
        tree = made.tree(*((FILE, name % number, blob) for number in range(4_200)))
    tip = made.commit(tree, more=b"m" * (1_100_000 if kind == "commit" else 1))
    assert not made.push(tip).broken
    made.point("main", tip)
    task = PackTask(repository=str(made.path), wants=[tip], filter_spec="blob:none")
    for _ in range(2):
        with pytest.raises(PackOutgrownError, match="an object is too large for memory"):
            build_pack(task)
        elsewhere = replace(task, out_path=str(made.path / "built"))
        assert build_pack(elsewhere).object_count == 2
        made.unpack()
