"""What a push may link to: all of it there, and each object of the type that it is linked as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Made = Any
FILE, FOLDER, SUBMODULE = b"100644", b"40000", b"160000"
Tip = Callable[[Made, bytes, bytes, bytes], bytes]

# Each links to a blob, a tree or a commit as to something else.
WRONG_LINKS: dict[str, Tip] = {
    "a commit's tree is a blob": lambda made, blob, _, __: made.commit(blob),
    "a commit's tree is a commit": lambda made, _, __, commit: made.commit(commit),
    "a parent is a blob": lambda made, blob, tree, _: made.commit(tree, blob),
    "a parent is a tree": lambda made, _, tree, __: made.commit(tree, tree),
    "a folder is a blob": lambda made, blob, _, __: made.commit(made.tree((FOLDER, b"d", blob))),
    "a folder with zeros is a blob": lambda made, blob, _, __: made.commit(
        made.tree((b"040000", b"d", blob))
    ),
    "a file is a tree": lambda made, _, tree, __: made.commit(made.tree((FILE, b"f", tree))),
    "a file is a commit": lambda made, _, __, commit: made.commit(made.tree((FILE, b"f", commit))),
    "a tag is on no commit": lambda made, blob, _, __: made.tag(blob, b"commit"),
    "a tag is on no blob": lambda made, _, __, commit: made.tag(commit, b"blob"),
}


@pytest.mark.parametrize("where", ["in the same pack", "stored", "under a ref", "below a ref"])
@pytest.mark.parametrize("wrong", WRONG_LINKS)
def test_a_link_to_an_object_of_another_type_is_refused(made: Made, wrong: str, where: str) -> None:
    blob, tree = made.blob(b"a file"), made.tree((FILE, b"name", made.blob(b"a file")))
    commit = made.commit(tree)
    if where != "in the same pack":
        assert not made.push(commit).broken
    if where == "under a ref":
        for name, oid in (("b", blob), ("t", tree), ("c", commit)):
            made.point(name, oid)
    elif where == "below a ref":
        made.point("main", commit)
    tip = WRONG_LINKS[wrong](made, blob, tree, commit)
    pushed = made.push(tip)
    assert pushed.error is None
    assert list(pushed.broken) == [tip]
    assert "of another type than linked" in pushed.broken[tip]


def test_what_a_wrong_link_is_no_part_of_is_taken(made: Made) -> None:
    blob = made.blob(b"a file")
    good, bad = made.commit(made.tree((FILE, b"f", blob))), made.commit(blob)
    assert list(made.push(good, bad).broken) == [bad]


def test_what_is_no_folder_is_a_file_still(made: Made) -> None:
    blob = made.blob(b"a file")
    made.push()  # stored, and reached from nowhere
    good = made.commit(made.tree((FILE, b"f", blob)))
    bad = made.commit(made.tree((FOLDER, b"f", blob)))
    assert list(made.push(good, bad).broken) == [bad]


def test_a_submodule_vouches_for_no_object(made: Made) -> None:
    made.blob(b"never sent")
    missing = made.blob(b"never sent")
    made.forget()
    first = made.commit(made.tree((SUBMODULE, b"m", missing)))
    assert not made.push(first).broken
    made.point("main", first)
    tip = made.commit(made.tree((FILE, b"m", missing)), first)
    assert made.push(tip).broken == {tip: f"missing object {missing.hex()}"}


@pytest.mark.parametrize("mode", [b"040000", b"40755"])
def test_what_a_folder_with_an_old_mode_lacks_is_noticed(made: Made, mode: bytes) -> None:
    missing = made.blob(b"never sent")
    made.forget()
    folder = made.tree((FILE, b"f", missing))
    made.push()  # stored, and reached from nowhere: it is to be walked
    tip = made.commit(made.tree((mode, b"d", folder)))
    assert made.push(tip).broken == {tip: f"missing object {missing.hex()}"}


def test_a_base_that_made_a_thin_pack_whole_vouches_for_nothing(made: Made) -> None:
    """A tree that lies in the repository without its file, and under no ref."""
    missing = made.blob(b"never sent")
    made.forget()
    old = b"100644 f\0" + missing
    base = made.tree((FILE, b"f", missing))
    made.push()
    new = b"100644 g\0" + made.blob(b"sent")
    made.delta(base, old, new)
    tip = made.commit(base)
    assert made.push(tip).broken == {tip: f"missing object {missing.hex()}"}
    made.delta(base, old, new)
    assert made.push(base).broken == {base: f"missing object {missing.hex()}"}


@pytest.mark.parametrize("kind", ["commit", "tag"])
def test_what_a_border_may_lack_others_may_not(made: Made, kind: str) -> None:
    absent = made.commit(made.tree(), more=b"never sent")
    made.forget()
    tree = made.tree((FILE, b"f", made.blob(b"x")))
    border = made.commit(tree, absent, time=1)
    tip = made.commit(tree, border, time=2)
    other = made.commit(tree, absent, time=2) if kind == "commit" else made.tag(absent)
    pushed = made.push(tip, other, shallow=[border])
    assert pushed.broken == {other: f"missing object {absent.hex()}"}


def test_a_border_may_lack_its_parents(made: Made) -> None:
    absent = made.commit(made.tree(), more=b"never sent")
    made.forget()
    border = made.commit(made.tree((FILE, b"f", made.blob(b"x"))), absent, time=1)
    tip = made.commit(made.tree(), border, time=2)
    pushed = made.push(tip, shallow=[border])
    assert (pushed.error, pushed.broken) == (None, {})
    assert (pushed.new_borders, pushed.shallow_tips) == ([border], [tip])
