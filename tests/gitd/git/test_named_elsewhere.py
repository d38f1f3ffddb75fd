"""Data that a CDN holds: bundle-uri and packfile-uris, and the side band that carries them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]
V2 = ("-c", "protocol.version=2")


@pytest.fixture
def banded(work: Path, bare: Path, git: Git) -> Path:
    """A repository that puts all lines of a fetch on the side band."""
    git("config", "uploadpack.allowSidebandAll", "true", cwd=bare)
    return bare


def place_elsewhere(server: Any, bare: Path, revision: str, git: Git, head: Git) -> None:
    """Put one blob into a pack of its own, handed out as a CDN would."""
    blob = head(bare, revision)
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"],
        input=f"{blob}\n".encode(), cwd=bare, capture_output=True, check=True,
    ).stdout  # fmt: skip
    cdn = server.create(f"cdn-{bare.name}")
    digest = git("index-pack", "--stdin", cwd=cdn, stdin=pack).out.split()[-1]
    url = f"{server.url_of(cdn)}/objects/pack/pack-{digest}.pack"
    git("config", "uploadpack.blobPackfileUri", f"{blob} {digest} {url}", cwd=bare)


@pytest.mark.parametrize("depth", [[], ["--depth", "1"]])
def test_6_git_understands_an_answer_all_on_bands(
    banded: Path, work: Path, server: Any, tmp_path: Path, git: Git, commit: Git, head: Git,
    depth: list[str],
) -> None:  # fmt: skip
    trace = tmp_path / "trace"
    git(*V2, "clone", "-q", *depth, server.url_of(banded), "c", cwd=tmp_path,
        GIT_TRACE_PACKET=str(trace))  # fmt: skip
    assert "sideband-all" in trace.read_text()
    new = commit(work, "two")
    git("push", "-q", "origin", "main", cwd=work)
    git(*V2, "fetch", "-q", cwd=tmp_path / "c")
    assert head(tmp_path / "c", "origin/main") == new


def test_6_a_refusal_stands_on_band_3_then(banded: Path, server: Any, raw: Any) -> None:
    lines = [
        "command=fetch\n", None, "sideband-all\n", "want " + "1" * 40 + "\n", "done\n",
    ]  # fmt: skip
    data = b"".join(b"0001" if line is None else raw.pkt(line) for line in lines) + b"0000"
    got = server.post(banded, "git-upload-pack", data, Git_Protocol="version=2")
    packets = [packet for packet in raw.unpkt(got.content) if packet]
    assert packets == [b"\3upload-pack: not our ref " + b"1" * 40]


def test_6_sideband_all_is_for_those_to_whom_it_is_offered(
    work: Path, bare: Path, server: Any, raw: Any
) -> None:
    data = raw.pkt("command=fetch\n") + b"0001" + raw.pkt("sideband-all\n") + b"0000"
    got = server.post(bare, "git-upload-pack", data, Git_Protocol="version=2")
    assert b"ERR unexpected line: 'sideband-all'" in got.content


def test_6_a_clone_takes_a_blob_from_where_it_is_said_to_be(
    banded: Path, work: Path, server: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    commit(work, "big", big="kept elsewhere\n" * 100)
    git("push", "-q", "origin", "main", cwd=work)
    place_elsewhere(server, banded, "main:big", git, head)
    git(*V2, "-c", "fetch.uriProtocols=http,https", "clone", "-q", server.url_of(banded), "c",
        cwd=tmp_path)  # fmt: skip
    clone = tmp_path / "c"
    assert (clone / "big").read_text() == "kept elsewhere\n" * 100
    assert len(list((clone / ".git/objects/pack").glob("*.pack"))) == 2
    git("fsck", "--strict", cwd=clone)
    # Without a protocol that it may use, or without the wish, all comes from here.
    for number, wish in enumerate((["-c", "fetch.uriProtocols=https"], [])):
        git(*V2, *wish, "clone", "-q", server.url_of(banded), f"d{number}", cwd=tmp_path)
        assert len(list((tmp_path / f"d{number}/.git/objects/pack").glob("*.pack"))) == 1


def test_6_a_wish_for_uris_may_stand_once(
    banded: Path, server: Any, raw: Any, git: Git, head: Git
) -> None:
    setting = f"{head(banded)} {'1' * 40} http://example.org/x"
    git("config", "uploadpack.blobPackfileUri", setting, cwd=banded)
    wish = raw.pkt("packfile-uris http\n")
    data = raw.pkt("command=fetch\n") + b"0001" + wish + wish + b"0000"
    got = server.post(banded, "git-upload-pack", data, Git_Protocol="version=2")
    assert b"ERR multiple packfile-uris lines forbidden" in got.content


def test_6_bundles_are_listed_as_they_are_configured(
    work: Path, bare: Path, server: Any, raw: Any, git: Git
) -> None:
    ask = raw.pkt("command=bundle-uri\n")
    refused = server.post(bare, "git-upload-pack", ask + b"0000", Git_Protocol="version=2")
    assert b"ERR invalid command 'bundle-uri'" in refused.content
    for key, value in (
        ("uploadpack.advertiseBundleURIs", "true"),
        ("bundle.version", "1"),
        ("bundle.mode", "all"),
        ("bundle.Base.uri", "https://example.org/base.bundle"),
    ):
        git("config", key, value, cwd=bare)
    offer = server.client.get(
        f"{server.url_of(bare)}/info/refs?service=git-upload-pack",
        headers={"Git-Protocol": "version=2"},
    )
    assert b"bundle-uri\n" in raw.unpkt(offer.content)
    got = server.post(bare, "git-upload-pack", ask + b"0000", Git_Protocol="version=2")
    assert raw.unpkt(got.content) == [
        b"bundle.version=1",
        b"bundle.mode=all",
        b"bundle.Base.uri=https://example.org/base.bundle",
        None,
    ]
    wrong = ask + b"0001" + raw.pkt("nonsense\n") + b"0000"
    got = server.post(bare, "git-upload-pack", wrong, Git_Protocol="version=2")
    assert b"ERR bundle-uri: unexpected argument: 'nonsense'" in got.content
