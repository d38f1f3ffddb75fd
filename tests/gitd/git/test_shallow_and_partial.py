"""Shallow and partial clones with the real client (docs/git-server.md, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]

VERSIONS = pytest.mark.parametrize("version", ["0", "2"])


@pytest.fixture
def history(work: Path, bare: Path, git: Git, commit: Git) -> Path:
    """Ten commits, a day apart, with a side branch merged in the middle and a tag on the fourth."""
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=bare)
    for number in range(2, 11):
        date = f"{1_700_000_000 + number * 86_400} +0000"
        (work / "file").write_text("".join(f"{line}\n" for line in range(number, 300)))
        (work / "dir").mkdir(exist_ok=True)
        (work / "dir" / f"f{number}").write_text(f"{number}\n" * number * 100)
        git("add", "-A", cwd=work)
        git(
            "commit", "-q", "-m", f"c{number}", cwd=work,
            GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date,
        )  # fmt: skip
        if number == 4:
            git("tag", "-a", "-m", "four", "v4", cwd=work)
            git("branch", "side", cwd=work)
    git("push", "-q", "--follow-tags", "origin", "main", "side", cwd=work)
    return work


def count(path: Path, git: Git, ref: str = "HEAD") -> int:
    return int(git("rev-list", "--count", ref, cwd=path).out)


@VERSIONS
def test_a_clone_of_depth_one_has_one_commit(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, version: str
) -> None:
    clone = tmp_path / "c"
    git("-c", f"protocol.version={version}", "clone", "-q", "--depth", "1", server.url_of(bare),
        clone, cwd=tmp_path)  # fmt: skip
    assert count(clone, git) == 1
    git("fsck", "--full", cwd=clone)


@VERSIONS
def test_a_shallow_clone_deepens_step_by_step_until_it_is_whole(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, version: str
) -> None:
    clone = tmp_path / "c"
    protocol = f"protocol.version={version}"
    # Without tags: a client that follows one asks for it alone, and so moves its borders oddly.
    git("-c", protocol, "clone", "-q", "--no-tags", "--depth", "2", server.url_of(bare), clone,
        cwd=tmp_path)  # fmt: skip
    assert count(clone, git) == 2
    git("-c", protocol, "fetch", "-q", "--depth", "4", cwd=clone)
    assert count(clone, git) == 4
    git("-c", protocol, "fetch", "-q", "--deepen", "3", cwd=clone)
    assert count(clone, git) == 7
    git("fsck", "--full", cwd=clone)
    git("-c", protocol, "fetch", "-q", "--depth", "3", cwd=clone)
    assert count(clone, git) == 3
    git("-c", protocol, "fetch", "-q", "--unshallow", cwd=clone)
    assert count(clone, git) == 10
    assert not (clone / ".git/shallow").exists()
    git("fsck", "--full", "--strict", cwd=clone)


@VERSIONS
def test_a_shallow_clone_fetches_new_commits(
    history: Path,
    bare: Path,
    server: Any,
    tmp_path: Path,
    git: Git,
    commit: Git,
    head: Git,
    version: str,
) -> None:
    clone = tmp_path / "c"
    protocol = f"protocol.version={version}"
    git("-c", protocol, "clone", "-q", "--depth", "2", server.url_of(bare), clone, cwd=tmp_path)
    commit(history, "later")
    git("push", "-q", "origin", "main", cwd=history)
    git("-c", protocol, "fetch", "-q", cwd=clone)
    assert head(clone, "origin/main") == head(history)
    assert count(clone, git, "origin/main") == 3
    git("fsck", "--full", cwd=clone)


@VERSIONS
@pytest.mark.parametrize("depth", ["1", "2147483647"])
def test_a_fetch_to_a_depth_brings_what_has_changed_and_no_more(
    history: Path,
    bare: Path,
    server: Any,
    tmp_path: Path,
    git: Git,
    commit: Git,
    version: str,
    depth: str,
) -> None:
    clone = tmp_path / "c"
    protocol = f"protocol.version={version}"
    git("-c", protocol, "clone", "-q", "--depth", depth, server.url_of(bare), clone, cwd=tmp_path)
    for message in ("later", "latest"):
        commit(history, message)
    git("push", "-q", "origin", "main", cwd=history)
    fetched = git("-c", protocol, "fetch", "--progress", "--depth", "1", cwd=clone)
    assert "remote: Total 4 " in fetched.err  # the commit, its tree and two files
    git("fsck", "--full", cwd=clone)


@VERSIONS
def test_depth_by_date_and_by_exclusion(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, version: str
) -> None:
    protocol = f"protocol.version={version}"
    url = server.url_of(bare)
    since = 1_700_000_000 + 8 * 86_400
    git("-c", protocol, "clone", "-q", f"--shallow-since={since}", url, "a", cwd=tmp_path)
    assert count(tmp_path / "a", git) == 3
    git("-c", protocol, "clone", "-q", "--shallow-exclude=v4", url, "b", cwd=tmp_path)
    assert count(tmp_path / "b", git) == 6
    future = git("-c", protocol, "clone", "-q", "--shallow-since=2099-01-01", url, "c",
                 cwd=tmp_path, check=False)  # fmt: skip
    assert "no commits selected for shallow requests" in future.err
    wrong = git("-c", protocol, "clone", "-q", "--shallow-exclude=nope", url, "d",
                cwd=tmp_path, check=False)  # fmt: skip
    assert "deepen-not is not a ref" in wrong.err


def test_a_shallow_clone_pushes(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    """8.29: the server has what lies behind the border."""
    clone = tmp_path / "c"
    git("clone", "-q", "--depth", "1", server.url_of(bare), clone, cwd=tmp_path)
    commit(clone, "from-shallow")
    git("push", "-q", "origin", "main", cwd=clone)
    assert head(bare, "main") == head(clone)
    assert not (bare / "shallow").exists()
    git("fsck", "--full", cwd=bare)


@VERSIONS
@pytest.mark.parametrize(
    ("spec", "blobs", "trees"),
    [("blob:none", 0, 19), ("blob:limit=1k", 5, 19), ("tree:0", 0, 0), ("tree:1", 0, 10)],
)
def test_a_partial_clone_leaves_out_and_fetches_later(
    history: Path,
    bare: Path,
    server: Any,
    tmp_path: Path,
    git: Git,
    version: str,
    spec: str,
    blobs: int,
    trees: int,
) -> None:
    clone = tmp_path / "c"
    protocol = f"protocol.version={version}"
    git("-c", protocol, "clone", "-q", "--no-checkout", f"--filter={spec}", server.url_of(bare),
        clone, cwd=tmp_path)  # fmt: skip
    listed = git("cat-file", "--batch-all-objects", "--batch-check=%(objecttype)", cwd=clone)
    kinds = listed.out.split()
    assert (kinds.count("commit"), kinds.count("tree")) == (10, trees)
    assert kinds.count("blob") == blobs or spec.startswith("blob:limit")
    git("-c", protocol, "checkout", "-q", "main", cwd=clone)
    assert (clone / "dir/f7").read_text() == "7\n" * 700
    git("-c", protocol, "checkout", "-q", "side", cwd=clone)
    git("fsck", "--full", cwd=clone)


def test_a_filter_is_only_taken_where_it_is_allowed(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git
) -> None:
    git("config", "uploadpack.allowFilter", "false", cwd=bare)
    done = git("clone", "--filter=blob:none", server.url_of(bare), "c", cwd=tmp_path)
    assert "filtering not recognized by server, ignoring" in done.err
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    git("config", "uploadpackfilter.tree.allow", "false", cwd=bare)
    refused = git("clone", "--filter=tree:0", server.url_of(bare), "d", cwd=tmp_path, check=False)
    assert "filter 'tree' not supported" in refused.err


def test_a_partial_clone_goes_on_fetching_and_pushing(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    clone = tmp_path / "c"
    git("clone", "-q", "--filter=blob:none", server.url_of(bare), clone, cwd=tmp_path)
    (history / "dir/f3").write_text("rewritten\n" * 50)
    commit(history, "later")
    git("push", "-q", "origin", "main", cwd=history)
    git("pull", "-q", "--ff-only", cwd=clone)
    assert (clone / "dir/f3").read_text() == "rewritten\n" * 50
    commit(clone, "from-partial")
    git("push", "-q", "origin", "main", cwd=clone)
    assert head(bare, "main") == head(clone)
    git("fsck", "--full", cwd=bare)


def test_a_shallow_repository_is_served(
    history: Path, bare: Path, server: Any, name: str, tmp_path: Path, git: Git, head: Git
) -> None:
    shallow = server.root / f"shallow-{name}"
    git("clone", "-q", "--bare", "--depth", "3", f"file://{bare}", shallow, cwd=tmp_path)
    for version in ("0", "2"):
        clone = tmp_path / f"c{version}"
        git("-c", f"protocol.version={version}", "clone", "-q", server.url_of(shallow), clone,
            cwd=tmp_path)  # fmt: skip
        assert head(clone) == head(history)
        assert count(clone, git) == 3
        git("fsck", "--full", cwd=clone)


@VERSIONS
def test_any_object_that_is_reachable_may_be_wanted(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, head: Git, version: str
) -> None:
    git("config", "--unset", "uploadpack.allowAnySHA1InWant", cwd=bare)
    old = head(history, "main~3")
    git("init", "-q", "x", cwd=tmp_path)
    protocol = f"protocol.version={version}"
    got = git("-c", protocol, "fetch", "-q", server.url_of(bare), old, cwd=tmp_path / "x",
              check=False)  # fmt: skip
    if version == "2":
        assert head(tmp_path / "x", "FETCH_HEAD") == old
    else:
        assert "Server does not allow request for unadvertised object" in got.err


def test_negotiate_only_tells_what_is_common(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    clone = tmp_path / "c"
    git("clone", "-q", server.url_of(bare), clone, cwd=tmp_path)
    common = head(clone)
    commit(clone, "mine")
    done = git("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin", cwd=clone)
    assert common in done.out.split()
    assert head(clone) not in done.out


def test_want_ref_takes_names(
    history: Path, bare: Path, server: Any, tmp_path: Path, git: Git, head: Git
) -> None:
    git("config", "uploadpack.allowRefInWant", "true", cwd=bare)
    git("init", "-q", "x", cwd=tmp_path)
    git("fetch", "-q", server.url_of(bare), "refs/heads/side", cwd=tmp_path / "x")
    assert head(tmp_path / "x", "FETCH_HEAD") == head(history, "side")


def test_deepening_past_a_merge_hides_nothing_that_was_there(
    bare: Path, server: Any, tmp_path: Path, git: Git
) -> None:
    """One way back is longer than the other: a border on it would hide what the other one shows."""
    parents = {"b": "a", "c": "b", "d": "c", "s": "d", "t": "s", "m": "d"}
    stream = []
    for number, name in enumerate("abcdstm"):
        stream += [
            f"commit refs/heads/{name}",
            f"committer A <a@b> {1_700_000_000 + number} +0000",
            f"data 1\n{name}",
            *([f"from refs/heads/{parents[name]}"] if name in parents else []),
            *(["merge refs/heads/t"] if name == "m" else []),
        ]
    git("fast-import", "--quiet", cwd=bare, stdin="\n".join([*stream, ""]).encode())
    git("update-ref", "refs/heads/main", "m", cwd=bare)
    clone = tmp_path / "c.git"
    git("clone", "-q", "--bare", "--single-branch", "--depth", "3",
        server.url_of(bare), clone, cwd=tmp_path)  # fmt: skip

    def there() -> set[str]:
        return set(git("log", "--format=%s", "main", cwd=clone).out.split())

    assert there() == set("mtsdc")
    for expected in ("mtsdcb", "mtsdcba"):
        git("fetch", "-q", "--deepen", "1", "origin", "main", cwd=clone)
        assert there() == set(expected)
        git("fsck", "--full", cwd=clone)
    git("fetch", "-q", "--deepen", "1", "origin", "main", cwd=clone)
    assert there() == set("mtsdcba")
    assert not (clone / "shallow").exists()
