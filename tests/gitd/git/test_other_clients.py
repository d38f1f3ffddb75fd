"""Clients that are no git of ours: dulwich's, libgit2's, and git's own in each protocol version."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pygit2
import pytest
from dulwich import porcelain
from dulwich.client import get_transport_and_path
from dulwich.repo import Repo

Git = Callable[..., Any]
COMMITS = 12


@pytest.fixture
def history(work: Path, git: Git, commit: Git) -> list[str]:
    """Commits on main, the first one first, and a branch and a tag; all are pushed."""
    found = [git("rev-parse", "HEAD", cwd=work).out]
    for number in range(1, COMMITS):
        text = "".join(f"line {line} {number if line % 9 == 0 else 0}\n" for line in range(300))
        found.append(commit(work, f"n{number}", text=text))
    git("tag", "-a", "-m", "one", "v1", "main~3", cwd=work)
    git("push", "-q", "origin", "main", "v1", "main~2:refs/heads/side", cwd=work)
    return found


@pytest.fixture
def url(server: Any, bare: Path, history: list[str], git: Git) -> Iterator[str]:
    """Where it is served; what the client has done to it is sound."""
    yield server.url_of(bare)
    git("fsck", "--full", "--strict", cwd=bare)


def new_commit(git: Git, clone: Path, commit: Git) -> str:
    git("checkout", "-q", "-B", "main", cwd=clone)
    return commit(clone, "theirs", theirs="x\n")


# -- dulwich -----------------------------------------------------------------------------------


def test_dulwich_clones_fetches_and_pushes(
    url: str, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    clone = tmp_path / "clone"
    with closing(porcelain.clone(url, clone, errstream=io.BytesIO())) as repo:
        assert repo.head().decode() == head(work)
        assert b"refs/tags/v1" in repo.refs
    git("fsck", "--full", cwd=clone)
    newer = commit(work, "newer")
    git("push", "-q", "origin", "main", cwd=work)
    with closing(Repo(str(clone))) as repo:
        client, path = get_transport_and_path(url)
        result = client.fetch(path, repo)
        assert result.refs[b"refs/heads/main"].decode() == newer
        assert newer.encode() in repo.object_store
    git("reset", "-q", "--hard", newer, cwd=clone)
    mine = new_commit(git, clone, commit)
    with closing(Repo(str(clone))) as repo:
        words = io.BytesIO()
        porcelain.push(repo, url, "refs/heads/main", outstream=words, errstream=words)
        porcelain.push(repo, url, "refs/heads/main:refs/heads/new", errstream=words)
        porcelain.push(repo, url, ":refs/heads/side", errstream=words)
    assert head(bare, "main") == head(bare, "new") == mine
    assert "side" not in git("branch", cwd=bare).out


@pytest.mark.parametrize("version", [0, 1, 2])
def test_dulwich_in_each_version_and_shallow(
    url: str, tmp_path: Path, git: Git, history: list[str], version: int
) -> None:
    for depth, commits in ((None, COMMITS), (3, 6)):  # three from each of main, side and v1
        clone = tmp_path / f"clone{depth}"
        cloned = porcelain.clone(
            url, clone, bare=True, depth=depth, protocol_version=version, errstream=io.BytesIO()
        )
        with closing(cloned) as repo:
            assert repo.refs[b"refs/heads/main"].decode() == history[-1]
        git("fsck", cwd=clone)
        assert git("rev-list", "--count", "refs/heads/main", cwd=clone).out == str(commits)


def test_dulwich_hears_why_a_push_is_refused(
    url: str, bare: Path, tmp_path: Path, git: Git, commit: Git, history: list[str], head: Git
) -> None:
    git("config", "receive.denyDeletes", "true", cwd=bare)
    clone = tmp_path / "clone"
    porcelain.clone(url, clone, errstream=io.BytesIO()).close()
    with closing(Repo(str(clone))) as repo:
        client, path = get_transport_and_path(url)
        result = client.send_pack(
            path,
            lambda _: {b"refs/heads/side": b"0" * 40},
            repo.generate_pack_data,
        )
    assert result.ref_status == {b"refs/heads/side": "deletion prohibited"}
    assert head(bare, "side") == history[-3]


# -- libgit2 -----------------------------------------------------------------------------------


def test_libgit2_clones_fetches_and_pushes(
    url: str, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    clone = tmp_path / "clone"
    repo = pygit2.clone_repository(url, str(clone))
    assert str(repo.head.target) == head(work)
    assert "refs/tags/v1" in repo.references
    git("fsck", "--full", cwd=clone)
    newer = commit(work, "newer")
    git("push", "-q", "origin", "main", cwd=work)
    remote = repo.remotes["origin"]
    assert remote.fetch().received_objects == 3
    assert str(repo.references["refs/remotes/origin/main"].target) == newer
    git("reset", "-q", "--hard", newer, cwd=clone)
    mine = new_commit(git, clone, commit)
    remote.push(["refs/heads/main"])
    remote.push(["refs/heads/main:refs/heads/new", ":refs/heads/side"])
    assert head(bare, "main") == head(bare, "new") == mine
    assert "side" not in git("branch", cwd=bare).out
    listed = {ref.name for ref in remote.list_heads()}
    assert {"HEAD", "refs/heads/main", "refs/tags/v1", "refs/tags/v1^{}"} <= listed


def test_libgit2_clones_and_deepens_what_is_shallow(
    url: str, tmp_path: Path, git: Git, history: list[str]
) -> None:
    clone = tmp_path / "clone"
    repo = pygit2.clone_repository(url, str(clone), depth=2)
    assert repo.is_shallow
    assert git("rev-list", "--count", "HEAD", cwd=clone).out == "2"
    repo.remotes["origin"].fetch(depth=5)
    assert git("rev-list", "--count", "HEAD", cwd=clone).out == "7"  # five from main and from side
    git("fsck", cwd=clone)


class Heard(pygit2.RemoteCallbacks):
    """What the server says of each ref."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str | None] = {}

    def push_update_reference(self, refname: str, message: str | None) -> None:
        self.reasons[refname] = message


def test_libgit2_hears_why_a_push_is_refused(
    url: str, bare: Path, tmp_path: Path, git: Git, history: list[str], head: Git
) -> None:
    git("config", "receive.denyNonFastForwards", "true", cwd=bare)
    repo = pygit2.clone_repository(url, str(tmp_path / "clone"))
    repo.references.create("refs/heads/old", history[0])
    heard = Heard()
    repo.remotes["origin"].push(["+refs/heads/old:refs/heads/main"], callbacks=heard)
    assert heard.reasons == {"refs/heads/main": "non-fast-forward"}
    assert head(bare, "main") == history[-1]


# -- git in each version -----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_git_in_each_version(
    url: str,
    bare: Path,
    work: Path,
    tmp_path: Path,
    git: Git,
    commit: Git,
    head: Git,
    version: str,
) -> None:
    def speak(*words: str, cwd: Path) -> str:
        return git("-c", f"protocol.version={version}", *words, cwd=cwd).out

    assert f"{head(work)}\trefs/heads/main" in speak("ls-remote", url, cwd=tmp_path)
    clone, shallow = tmp_path / "clone", tmp_path / "shallow"
    speak("clone", "-q", url, str(clone), cwd=tmp_path)
    speak("clone", "-q", "--depth=2", url, str(shallow), cwd=tmp_path)
    newer = commit(work, "newer")
    git("push", "-q", "origin", "main", cwd=work)
    for place, count in ((clone, COMMITS + 1), (shallow, 3)):
        speak("pull", "-q", "--ff-only", cwd=place)
        assert head(place) == newer
        assert git("rev-list", "--count", "HEAD", cwd=place).out == str(count)
    speak("fetch", "-q", "--deepen=2", cwd=shallow)
    assert git("rev-list", "--count", "HEAD", cwd=shallow).out == "5"
    # Without following tags: for the one that is excluded git asks again, and gets no commits.
    speak("fetch", "-q", "--no-tags", "--shallow-exclude=v1", cwd=shallow)
    speak("fetch", "-q", "--unshallow", cwd=shallow)
    assert git("rev-list", "--count", "HEAD", cwd=shallow).out == str(COMMITS + 1)
    for number, place in enumerate((clone, shallow)):
        mine = commit(place, f"mine{number}")
        speak("pull", "-q", "--rebase", cwd=place)
        mine = head(place)
        speak("push", "-q", "origin", "HEAD:main", cwd=place)
        assert head(bare, "main") == mine
        git("fsck", "--full", cwd=place)


# -- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["libgit2", "dulwich"])
def test_8_43_other_clients_take_the_packets_that_break_a_silence(
    url: str, bare: Path, tmp_path: Path, git: Git, commit: Git, head: Git, who: str
) -> None:
    git("config", "receive.keepAlive", "1", cwd=bare)
    hook = bare / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nsleep 2.2\necho said\n")
    hook.chmod(0o755)
    git("clone", "-q", url, "clone", cwd=tmp_path)
    mine = new_commit(git, tmp_path / "clone", commit)
    words = io.BytesIO()
    if who == "libgit2":
        pygit2.Repository(str(tmp_path / "clone")).remotes["origin"].push(["refs/heads/main"])
    else:
        with closing(Repo(str(tmp_path / "clone"))) as repo:
            porcelain.push(repo, url, "refs/heads/main", outstream=words, errstream=words)
        assert b"said" in words.getvalue()
    assert head(bare, "main") == mine
