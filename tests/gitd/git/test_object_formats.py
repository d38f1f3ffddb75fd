"""Repositories with SHA-256 ids: an empty one is cloned, others are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]


@pytest.fixture
def sha256(server: Any, name: str, git: Git) -> Path:
    path = server.root / name
    git("init", "-q", "--bare", "-b", "trunk", "--object-format=sha256", path, cwd=server.root)
    git("config", "http.receivepack", "true", cwd=path)
    return path


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_an_empty_repository_is_cloned(
    server: Any, sha256: Path, tmp_path: Path, git: Git, version: str
) -> None:
    """t5551 "clone empty SHA-256 repository". Clients since git 2.42 take its format over."""
    url = server.url_of(sha256)
    git("-c", f"protocol.version={version}", "clone", "-q", url, "c", cwd=tmp_path)
    assert (tmp_path / "c/.git/HEAD").read_text() in (
        "ref: refs/heads/trunk\n",
        "ref: refs/heads/master\n",  # versions 0 and 1 do not tell an unborn branch
    )
    assert git("-c", f"protocol.version={version}", "ls-remote", url, cwd=tmp_path).out == ""


def test_the_lists_of_an_empty_repository_name_its_format(
    server: Any, sha256: Path, raw: Any
) -> None:
    url = f"{server.url_of(sha256)}/info/refs?service=git-upload-pack"
    lines = raw.unpkt(server.client.get(url).content)
    assert lines[2].startswith(b"0" * 64 + b" capabilities^{}\0")
    assert b" object-format=sha256 " in lines[2]
    lines = raw.unpkt(server.client.get(url, headers={"Git-Protocol": "version=2"}).content)
    assert b"object-format=sha256\n" in lines
    body = raw.pkt("command=ls-refs\n") + raw.pkt("object-format=sha256") + b"0001"
    body += raw.pkt("symrefs\n") + raw.pkt("unborn\n") + b"0000"
    got = server.post(sha256, "git-upload-pack", body, Git_Protocol="version=2")
    assert raw.unpkt(got.content) == [b"unborn HEAD symref-target:refs/heads/trunk\n", None]


def test_a_client_of_another_format_is_told(server: Any, sha256: Path, raw: Any) -> None:
    got = server.post(
        sha256, "git-upload-pack", raw.pkt("command=ls-refs\n") + b"0000", Git_Protocol="version=2"
    )
    assert got.content[4:] == b"ERR mismatched object format: server sha256; client sha1"
    want = raw.pkt(f"want {'1' * 40} object-format=sha1\n") + b"0000"
    got = server.post(sha256, "git-upload-pack", want)
    assert got.content[4:] == b"ERR upload-pack: unsupported object format"


def test_a_push_is_refused_in_words(
    server: Any, sha256: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    work = tmp_path / "w"
    git("init", "-q", "--object-format=sha256", work, cwd=tmp_path)
    commit(work, "one")
    done = git("push", server.url_of(sha256), "HEAD:main", cwd=work, check=False)
    assert done.status != 0
    assert "remote: A repository with SHA-256 ids takes no pushes here." in done.err
    assert "error: 403" in done.err


def test_a_repository_that_has_objects_is_refused_in_words(
    server: Any, sha256: Path, tmp_path: Path, git: Git, commit: Git, raw: Any
) -> None:
    """Also one that was empty when it was seen first."""
    git("ls-remote", server.url_of(sha256), cwd=tmp_path)
    work = tmp_path / "w"
    git("init", "-q", "--object-format=sha256", work, cwd=tmp_path)
    commit(work, "one")
    git("push", "-q", sha256, "HEAD:trunk", cwd=work)
    for version in ("0", "2"):
        done = git("-c", f"protocol.version={version}", "clone", server.url_of(sha256), "c",
                   cwd=tmp_path, check=False)  # fmt: skip
        assert "this server reads those of SHA-1 only" in done.err
        assert "error: 403" in done.err
    got = server.post(
        sha256, "git-upload-pack", raw.pkt("command=ls-refs\n") + b"0000", Git_Protocol="version=2"
    )
    assert got.status_code == 403


def test_unknown_extensions_are_refused_by_name(
    server: Any, bare: Path, work: Path, git: Git
) -> None:
    git("config", "core.repositoryFormatVersion", "1", cwd=bare)
    git("config", "extensions.refStorage", "reftable", cwd=bare)
    for _ in range(2):  # what is open already, and what is opened anew
        done = git("ls-remote", server.url_of(bare), cwd=work, check=False)
        assert "extension refstorage=reftable is not supported" in done.err
        assert "error: 403" in done.err
