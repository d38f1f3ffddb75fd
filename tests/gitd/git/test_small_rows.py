"""Rows of docs/git-server.md that need one request each, and settings of repositories."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Git = Callable[..., Any]
UPLOAD, RECEIVE = "git-upload-pack", "git-receive-pack"
CAPS = "report-status side-band-64k delete-refs"


def advertisement(server: Any, bare: Path, service: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{server.url_of(bare)}/info/refs?service={service}"
    return server.client.get(url, headers=named)


@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
def test_1_13_and_1_20_what_a_client_accepts_or_is_called_changes_nothing(
    server: Any, bare: Path, work: Path, service: str
) -> None:
    plain = advertisement(server, bare, service)
    assert plain.status_code == 200
    told = advertisement(
        server,
        bare,
        service,
        Accept="application/x-nothing",
        Accept_Language="ko-KR, *;q=0.1",
        User_Agent="git/1.6.5",
        Cookie="a=b",
        Pragma="x",
    )
    assert told.content == plain.content
    content_type = f"application/x-{service}-request"
    posted = server.post(
        bare, service, b"0000", Content_Type=content_type, Accept="text/html", Accept_Language="ko"
    )
    assert (posted.status_code, posted.content) == (200, b"")


def test_short_answers_are_sent_in_one_piece(
    server: Any, bare: Path, work: Path, wire: Any, raw: Any, head: Any
) -> None:
    """What has nothing to wait for behind it is known to its end before it is sent."""
    tip = head(bare, "main")
    packets = [f"{tip} {'0' * 40} refs/heads/gone\0{CAPS}", f"{tip} {tip} refs/heads/main"]
    body = b"".join(raw.pkt(packet) for packet in packets) + b"0000"
    pushed = server.post(bare, RECEIVE, body + wire.pack(tip, f"^{tip}"))
    assert len(raw.parse_push_answer(pushed).report) == 3
    listed = server.post(
        bare, UPLOAD, raw.pkt("command=ls-refs\n") + b"0000", Git_Protocol="version=2"
    )
    assert tip.encode() in listed.content
    for answer in (pushed, listed):
        assert int(answer.headers["Content-Length"]) == len(answer.content)


@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
def test_1_18_nothing_is_redirected(server: Any, bare: Path, service: str) -> None:
    for path in (bare.name, bare.name.removesuffix(".git")):
        url = f"{server.url}/{path}/info/refs?service={service}"
        assert server.client.get(url, follow_redirects=False).status_code == 200
        posted = server.client.post(
            f"{server.url}/{path}/{service}",
            content=b"0000",
            headers={"Content-Type": f"application/x-{service}-request"},
            follow_redirects=False,
        )
        assert posted.status_code == 200


@pytest.mark.parametrize("number", ["1" * 5000, "01", "\u0661", "-1", ""])
def test_4_a_version_that_is_none_means_version_0(
    server: Any, bare: Path, work: Path, number: str
) -> None:
    got = server.client.get(
        f"{server.url_of(bare)}/info/refs?service={UPLOAD}",
        headers={b"Git-Protocol": f"version={number}".encode()},
    )
    assert got.content == advertisement(server, bare, UPLOAD).content


def test_6_a_session_is_named_where_that_is_wished(
    server: Any, name: str, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    bare = server.create(name, transfer__advertiseSID="true")
    work = tmp_path / "w"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    git("config", "transfer.advertiseSID", "true", cwd=work)
    new = commit(work, "one")
    git("push", "-q", server.url_of(bare), "main", cwd=work)
    for service, version in ((UPLOAD, "0"), (UPLOAD, "2"), (RECEIVE, "0")):
        texts = {
            advertisement(server, bare, service, Git_Protocol=f"version={version}").text
            for _ in range(2)
        }
        assert len(texts) == 2
        assert all(text.count("session-id=") == 1 for text in texts)
    for version in ("0", "2"):
        settings = ("-c", f"protocol.version={version}", "-c", "transfer.advertiseSID=true")
        git(*settings, "clone", "-q", server.url_of(bare), f"c{version}", cwd=tmp_path)
        assert head(tmp_path / f"c{version}") == new


def test_6_too_many_prefixes_are_no_prefixes(
    server: Any, bare: Path, work: Path, raw: Any, git: Git
) -> None:
    git("push", "-q", "origin", "main:refs/notes/x", cwd=work)

    def listed(count: int) -> list[bytes]:
        body = raw.pkt("command=ls-refs\n") + b"0001"
        body += raw.pkt("ref-prefix refs/heads/\n") * count + b"0000"
        got = server.post(bare, UPLOAD, body, Git_Protocol="version=2")
        return [line.split()[1] for line in raw.unpkt(got.content) if line]

    assert listed(65536) == [b"refs/heads/main"]
    assert listed(65537) == [b"HEAD", b"refs/heads/main", b"refs/notes/x"]


@pytest.mark.parametrize("is_included", [False, True])
@pytest.mark.parametrize("is_shown_last", [False, True])
def test_4_the_last_pattern_of_hidden_refs_decides_whichever_key_has_it(
    server: Any, bare: Path, work: Path, *, is_included: bool, is_shown_last: bool
) -> None:
    """`uploadpack.hideRefs` beats `transfer.hideRefs` only where it stands behind it."""
    hide, show = "[uploadpack]\nhideRefs = refs/heads\n", "[transfer]\nhideRefs = !refs/heads\n"
    first, last = (hide, show) if is_shown_last else (show, hide)
    config = bare / "config"
    if is_included:
        (bare / "more").write_text(first)
        first = "[include]\npath = more\n"
    config.write_text(config.read_text() + first + last)
    shown = " refs/heads/main" in advertisement(server, bare, UPLOAD).text
    assert shown == is_shown_last


def test_files_of_a_shared_repository_are_shared(
    server: Any, bare: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    git("config", "core.sharedRepository", "group", cwd=bare)
    git("config", "core.logAllRefUpdates", "true", cwd=bare)
    work = tmp_path / "w"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    git("push", "-q", server.url_of(bare), "main", "main:refs/heads/deep/er/x", cwd=work)
    commit(work, "two", big="x" * 400_000)
    git("push", "-q", "--atomic", server.url_of(bare), "main", "main:refs/tags/t", cwd=work)
    places = ["packed-refs", "refs/heads/deep", "refs/heads/deep/er", "refs/heads/deep/er/x"]
    places += ["logs/refs/heads", "logs/refs/heads/main"]
    for path in [*(bare / place for place in places), *(bare / "objects/pack").iterdir()]:
        mode = path.stat().st_mode
        wanted = stat.S_IRGRP
        if path.is_dir():
            wanted |= stat.S_IWGRP | stat.S_IXGRP | stat.S_ISGID
        elif mode & stat.S_IWUSR:
            wanted |= stat.S_IWGRP
        assert mode & wanted == wanted, (path, oct(mode))


def test_a_wish_for_sharing_that_is_none_is_said(server: Any, bare: Path, git: Git) -> None:
    (bare / "config").write_text((bare / "config").read_text() + "[core]\nsharedRepository=0060\n")
    got = advertisement(server, bare, UPLOAD)
    assert got.status_code == 500
    assert "core.sharedrepository" in got.text


def test_a_commit_of_no_time_that_exists_is_taken_as_git_takes_it(
    server: Any, bare: Path, tmp_path: Path, wire: Any, raw: Any, git: Git
) -> None:
    """More digits than Python turns into a number, and than a machine word holds."""
    null = "0" * 40
    for number, digits in enumerate(("9" * 5000, "9" * 19, "99999999999999999999")):
        tree = raw.oid_of("tree", b"")
        text = (
            f"tree {tree}\nauthor A <a@b> {digits} +0000\ncommitter A <a@b> {digits} +0000\n\nx\n"
        )
        oid = raw.oid_of("commit", text.encode())
        pack = raw.make_pack(("tree", b""), ("commit", text.encode()))
        answer = wire.push((null, oid, f"refs/heads/t{number}"), pack=pack)
        assert answer.refs == {f"refs/heads/t{number}": "ok"}
    git("clone", "-q", "--bare", server.url_of(bare), "copy", cwd=tmp_path)
    git("clone", "-q", "--bare", "--depth=1", server.url_of(bare), "shallow", cwd=tmp_path)
