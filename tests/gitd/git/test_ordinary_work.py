"""What people do all day, with the real client: every row ends with fsck on both sides."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]


@pytest.fixture(autouse=True)
def sound_at_the_end(bare: Path, git: Git) -> Any:
    yield
    assert git("fsck", "--full", "--strict", cwd=bare).status == 0
    assert not list((bare / "objects").rglob("tmp_*"))
    assert not list(bare.rglob("*.lock"))


def test_the_first_push_makes_the_branch(work: Path, bare: Path, head: Git) -> None:
    assert head(bare, "refs/heads/main") == head(work)


def test_a_second_push_moves_it(work: Path, bare: Path, git: Git, commit: Git, head: Git) -> None:
    commit(work, "two")
    done = git("push", "origin", "main", cwd=work)
    assert "main -> main" in done.err
    assert head(bare, "main") == head(work)


def test_a_push_that_has_nothing_new_says_so(work: Path, git: Git) -> None:
    assert "Everything up-to-date" in git("push", "origin", "main", cwd=work).err


def test_a_rewritten_branch_needs_force(
    work: Path, bare: Path, git: Git, commit: Git, head: Git
) -> None:
    commit(work, "two")
    git("push", "-q", "origin", "main", cwd=work)
    git("reset", "-q", "--hard", "HEAD~1", cwd=work)
    commit(work, "other")
    refused = git("push", "origin", "main", cwd=work, check=False)
    assert refused.status == 1
    assert "[rejected]" in refused.err
    git("push", "-q", "--force", "origin", "main", cwd=work)
    assert head(bare, "main") == head(work)


def test_force_with_lease_sees_who_was_first(
    work: Path, bare: Path, tmp_path: Path, git: Git, commit: Git, server: Any
) -> None:
    other = tmp_path / "other"
    git("clone", "-q", server.url_of(bare), other, cwd=tmp_path)
    commit(other, "theirs")
    git("push", "-q", "origin", "main", cwd=other)
    commit(work, "ours")
    refused = git("push", "--force-with-lease=main", "origin", "main", cwd=work, check=False)
    assert "stale info" in refused.err


def test_branches_are_made_and_deleted(work: Path, bare: Path, git: Git) -> None:
    git("push", "-q", "origin", "main:feature/a", "main:feature/b", cwd=work)
    git("push", "-q", "origin", ":feature/a", cwd=work)
    assert git("for-each-ref", "--format=%(refname)", cwd=bare).out.split() == [
        "refs/heads/feature/b",
        "refs/heads/main",
    ]
    git("push", "-q", "origin", "--delete", "feature/b", cwd=work)
    assert not (bare / "refs/heads/feature").exists()


def test_a_deleted_directory_of_branches_makes_room_for_a_branch(
    work: Path, bare: Path, git: Git, head: Git
) -> None:
    git("push", "-q", "origin", "main:topic/one", cwd=work)
    git("push", "-q", "origin", ":topic/one", cwd=work)
    git("push", "-q", "origin", "main:topic", cwd=work)
    assert head(bare, "topic") == head(work)


def test_tags_of_both_kinds_go_over(work: Path, bare: Path, git: Git, head: Git) -> None:
    git("tag", "light", cwd=work)
    git("tag", "-a", "-m", "annotated", "v1", cwd=work)
    git("push", "-q", "--tags", "origin", cwd=work)
    assert head(bare, "v1") == head(work, "v1")
    assert head(bare, "v1^{}") == head(bare, "light") == head(work)


def test_a_merge_goes_over(work: Path, bare: Path, git: Git, commit: Git, head: Git) -> None:
    git("checkout", "-q", "-b", "side", cwd=work)
    commit(work, "on-side")
    git("checkout", "-q", "main", cwd=work)
    commit(work, "on-main")
    git("merge", "-q", "--no-ff", "-m", "merge", "side", cwd=work)
    git("push", "-q", "origin", "main", cwd=work)
    assert head(bare, "main^2") == head(work, "side")


def test_a_thin_pack_is_completed(work: Path, bare: Path, git: Git, commit: Git, head: Git) -> None:
    lines = [f"line {number} of a long file\n" for number in range(3000)]
    commit(work, "long", long="".join(lines))
    git("push", "-q", "origin", "main", cwd=work)
    lines[1500] = "changed\n"
    commit(work, "changed", long="".join(lines))
    git("push", "-q", "--thin", "origin", "main", cwd=work)
    assert head(bare, "main") == head(work)


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_a_large_push_comes_in_chunks_after_a_probe(
    work: Path, bare: Path, git: Git, head: Git, size: int
) -> None:
    (work / "blob").write_bytes(random.Random(size).randbytes(size))
    git("add", "blob", cwd=work)
    git("commit", "-q", "-m", "blob", cwd=work)
    done = git(
        "-c", "http.postBuffer=65536", "push", "origin", "main", cwd=work, GIT_CURL_VERBOSE="1"
    )
    assert "Transfer-Encoding: chunked" in done.err
    assert head(bare, "main") == head(work)


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_has_changed_is_sent_as_a_difference(
    work: Path, bare: Path, server: Any, tmp_path: Path, git: Git, commit: Git, *, is_packed: bool
) -> None:
    files = {f"f{number}": f"{number}\n" * 300 for number in range(50)}
    commit(work, "many", **files)
    git("push", "-q", bare, "main", cwd=work)  # git's own server leaves few objects loose
    git("clone", "-q", server.url_of(bare), "c", cwd=tmp_path)
    commit(work, "a line", f7="another\n" + files["f7"])
    git("push", "-q", bare, "main", cwd=work)
    if is_packed:
        git("repack", "-a", "-d", "-q", cwd=bare)
    fetched = git("fetch", "--progress", cwd=tmp_path / "c")
    assert "remote: Total 3 (delta 2)" in fetched.err
    git("fsck", "--full", cwd=tmp_path / "c")


def test_an_atomic_push_is_all_or_nothing(
    work: Path, bare: Path, tmp_path: Path, git: Git, commit: Git, head: Git, server: Any
) -> None:
    before = head(bare, "main")
    other = tmp_path / "other"
    git("clone", "-q", server.url_of(bare), other, cwd=tmp_path)
    commit(work, "ours")
    git("push", "-q", "origin", "main", cwd=work)
    now = head(bare, "main")
    assert now != before
    commit(other, "theirs")
    done = git("push", "--atomic", "origin", "main", "main:new", cwd=other, check=False)
    assert done.status == 1
    assert head(bare, "main") == now
    assert git("rev-parse", "-q", "--verify", "new", cwd=bare, check=False).status == 1
    git("push", "-q", "--atomic", "--force", "origin", "main", "main:new", cwd=other)
    assert head(bare, "main") == head(bare, "new") == head(other)


def test_push_options_need_the_servers_offer(work: Path, bare: Path, git: Git) -> None:
    refused = git("push", "-o", "x", "origin", "main:a", cwd=work, check=False)
    assert "the receiving end does not support push options" in refused.err
    git("config", "receive.advertisePushOptions", "true", cwd=bare)
    assert git("push", "-o", "x", "origin", "main:a", cwd=work).status == 0


def test_a_quiet_push_is_quiet(work: Path, git: Git, commit: Git) -> None:
    commit(work, "two")
    assert git("push", "--quiet", "origin", "main", cwd=work).text == ""


def test_a_mirror_push_makes_the_refs_equal(work: Path, bare: Path, git: Git) -> None:
    git("push", "-q", "origin", "main:gone", cwd=work)
    git("tag", "t", cwd=work)
    git("update-ref", "-d", "refs/remotes/origin/main", cwd=work)
    git("push", "-q", "--mirror", "origin", cwd=work, check=False)
    refs = git("for-each-ref", "--format=%(refname)", cwd=bare).out.split()
    assert refs[:1] + refs[-1:] == ["refs/heads/main", "refs/tags/t"]


@pytest.mark.parametrize("version", ["0", "1", "2"])
@pytest.mark.parametrize("form", ["loose", "one pack", "many packs"])
def test_clone_and_fetch_bring_all(
    work: Path,
    bare: Path,
    tmp_path: Path,
    git: Git,
    commit: Git,
    head: Git,
    server: Any,
    version: str,
    form: str,
) -> None:
    for number in range(5):
        commit(work, f"c{number}", file="".join(f"{n}\n" for n in range(number, 800)))
        git("tag", "-a", "-m", "t", f"v{number}", cwd=work)
        git("push", "-q", "--follow-tags", "origin", "main", cwd=work)
    if form == "one pack":
        git("gc", "-q", cwd=bare)
    elif form == "loose":
        for pack in (bare / "objects/pack").glob("*.pack"):
            moved = pack.rename(tmp_path / pack.name)
            pack.with_suffix(".idx").unlink()
            git("unpack-objects", "-q", cwd=bare, stdin=moved.read_bytes())
    protocol = f"protocol.version={version}"
    clone = tmp_path / "clone"
    git("-c", protocol, "clone", "-q", server.url_of(bare), clone, cwd=tmp_path)
    assert head(clone) == head(work)
    assert git("tag", cwd=clone).out.split() == [f"v{n}" for n in range(5)]
    git("fsck", "--full", "--strict", cwd=clone)
    for number in range(5, 8):
        commit(work, f"c{number}", file="".join(f"{n}\n" for n in range(number, 800)))
    git("tag", "-a", "-m", "t", "v-new", cwd=work)
    git("push", "-q", "--follow-tags", "origin", "main", cwd=work)
    done = git("-c", protocol, "fetch", "origin", cwd=clone)
    assert "v-new" in done.err
    assert head(clone, "origin/main") == head(work)
    git("fsck", "--full", "--strict", cwd=clone)
    assert git("-c", protocol, "fetch", "origin", cwd=clone).text == ""


def test_an_empty_repository_is_cloned_with_its_branch(
    server: Any, bare: Path, tmp_path: Path, git: Git
) -> None:
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=bare)
    clone = tmp_path / "clone"
    done = git("clone", server.url_of(bare), clone, cwd=tmp_path)
    assert "empty repository" in done.err
    assert git("symbolic-ref", "HEAD", cwd=clone).out == "refs/heads/trunk"


def test_a_single_branch_clone_brings_one(
    work: Path, bare: Path, tmp_path: Path, git: Git, commit: Git, server: Any
) -> None:
    git("checkout", "-q", "-b", "side", cwd=work)
    commit(work, "side")
    git("push", "-q", "origin", "side", cwd=work)
    clone = tmp_path / "clone"
    git("clone", "-q", "--single-branch", server.url_of(bare), clone, cwd=tmp_path)
    assert git("branch", "-r", cwd=clone).out.split() == [
        "origin/HEAD",
        "->",
        "origin/main",
        "origin/main",
    ]


def test_ls_remote_lists_as_the_repository_has_it(
    work: Path, bare: Path, git: Git, server: Any
) -> None:
    git("tag", "-a", "-m", "t", "v1", cwd=work)
    git("push", "-q", "--tags", "origin", cwd=work)
    listed = git("ls-remote", server.url_of(bare), cwd=work).out
    assert listed == git("ls-remote", bare, cwd=work).out
    symbolic = git("ls-remote", "--symref", server.url_of(bare), "HEAD", cwd=work).out
    assert "ref: refs/heads/main\tHEAD" in symbolic


def test_the_pushers_reflog_is_written_where_it_is_wished_for(
    work: Path, bare: Path, git: Git, commit: Git
) -> None:
    git("config", "core.logAllRefUpdates", "true", cwd=bare)
    commit(work, "two")
    git("push", "-q", "origin", "main", cwd=work)
    log = (bare / "logs/refs/heads/main").read_text()
    assert "anonymous <anonymous@http.127.0.0.1>" in log
    assert log.endswith("\tpush\n")
