"""What commits and tags link to, however long their words are, in repositories that git made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from storage.git.errors import RepositoryCorruptError
from storage.git.object_links import (
    COMMIT_LINKS_REMEMBERED_MAX,
    LINKS_BYTES_MAX,
    LINKS_REMEMBERED_MAX,
)
from storage.git.objects import ObjectStore
from tests.gitd.git.conftest import run_git

Made = Any
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("kind", "is_packed"), [("commit", True), ("tag", False)])
def test_words_without_end_are_not_read_for_what_stands_before_them(
    tmp_path: Path, kind: str, *, is_packed: bool
) -> None:
    """Links are looked up in the server's own process."""
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    tree = run_git("mktree", cwd=bare).out
    first = run_git("commit-tree", tree, "-m", "x", cwd=bare).out
    who = "A <a@b> 1700000000 +0000"
    head = {
        "commit": f"tree {tree}\nparent {first}\nauthor {who}\ncommitter {who}\n\n",
        "tag": f"object {first}\ntype commit\ntag v1\ntagger {who}\n\n",
    }[kind]
    words = head.encode() + bytes(3 * LINKS_BYTES_MAX)
    written = ("-c", "core.looseCompression=1", "hash-object", "-w", "--literally", "--stdin")
    oid = run_git(*written, "-t", kind, cwd=bare, stdin=words).out
    if is_packed:
        run_git("pack-objects", "-q", "objects/pack/pack", cwd=bare, stdin=f"{oid}\n".encode())
        run_git("prune-packed", cwd=bare)
    links = ObjectStore(bare / "objects").links
    tracemalloc.start()
    try:
        if kind == "commit":
            parents = links.commit(bytes.fromhex(oid)).parents
            assert [parent.hex() for parent in parents] == [first]
        else:
            assert links.peel(bytes.fromhex(oid)) == (1, bytes.fromhex(first))
        assert tracemalloc.get_traced_memory()[1] < 5 * LINKS_BYTES_MAX // 2
    finally:
        tracemalloc.stop()


def test_words_of_a_commit_that_is_stored_as_a_delta_may_be_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `git repack` stores them by itself."""
    monkeypatch.setattr("storage.git.object_links.LINKS_BYTES_MAX", 10_000)
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    tree = run_git("mktree", cwd=bare).out
    words = b"".join(b"%d\n" % number for number in range(10_000))
    head = f"tree {tree}\nauthor A <a@b> 1700000000 +0000\ncommitter A <a@b> 1700000000 +0000\n\n"
    written = ("-c", "core.looseCompression=1", "hash-object", "-w", "--stdin", "-t", "commit")
    oids = [
        run_git(*written, cwd=bare, stdin=head.encode() + words + bytes([end])).out for end in b"ab"
    ]
    run_git(
        *("-c", "pack.compression=1", "pack-objects", "-q", "objects/pack/pack"),
        cwd=bare,
        stdin="".join(f"{oid}\n" for oid in oids).encode(),
    )
    run_git("prune-packed", cwd=bare)
    (index,) = bare.glob("objects/pack/*.idx")
    assert "chain length = 1: 1 object" in run_git("verify-pack", "-v", index, cwd=bare).out
    links = ObjectStore(bare / "objects").links
    assert [links.commit(bytes.fromhex(oid)).tree.hex() for oid in oids] == [tree, tree]


def test_links_without_end_are_none(tmp_path: Path) -> None:
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    parents = b"parent %b\n" % (b"1" * 40) * (LINKS_BYTES_MAX // 40)
    content = b"tree %b\n%bauthor A <a@b> 1 +0000\n\n" % (b"2" * 40, parents)
    written = ("hash-object", "-w", "--literally", "--stdin", "-t", "commit")
    oid = run_git(*written, cwd=bare, stdin=content).out
    with pytest.raises(RepositoryCorruptError, match="no links that can be read"):
        ObjectStore(bare / "objects").links.commit(bytes.fromhex(oid))


def test_what_is_remembered_of_commits_is_bounded_by_their_links(made: Made) -> None:
    tree = made.tree()
    many = made.commit(tree, *(b"%020d" % n for n in range(COMMIT_LINKS_REMEMBERED_MAX)))
    parents = [b"%020d" % n for n in range(COMMIT_LINKS_REMEMBERED_MAX - 1)]
    count = LINKS_REMEMBERED_MAX // COMMIT_LINKS_REMEMBERED_MAX + 1
    few = [made.commit(tree, *parents, time=time) for time in range(count)]
    made.push()
    links = made.repository.objects.links
    assert links.commit(many) is not links.commit(many)
    first = links.commit(few[0])
    assert links.commit(few[0]) is first
    for oid in few:
        links.commit(oid)
    assert links.commit(few[0]) is not first
