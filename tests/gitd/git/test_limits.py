"""Settings of `[git]`: what exceeds them is refused in words that the user reads."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gitd.config import GitConfig
from gitd.git.limits import GitLimits

Git = Callable[..., Any]
NONE = "0" * 40


@pytest.fixture
def server(strict_server: Any) -> Any:
    """All that the fixtures make is on the strict one here."""
    return strict_server


def test_every_setting_is_a_bound_with_the_same_default() -> None:
    assert asdict(GitConfig()).items() <= asdict(GitLimits()).items()


def test_a_wrong_setting_is_told_by_name(tmp_path: Path) -> None:
    for text, environ, says in (
        ("[git]\nrefs_maximum = 3", {}, "unknown key git.refs_maximum; did you mean git.refs_max?"),
        ("[git]\npack_bytes_max = '4 apples'", {}, "git.pack_bytes_max: '4 apples' is no size"),
        ("", {"GITD_GIT_IDLE_S": "0"}, "git.idle_s: 0.0 is not from"),
    ):
        config = tmp_path / "c.toml"
        config.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "gitd.git", "--root", str(tmp_path), "--listen", "127.0.0.1:0",
             "--config", str(config)],
            env={**os.environ, **environ}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2
        assert says in done.stderr


def test_an_address_that_is_taken_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "gitd.git", "--root", str(tmp_path), "--listen", address],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen on {address}: ")
    assert done.stderr.endswith("address already in use. Choose another with --listen.\n")


def test_a_port_that_is_none_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gitd.git", "--root", str(tmp_path), "--listen", "127.0.0.1:65536"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--listen: '127.0.0.1:65536' is no address" in done.stderr


def test_refs_of_one_push(work: Path, git: Git) -> None:
    refs = [f"main:refs/heads/b{number}" for number in range(4)]
    done = git("push", "origin", *refs, cwd=work, check=False)
    assert done.status == 1
    assert (
        "! [remote rejected] main -> b0 (a push may update 3 refs at most (git.commands_max)"
        in done.err
    )


def test_refs_of_a_repository(work: Path, bare: Path, git: Git) -> None:
    git("push", "-q", "origin", "main:refs/heads/b1", cwd=work)
    refs = [f"main:refs/heads/b{number}" for number in (2, 3)]
    done = git("push", "origin", *refs, cwd=work, check=False)
    assert "[new branch]      main -> b2" in done.err
    assert (
        "[remote rejected] main -> b3 (a repository may have 3 refs at most (git.refs_max)"
        in done.err
    )
    assert len(git("for-each-ref", cwd=bare).out.splitlines()) == 3
    git("push", "-q", "origin", ":b1", cwd=work)
    git("push", "-q", "origin", "main:refs/heads/b3", cwd=work)


def test_refs_that_a_push_deletes_make_room_for_those_that_it_makes(
    work: Path, bare: Path, git: Git
) -> None:
    git("push", "-q", "origin", "main:refs/heads/b1", "main:refs/heads/b2", cwd=work)
    git("push", "-q", "--atomic", "origin", "main:refs/heads/a1", ":b1", ":b2", cwd=work)
    git("push", "-q", "origin", "main:refs/heads/a2", cwd=work)
    done = git("push", "origin", "main:refs/heads/a3", "main:refs/heads/a4", ":a1", cwd=work,
               check=False)  # fmt: skip
    assert "[new branch]      main -> a3" in done.err
    assert "[remote rejected] main -> a4 (a repository may have 3 refs at most" in done.err
    assert len(git("for-each-ref", cwd=bare).out.splitlines()) == 3


@pytest.mark.parametrize("way", ["hook", "stale"])
def test_a_ref_that_is_not_deleted_after_all_makes_no_room(
    work: Path, bare: Path, git: Git, wire: Any, way: str
) -> None:
    git("push", "-q", "origin", "main:refs/heads/b1", "main:refs/heads/b2", cwd=work)
    old = tip = git("rev-parse", "HEAD", cwd=work).out.strip()
    if way == "hook":
        hook = bare / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text('#!/bin/sh\ncase "$1" in refs/heads/b1) exit 1;; esac\n')
        hook.chmod(0o755)
    else:
        old = git("rev-parse", "HEAD^{tree}", cwd=work).out.strip()
    got = wire.push(
        (old, NONE, "refs/heads/b1"),
        (NONE, tip, "refs/heads/b3"),
        pack=wire.pack(tip, f"^{tip}"),
    )
    assert "git.refs_max" in got.refs["refs/heads/b3"]
    assert got.refs["refs/heads/b1"] != "ok"
    assert len(git("for-each-ref", cwd=bare).out.splitlines()) == 3


@pytest.mark.parametrize("options", [["a", "b", "c"], ["a" * 21]])
def test_push_options(work: Path, bare: Path, git: Git, options: list[str]) -> None:
    git("config", "receive.advertisePushOptions", "true", cwd=bare)
    words = [word for option in options for word in ("-o", option)]
    done = git("push", *words, "origin", "main:b", cwd=work, check=False)
    assert done.status == 1
    assert "a push may have 2 options of 20 bytes at most (git.push_options_max, " in done.err
    git("push", "-q", "-o", "a", "-o", "b", "origin", "main:b", cwd=work)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {f"f{number}": 50_000 for number in range(5)},
            "allowed size (204.8 kB, git.pack_bytes_max)",
        ),
        (
            {"f": 110_000},
            "an object has 110000 bytes; at most 102400 are taken (git.object_bytes_max)",
        ),
        (
            {f"f{number}": 10 for number in range(9)},
            "pack has 11 objects; at most 9 are taken (git.objects_max)",
        ),
    ],
)
def test_sizes_of_a_pack(
    work: Path, git: Git, commit: Git, files: dict[str, int], says: str
) -> None:
    for name, size in files.items():
        (work / name).write_bytes(os.urandom(size))
    commit(work, "more", more="x") if len(files) < 9 else commit(work, "more", f0="x")
    done = git("push", "origin", "main", cwd=work, check=False)
    assert done.status == 1
    assert says in done.err
    assert "(unpacker error)" in done.err


def test_wants_haves_and_the_size_of_a_request(
    server: Any, bare: Path, work: Path, raw: Any, head: Git
) -> None:
    tip = head(work)
    for word in ("want", "have"):
        lines = b"".join(raw.pkt(f"{word} {number:040x}\n") for number in range(4))
        body = raw.pkt("command=fetch\n") + b"0001" + raw.pkt(f"want {tip}\n") + lines + b"0000"
        got = server.post(bare, "git-upload-pack", body, Git_Protocol="version=2")
        told = f"{word}s: 3 at most (git.{word}s_max); fetch fewer refs at once"
        assert got.content[4:].decode() == f"ERR upload-pack: too many {told}"
    wants = b"".join(raw.pkt(f"want {number:040x}\n") for number in range(4))
    got = server.post(bare, "git-upload-pack", wants + b"0000")
    assert got.content[4:].startswith(b"ERR upload-pack: too many wants: 3 at most (git.wants_max)")
    body = raw.pkt("command=ls-refs\n") + b"0001" + raw.pkt("ref-prefix " + "x" * 60_000) * 2
    got = server.post(bare, "git-upload-pack", body + b"0000", Git_Protocol="version=2")
    assert got.status_code == 413
    assert b"bytes (git.request_bytes_max)" in got.content


def answer_of(client: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def test_clients_that_send_nothing_are_told_so(
    server: Any, bare: Path, work: Path, raw: Any
) -> None:
    """2.9: there is no total time, but one without a byte."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    silence = "the client sent nothing for too long (3 s, git.idle_s)"
    push = raw.pkt(f"{NONE} {'1' * 40} refs/heads/x\0report-status side-band-64k") + b"0000PACK"
    with contextlib.ExitStack() as stack:

        def stalled(service: str, body: bytes) -> socket.socket:
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            head = (
                f"POST /{bare.name}/{service} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                f"Content-Type: application/x-{service}-request\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            return client

        services = ("git-upload-pack", "git-receive-pack")
        starts = (b"", b"00", b"0032want ")
        early = [stalled(service, start) for service in services for start in starts]
        late = stalled("git-receive-pack", push)
        for client in early:
            assert answer_of(client) == (408, f"{silence}\n".encode())
        status, report = answer_of(late)
    assert status == 200
    assert f"unpack {silence}\n".encode() in report
    assert b"ng refs/heads/x unpacker error\n" in report
    assert not list((bare / "objects").rglob("tmp_*"))
