"""mf artifacts export and verify: files that are whole or not there, and clear ends."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web

EXPORT = "/v1/sites/acme-store/environments/production/artifacts/art_01/export"
PLACE = ("--site", "acme-store", "--env", "production")


def answer(data: bytes, *, sent: int | None = None):
    """Answer with these bytes; or promise them and break off after `sent`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:sent])
        if sent is not None:
            request.transport.close()
        return response

    return handle


def test_export_writes_what_comes(mf, peer, tmp_path: Path) -> None:
    peer.on("GET", EXPORT, answer(b"\x00archive" * 1000))
    target = tmp_path / "it.tar"
    ran = mf("artifacts", "export", "art_01", *PLACE, "-o", str(target))
    assert (ran.code, ran.err) == (0, "")
    assert target.read_bytes() == b"\x00archive" * 1000
    assert f"mf artifacts verify {target}" in ran.out
    said = mf("artifacts", "export", "art_01", *PLACE, "-o", str(target), "--json").json
    assert said == {"artifact": "art_01", "file": str(target), "size": 8000}


def test_export_that_breaks_off_is_begun_again(mf, peer, tmp_path: Path) -> None:
    data = b"archive" * 10_000
    peer.on("GET", EXPORT, answer(data, sent=30_000), answer(data, sent=0), answer(data))
    target = tmp_path / "it.tar"
    assert mf("artifacts", "export", "art_01", *PLACE, "-o", str(target)).code == 0
    assert target.read_bytes() == data
    assert len(peer.seen) == 3


def test_export_that_is_refused_or_never_whole_leaves_no_file(mf, peer, tmp_path: Path) -> None:
    target = tmp_path / "it.tar"
    target.write_bytes(b"of yesterday")
    peer.on("GET", EXPORT, peer.refusal(409, "artifact.revoked", "no"))
    assert mf("artifacts", "export", "art_01", *PLACE, "-o", str(target)).code == 3
    peer.on("GET", EXPORT, answer(b"archive" * 10_000, sent=30_000))
    assert mf("artifacts", "export", "art_01", *PLACE, "-o", str(target)).code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["it.tar"]
    assert target.read_bytes() == b"of yesterday"


def test_draft_of_an_export_that_was_killed_goes_with_the_next_one(
    mf, peer, tmp_path: Path
) -> None:
    peer.on("GET", EXPORT, answer(b"archive"))
    target = tmp_path / "it.tar"
    killed, others = tmp_path / "it.tar.0123abcd.part", tmp_path / "at.tar.0123abcd.part"
    held = tmp_path / "it.tar.76543210.part"
    for path in (killed, others, held):
        path.write_bytes(b"arch")
        os.utime(path, (1, 1))
    with held.open("rb") as draft:
        fcntl.flock(draft, fcntl.LOCK_EX)  # of one that goes on
        assert mf("artifacts", "export", "art_01", *PLACE, "-o", str(target)).code == 0
    assert {*tmp_path.iterdir()} == {target, others, held}


def test_what_is_named_as_a_draft_and_is_no_file_is_left_alone(mf, peer, tmp_path: Path) -> None:
    """A pipe that nobody writes to would halt the export; a link leads to somebody's file."""
    peer.on("GET", EXPORT, answer(b"archive"))
    target, pointed_at = tmp_path / "it.tar", tmp_path / "notes"
    pointed_at.write_bytes(b"notes")
    pipe, link = tmp_path / "it.tar.0123abcd.part", tmp_path / "it.tar.76543210.part"
    os.mkfifo(pipe)
    link.symlink_to(pointed_at)
    for path in (pipe, pointed_at):
        os.utime(path, (1, 1))
    assert mf("artifacts", "export", "art_01", *PLACE, "-o", str(target)).code == 0
    assert {*tmp_path.iterdir()} == {target, pointed_at, pipe, link}


def test_two_exports_to_one_name_at_once_each_write_a_whole_file(mf, peer, tmp_path: Path) -> None:
    data = {"first": b"1" * 300_000, "second": b"2" * 200_000}
    target = tmp_path / "it.tar"
    has_begun, may_end = threading.Event(), threading.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data["first"]))})
        await response.prepare(request)
        await response.write(data["first"][:100_000])
        has_begun.set()
        await asyncio.to_thread(may_end.wait, 30)
        await response.write(data["first"][100_000:])
        return response

    peer.on("GET", EXPORT, slow, answer(data["second"]))
    export = ("artifacts", "export", "art_01", *PLACE, "-o", str(target))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(mf, *export)
        assert has_begun.wait(30)
        assert mf(*export).code == 0
        assert target.read_bytes() == data["second"]
        may_end.set()
        assert (first.result().code, first.result().err) == (0, "")
    assert target.read_bytes() == data["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["it.tar"]


def test_file_that_cannot_be_written_is_said(mf, peer, tmp_path: Path) -> None:
    ran = mf("artifacts", "export", "art_01", *PLACE, "-o", str(tmp_path / "no" / "it.tar"))
    assert ran.code == 2
    assert "cannot be written" in ran.err
    assert peer.seen == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("it.tar", "--manifest", "it.tar"), "are for folders"),
        (("it.tar", "--proof", "it.tar"), "are for folders"),
        ((".", "--manifest", "it.tar", "--root-key", "x"), "give it alone"),
        (("it.tar", "--root-key", "ed25519:00"), "'ed25519:00' is no key id"),
        ((".", "--manifest", "it.tar", "--min-generation", "2"), "give it alone"),
        (("it.tar", "--trust", "gone"), "is not there"),
        (("gone",), "is not there"),
        ((".", "--proof", "gone"), "is not there"),
        ((".",), "proves it"),
    ],
)
def test_wrong_usage_of_verify_is_said(mf, tmp_path: Path, arguments, message: str) -> None:
    (tmp_path / "it.tar").write_bytes(b"")
    files = {"it.tar", "gone", "."}
    paths = [str(tmp_path / word) if word in files else word for word in arguments]
    ran = mf("artifacts", "verify", *paths)
    assert ran.code == 2
    assert message in ran.err


def test_what_is_not_proven_is_code_1(mf, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "it.tar", "w") as tar:
        member = tarfile.TarInfo("art_01/\x1b]0;title\x07FORMAT")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    ran = mf("artifacts", "verify", str(tmp_path / "it.tar"))
    assert ran.code == 1
    assert "nothing that a proof has" in ran.err
    assert "\x1b" not in ran.err
    ran = mf("artifacts", "verify", str(tmp_path / "it.tar"), "--json")
    assert (ran.code, ran.out) == (1, "")
    assert json.loads(ran.err)["error"]["code"] == "artifact.corrupt"
