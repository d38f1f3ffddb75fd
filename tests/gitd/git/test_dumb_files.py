"""Repositories as plain files, where an operator lets them be (docs/git-server.md, 1.5, 1.17)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Git = Callable[..., Any]


def get(server: Any, bare: Path, file: str) -> httpx.Response:
    answer = server.client.get(f"{server.url_of(bare)}/{file}")
    assert isinstance(answer, httpx.Response)
    return answer


def require_no_cache(answer: httpx.Response) -> None:
    assert answer.headers["Cache-Control"] == "no-cache, max-age=0, must-revalidate"
    assert answer.headers["Pragma"] == "no-cache"


@pytest.fixture
def tagged(work: Path, bare: Path, git: Git) -> Path:
    """A repository with an annotated tag, one pack and no loose object."""
    git("tag", "-a", "-m", "first", "v1", cwd=work)
    git("push", "-q", "origin", "v1", cwd=work)
    git("repack", "-a", "-d", "-q", cwd=bare)
    return bare


def test_1_17_head_names_its_branch(server: Any, tagged: Path) -> None:
    answer = get(server, tagged, "HEAD")
    assert answer.status_code == 200
    assert answer.text == "ref: refs/heads/main\n"
    assert answer.headers["Content-Type"] == "text/plain"
    require_no_cache(answer)


def test_1_17_a_detached_head_is_a_commit(server: Any, tagged: Path, git: Git, head: Git) -> None:
    git("update-ref", "--no-deref", "HEAD", head(tagged), cwd=tagged)
    assert get(server, tagged, "HEAD").text == head(tagged) + "\n"


def test_1_5_refs_are_listed_with_what_tags_name(
    server: Any, tagged: Path, head: Git, git: Git
) -> None:
    git("update-ref", "refs/secret/one", head(tagged), cwd=tagged)
    git("config", "transfer.hideRefs", "refs/secret", cwd=tagged)
    answer = get(server, tagged, "info/refs")
    assert answer.text == (
        f"{head(tagged)}\trefs/heads/main\n"
        f"{head(tagged, 'v1')}\trefs/tags/v1\n"
        f"{head(tagged)}\trefs/tags/v1^{{}}\n"
    )
    require_no_cache(answer)


def test_1_17_packs_are_listed_and_may_be_kept_for_ever(server: Any, tagged: Path) -> None:
    (pack,) = (tagged / "objects/pack").glob("*.pack")
    assert get(server, tagged, "objects/info/packs").text == f"P {pack.name}\n\n"
    for path, kind in (
        (pack, "application/x-git-packed-objects"),
        (pack.with_suffix(".idx"), "application/x-git-packed-objects-toc"),
    ):
        answer = get(server, tagged, f"objects/pack/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["Content-Type"] == kind
        assert answer.headers["Cache-Control"] == "public, max-age=31536000"
        assert "Pragma" not in answer.headers


def test_1_17_a_loose_object_is_its_file(server: Any, bare: Path, git: Git) -> None:
    oid = git("hash-object", "-w", "--stdin", cwd=bare, stdin=b"loose").out
    answer = get(server, bare, f"objects/{oid[:2]}/{oid[2:]}")
    assert answer.content == (bare / "objects" / oid[:2] / oid[2:]).read_bytes()
    assert answer.headers["Content-Type"] == "application/x-git-loose-object"


@pytest.mark.parametrize(
    "file",
    ["objects/info/alternates", "objects/" + "ab/" + "c" * 38,
     "objects/pack/pack-" + "a" * 40 + ".pack"],
)  # fmt: skip
def test_1_17_what_is_not_there_is_not_found(server: Any, tagged: Path, file: str) -> None:
    answer = get(server, tagged, file)
    assert (answer.status_code, answer.content) == (404, b"")


@pytest.mark.parametrize("file", ["config", "hooks/pre-receive", "packed-refs", "refs/heads/main"])
def test_1_17_other_files_are_never_served(server: Any, tagged: Path, file: str) -> None:
    assert (tagged / "config").is_file()
    assert get(server, tagged, file).status_code == 404


def test_1_17_an_operator_keeps_files_back(server: Any, tagged: Path, git: Git) -> None:
    git("config", "http.getanyfile", "false", cwd=tagged)
    for file in ("info/refs", "HEAD", "objects/info/packs"):
        answer = get(server, tagged, file)
        assert (answer.status_code, answer.content) == (403, b"")


def test_1_17_git_clones_by_files_alone(
    server: Any, tagged: Path, tmp_path: Path, git: Git, head: Git
) -> None:
    git("clone", "-q", server.url_of(tagged), "c", cwd=tmp_path, GIT_SMART_HTTP="0")
    assert head(tmp_path / "c") == head(tagged)
    assert head(tmp_path / "c", "v1") == head(tagged, "v1")
    git("fsck", "--strict", cwd=tmp_path / "c")


def test_1_19_files_are_only_read(server: Any, tagged: Path) -> None:
    url = f"{server.url_of(tagged)}/HEAD"
    assert server.client.put(url, content=b"x").status_code == 405
    assert server.client.head(url).status_code == 200
