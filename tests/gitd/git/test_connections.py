"""docs/git-server.md, sections 1, 2 and 10: connections that wait or end early, or are too many."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.gitd.git.conftest import left_of_pushes

Git = Callable[..., Any]
SLOW_BYTES = 16 << 20  # more than the buffers of two sockets hold


def connect(server: Any, *, slowly: bool = False) -> socket.socket:
    parts = urlsplit(server.url)
    connection = socket.socket()
    if slowly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect((parts.hostname, parts.port))
    return connection


def configured(launch: Any, folder: Path, *lines: str) -> tuple[Any, Path]:
    """A server with such settings, and its log."""
    root, config, log = folder / "root", folder / "gitd.toml", folder / "log"
    root.mkdir()
    config.write_text("\n".join(["[server]", *lines]))
    return launch(root, "--config", str(config), log=log), log


def post(bare: Path, service: str, body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST /{bare.name}/{service} HTTP/1.1", "Host: x", *headers,
        f"Content-Type: application/x-{service}-request", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + body


def clone_request(raw: Any, bare: Path, tip: str) -> bytes:
    body = raw.pkt("command=fetch\n") + b"0001" + raw.pkt("no-progress\n")
    body += raw.pkt(f"want {tip}\n") + raw.pkt("done\n") + b"0000"
    length = f"Content-Length: {len(body)}"
    return post(bare, "git-upload-pack", body, "Git-Protocol: version=2", length)


@pytest.fixture
def large(tmp_path: Path, git: Git, commit: Git) -> Path:
    """A clone with one file that is larger than what buffers hold."""
    work = tmp_path / "large"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    (work / "big").write_bytes(os.urandom(SLOW_BYTES))
    commit(work, "big", other="x")
    return work


def test_a_stop_breaks_slow_readers_off_and_says_so(
    launch: Any, tmp_path: Path, large: Path, raw: Any, git: Git, head: Git
) -> None:
    server, log = configured(launch, tmp_path, "drain_s = 0.5")
    bare = server.create("a.git")
    git("push", "-q", server.url_of(bare), "main", cwd=large)
    readers = [connect(server, slowly=True) for _ in range(3)]
    for reader in readers:
        reader.sendall(clone_request(raw, bare, head(large)))
        assert reader.recv(100).startswith(b"HTTP/1.1 200")
    idle = connect(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert idle.recv(1) == b""
    words = log.read_text()
    assert "requests_broken_off" in words
    assert "count=3" in words
    assert "POST /a.git/git-upload-pack" in words
    assert "Traceback" not in words
    for connection in (*readers, idle):
        connection.close()


def test_a_stop_lets_a_push_end_that_is_being_concluded(
    launch: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    server, log = configured(launch, tmp_path, "drain_s = 30")
    bare = server.create("a.git")
    hook = bare / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nsleep 1\n")
    hook.chmod(0o755)
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    new = commit(work, "one")
    pushing = subprocess.Popen(
        ["git", "push", "-q", server.url_of(bare), "main"], cwd=work, env={**os.environ}
    )
    wait_until((tmp_path / "begun").exists)
    server.process.send_signal(signal.SIGTERM)
    assert pushing.wait(30) == 0
    assert server.process.wait(30) == 0
    assert head(bare, "main") == new
    assert log.read_text() == ""


def test_a_stop_ends_the_hook_of_a_push_that_takes_too_long(
    launch: Any, tmp_path: Path, git: Git, commit: Git
) -> None:
    server, log = configured(launch, tmp_path, "drain_s = 0.2")
    bare = server.create("a.git")
    hook = bare / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/begun.new\nmv {tmp_path}/begun.new "
                    f"{tmp_path}/begun\nexec sleep 600\n")  # fmt: skip
    hook.chmod(0o755)
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    pushing = subprocess.Popen(
        ["git", "push", "-q", server.url_of(bare), "main"], cwd=work, stderr=subprocess.DEVNULL
    )
    wait_until((tmp_path / "begun").exists)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert pushing.wait(30) != 0
    assert "pushes_broken_off" in log.read_text()
    assert not Path(f"/proc/{(tmp_path / 'begun').read_text().strip()}").exists()
    assert git("for-each-ref", cwd=bare).out == ""
    assert not list((bare / "objects").rglob("tmp_*"))


def test_connections_that_never_send_a_whole_head_are_closed(launch: Any, tmp_path: Path) -> None:
    """One is silent, one sends a byte now and then, one had a request and waits."""
    server, log = configured(launch, tmp_path, "keepalive_s = 1")
    bare = server.create("a.git")
    silent, trickling, used = (connect(server) for _ in range(3))
    used.sendall(post(bare, "git-upload-pack", b"0000", "Content-Length: 4"))
    assert used.recv(1 << 16).startswith(b"HTTP/1.1 200")
    trickling.settimeout(0.1)
    with contextlib.suppress(ConnectionError):
        for byte in b"GET /" + b"x" * 5000:
            trickling.sendall(bytes([byte]))
            try:
                assert trickling.recv(1) == b""
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("a head of 5000 slow bytes was waited for")
    assert silent.recv(1) == b""
    used.settimeout(60)
    while used.recv(1 << 16):
        pass
    assert log.read_text() == ""
    for connection in (silent, trickling, used):
        connection.close()


def test_idle_connections_make_room_for_new_ones(launch: Any, tmp_path: Path, raw: Any) -> None:
    server, log = configured(launch, tmp_path, "connections_max = 16")
    bare = server.create("a.git")
    first = connect(server)
    first.sendall(post(bare, "git-upload-pack", b"", "Content-Length: 4"))  # its body is awaited
    crowd = []
    for _ in range(60):
        crowd.append(connect(server))
        assert server.client.get(f"{server.url}/x").status_code == 404
    assert crowd[0].recv(1) == b""
    crowd[-1].sendall(post(bare, "git-upload-pack", b"0000", "Content-Length: 4"))
    assert crowd[-1].recv(100).startswith(b"HTTP/1.1 200")
    first.sendall(b"0000")
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    files = Path(f"/proc/{server.process.pid}/fd")
    wait_until(lambda: len(list(files.iterdir())) < 60)
    assert log.read_text() == ""
    for connection in (first, *crowd):
        connection.close()


def test_who_was_refused_and_sends_on_makes_room_for_new_ones(launch: Any, tmp_path: Path) -> None:
    server, log = configured(launch, tmp_path, "connections_max = 16")
    crowd = []
    for _ in range(40):
        crowd.append(connect(server))
        crowd[-1].sendall(post(Path("none.git"), "git-upload-pack", b"x", "Content-Length: 1000"))
        assert crowd[-1].recv(100).startswith(b"HTTP/1.1 404 ")
    assert server.client.get(f"{server.url}/x").status_code == 404
    assert log.read_text() == ""
    for connection in crowd:
        connection.close()


def test_as_many_connections_as_are_set_get_the_files_that_they_need(
    launch: Any, tmp_path: Path
) -> None:
    """The usual soft bound of 1,024 open files would end accepting long before."""
    server, log = configured(launch, tmp_path, "connections_max = 1500")
    bare = server.create("a.git")
    limit = next(
        line for line in Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        if line.startswith("Max open files")
    )  # fmt: skip
    assert int(limit.split()[3]) >= 3000
    idle = [connect(server) for _ in range(1200)]
    url = f"{server.url_of(bare)}/info/refs?service=git-upload-pack"
    assert server.client.get(url).status_code == 200
    assert log.read_text() == ""
    for connection in idle:
        connection.close()


def test_what_is_no_http_leaves_no_traceback(launch: Any, tmp_path: Path) -> None:
    server, log = configured(launch, tmp_path)
    bare = server.create("a.git")
    chunked = post(bare, "git-upload-pack", b"zz\r\n", "Transfer-Encoding: chunked")
    for bad in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nFoo bar\r\n\r\n", chunked):
        with connect(server) as connection:
            connection.sendall(bad)
            assert b" 400 Bad Request\r\n" in connection.recv(1000)
    assert log.read_text() == ""


def test_a_line_of_a_head_may_be_as_long_as_a_token_is(server: Any, bare: Path) -> None:
    """Those of Kerberos, for a front's log-in, have tens of thousands of letters."""
    url = f"{server.url_of(bare)}/info/refs?service=git-upload-pack"
    for length, status in ((60_000, 200), (70_000, 400)):
        answer = server.client.get(url, headers={"Authorization": f"Negotiate {'a' * length}"})
        assert answer.status_code == status


def test_a_content_type_that_is_no_text_is_refused_by_name(server: Any, bare: Path) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /%b/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: \xff\xfe\r\n"
            b"Content-Length: 4\r\n\r\n0000" % os.fsencode(bare.name)
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize("form", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_2_16_a_push_shorter_than_announced_changes_nothing(
    server: Any, bare: Path, work: Path, wire: Any, commit: Git, head: Git, raw: Any, form: str
) -> None:
    """All of the pack is there, and yet the request has no end: its client may have meant more."""
    old = head(work)
    new = commit(work, "two")
    line = raw.pkt(f"{old} {new} refs/heads/main\0report-status side-band-64k")
    data = line + b"0000" + wire.pack(new, f"^{old}")
    sent = b"%x\r\n%b\r\n" % (len(data), data) if "chunked" in form else data
    with connect(server) as connection:
        connection.sendall(post(bare, "git-receive-pack", sent, form))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"ok refs/heads/main" not in answer
    wait_until(lambda: not left_of_pushes(bare))
    assert head(bare, "main") == old


def test_a_pack_that_is_removed_while_it_is_read_is_read_to_its_end(
    server: Any, bare: Path, large: Path, tmp_path: Path, raw: Any, git: Git, head: Git
) -> None:
    git("push", "-q", server.url_of(bare), "main", cwd=large)
    packs = set((bare / "objects/pack").glob("*.pack"))
    with connect(server, slowly=True) as connection:
        connection.sendall(clone_request(raw, bare, head(large)))
        answer = bytearray(connection.recv(1000))
        git("-c", "pack.compression=0", "repack", "-q", "-a", "-d", "-F", cwd=bare)
        assert not any(pack.exists() for pack in packs)
        git("clone", "-q", "--bare", server.url_of(bare), "second", cwd=tmp_path)
        while not answer.endswith(b"0000\r\n0\r\n\r\n"):
            piece = connection.recv(1 << 20)
            assert piece, "cut off"
            answer += piece
    git("fsck", "--full", cwd=tmp_path / "second")
    pack = unbanded(raw, unchunked(bytes(answer).partition(b"\r\n\r\n")[2]))
    git("init", "-q", "--bare", "copy.git", cwd=tmp_path)
    git("index-pack", "--strict", "--stdin", cwd=tmp_path / "copy.git", stdin=pack)


def test_clones_go_on_while_packs_are_replaced(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    """`repack -a -d` removes packs at once; each clone asks for something else, so none is kept."""
    for number in range(30):
        commit(work, f"n{number}")
        if number % 6 == 0:
            git("push", "-q", "origin", "main", cwd=work)
    git("push", "-q", "origin", "main", cwd=work)
    repacking = subprocess.Popen(
        ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do git repack -q -a -d -F --depth=$i; done"],
        cwd=bare,
    )
    count = 0
    while repacking.poll() is None or count < 3:
        count += 1
        done = git("clone", "-q", f"--depth={count % 25 + 2}", server.url_of(bare), f"c{count}",
                   cwd=tmp_path, check=False)  # fmt: skip
        assert done.status == 0, done.err
        git("fsck", cwd=tmp_path / f"c{count}")
    assert repacking.wait() == 0


def unchunked(data: bytes) -> bytes:
    found, at = [], 0
    while True:
        stop = data.index(b"\r\n", at)
        length = int(data[at:stop], 16)
        if not length:
            return b"".join(found)
        found.append(data[stop + 2 : stop + 2 + length])
        at = stop + 4 + length


def unbanded(raw: Any, data: bytes) -> bytes:
    packets = [packet for packet in raw.unpkt(data) if packet is not None]
    assert packets[0] == b"packfile\n"
    return b"".join(packet[1:] for packet in packets[1:] if packet[0] == 1)


def wait_until(is_true: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
