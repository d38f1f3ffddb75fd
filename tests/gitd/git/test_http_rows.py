"""docs/git-server.md, sections 1 to 3: routing, statuses, bodies, connections."""

from __future__ import annotations

import gzip
import http.client
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gitd.git.conftest import left_of_pushes

Git = Callable[..., Any]
UPLOAD, RECEIVE = "git-upload-pack", "git-receive-pack"


def require_no_cache(response: httpx.Response) -> None:
    assert response.headers["Expires"] == "Fri, 01 Jan 1980 00:00:00 GMT"
    assert response.headers["Pragma"] == "no-cache"
    assert response.headers["Cache-Control"] == "no-cache, max-age=0, must-revalidate"


def raw_get(server: Any, target: str, method: str = "GET") -> http.client.HTTPResponse:
    """Ask for exactly these bytes: no client tidies the path."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.putrequest(method, target, skip_accept_encoding=True)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
def test_1_1_and_1_2_the_advertisements(server: Any, bare: Path, work: Path, service: str) -> None:
    response = server.client.get(f"{server.url_of(bare)}/info/refs?x=1&service={service}&y=2")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == f"application/x-{service}-advertisement"
    assert f"# service={service}\n" in response.text
    require_no_cache(response)


@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
def test_1_3_and_1_4_the_results(server: Any, bare: Path, service: str) -> None:
    response = server.post(bare, service, b"0000")
    assert response.headers["Content-Type"] == f"application/x-{service}-result"
    require_no_cache(response)


@pytest.mark.parametrize("service", ["git-foo", "upload-pack", "", "git-upload-archive"])
def test_1_6_other_services_are_forbidden(server: Any, bare: Path, service: str) -> None:
    response = server.client.get(f"{server.url_of(bare)}/info/refs?service={service}")
    assert response.status_code == 403
    require_no_cache(response)


@pytest.mark.parametrize(
    ("key", "value", "user", "service", "status"),
    [
        ("http.uploadpack", "false", None, UPLOAD, 403),
        ("http.uploadpack", "true", None, UPLOAD, 200),
        ("x.x", "x", None, UPLOAD, 200),
        ("x.x", "x", None, RECEIVE, 403),
        ("x.x", "x", "ada", RECEIVE, 200),
        ("http.receivepack", "true", None, RECEIVE, 200),
        ("http.receivepack", "false", "ada", RECEIVE, 403),
    ],
)
def test_1_7_services_are_switched_by_config(
    server: Any, name: str, key: str, value: str, user: str | None, service: str, status: int
) -> None:
    bare = server.create(name, push=False, **{key.replace(".", "__"): value})
    headers = {"X-Remote-User": user} if user else {}
    url = server.url_of(bare)
    got = server.client.get(f"{url}/info/refs?service={service}", headers=headers)
    assert got.status_code == status
    content_type = f"application/x-{service}-request"
    posted = server.client.post(
        f"{url}/{service}", content=b"0000", headers={**headers, "Content-Type": content_type}
    )
    assert posted.status_code == status


@pytest.mark.parametrize(
    "path", ["/nope.git/info/refs?service=git-upload-pack", "/nope.git/git-upload-pack", "/", "/x"]
)
def test_1_8_and_1_9_what_is_not_there_is_404_with_nothing_said(server: Any, path: str) -> None:
    method = "POST" if path.endswith("/git-upload-pack") else "GET"
    response = server.client.request(
        method, server.url + path, headers={"Content-Type": "application/x-git-upload-pack-request"}
    )
    assert (response.status_code, response.reason_phrase) == (404, "Not Found")
    assert response.content == b""
    require_no_cache(response)


def test_1_9_an_unknown_path_below_a_repository_is_404(server: Any, bare: Path) -> None:
    for path in ("", "/", "/config", "/objects/nonsense", "/git-upload-pack/x", "/info"):
        assert raw_get(server, f"/{bare.name}{path}").status == 404, path


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "git-upload-pack", "POST"),
        ("PUT", "git-receive-pack", "POST"),
        ("OPTIONS", "git-receive-pack", "POST"),
        ("POST", "info/refs", "GET, HEAD"),
        ("DELETE", "info/refs", "GET, HEAD"),
    ],
)
def test_1_10_and_1_19_wrong_methods(
    server: Any, bare: Path, method: str, path: str, allow: str
) -> None:
    response = server.client.request(method, f"{server.url_of(bare)}/{path}")
    assert response.status_code == 405
    assert response.headers["Allow"] == allow
    require_no_cache(response)


def test_1_11_head_has_the_headers_and_no_body(server: Any, bare: Path) -> None:
    response = server.client.head(f"{server.url_of(bare)}/info/refs?service=git-upload-pack")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/x-git-upload-pack-advertisement"
    assert response.content == b""


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "", "application/x-git-upload-pack-request; charset=utf-8",
     "application/x-git-receive-pack-request"],
)  # fmt: skip
def test_1_12_the_content_type_is_matched_exactly(
    server: Any, bare: Path, content_type: str
) -> None:
    response = server.post(bare, UPLOAD, b"0000", Content_Type=content_type)
    assert response.status_code == 415
    assert response.text == (
        "Expected POST with Content-Type 'application/x-git-upload-pack-request', "
        f"but received '{content_type}' instead.\n"
    )


def test_1_14_the_suffix_may_be_left_out(server: Any, bare: Path, tmp_path: Path, git: Git) -> None:
    url = server.url_of(bare).removesuffix(".git")
    assert server.client.get(f"{url}/info/refs?service=git-upload-pack").status_code == 200
    plain = server.root / bare.name.replace(".git", "-work")
    git("init", "-q", plain, cwd=tmp_path)
    for path in (plain.name, f"{plain.name}/.git"):
        url = f"{server.url}/{path}/info/refs?service=git-upload-pack"
        assert server.client.get(url).status_code == 200, path


@pytest.mark.parametrize(
    "form",
    ["/../{}", "/x/../{}", "/%2e%2e/{}", "//{}", "/./{}", "/{}%2finfo", "/{}/%2e%2e/{}",
     "/x%00/{}", "/{}%2f..%2f{}", "/..%2f{}", "/%2e%2e%2f{}", "/{}/../{}"],
)  # fmt: skip
def test_1_15_no_path_means_another_place(server: Any, bare: Path, form: str) -> None:
    target = form.format(bare.name, bare.name) + "/info/refs?service=git-upload-pack"
    assert raw_get(server, target).status in (400, 404)


def test_1_15_a_link_out_of_the_root_is_not_followed(
    server: Any, name: str, tmp_path: Path, git: Git
) -> None:
    outside = tmp_path / "outside.git"
    git("init", "-q", "--bare", outside, cwd=tmp_path)
    (server.root / name).symlink_to(outside)
    response = server.client.get(f"{server.url}/{name}/info/refs?service=git-upload-pack")
    assert response.status_code == 404


def test_1_16_archives_are_not_offered(server: Any, bare: Path) -> None:
    assert server.post(bare, "git-upload-archive", b"0000").status_code == 403


# section 2


LS_REFS = b"0014command=ls-refs\n0001" + b"0009peel\n" + b"0000"


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_2_1_compressed_bodies(
    server: Any, bare: Path, work: Path, encoding: str, *, is_chunked: bool
) -> None:
    body = zlib.compress(LS_REFS) if encoding == "deflate" else gzip.compress(LS_REFS)
    plain = server.post(bare, UPLOAD, LS_REFS, Git_Protocol="version=2")
    assert b"refs/heads/main" in plain.content
    content = iter([body[:7], body[7:]]) if is_chunked else body
    got = server.post(bare, UPLOAD, content, Git_Protocol="version=2", Content_Encoding=encoding)
    assert got.content == plain.content


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
@pytest.mark.parametrize(
    "body",
    [
        b"this is no gzip",
        gzip.compress(LS_REFS)[:14],
        gzip.compress(LS_REFS)[:-8] + bytes(8),
        gzip.compress(LS_REFS) + b"more",
    ],
    ids=["none", "cut short", "a wrong sum", "more behind it"],
)
def test_2_2_a_damaged_gzip_body_is_refused(
    server: Any, bare: Path, work: Path, body: bytes, encoding: str
) -> None:
    got = server.post(bare, UPLOAD, body, Git_Protocol="version=2", Content_Encoding=encoding)
    assert got.status_code == 400 or got.content[4:].startswith(b"ERR ")
    assert b"refs/heads" not in got.content


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_2_2_a_body_that_is_whole_may_lack_the_sum_behind_it(
    server: Any, bare: Path, work: Path, encoding: str
) -> None:
    body = gzip.compress(LS_REFS)[:-8]
    got = server.post(bare, UPLOAD, body, Git_Protocol="version=2", Content_Encoding=encoding)
    assert b"refs/heads/main" in got.content


def test_2_3_what_comes_behind_a_compressed_body_is_not_kept(server: Any, bare: Path) -> None:
    """The client might send for ever: it is told at once."""
    with socket_to(server) as connection:
        connection.sendall(
            f"POST /{bare.name}/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n"
            "Content-Encoding: x-gzip\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for piece in (gzip.compress(b"00"), b"more", b"and more"):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_2_2_other_encodings_are_refused(server: Any, bare: Path) -> None:
    got = server.post(bare, UPLOAD, LS_REFS, Content_Encoding="compress")
    assert got.status_code == 415
    assert server.post(bare, UPLOAD, LS_REFS, Content_Encoding="br").status_code in (400, 415)


def test_2_3_a_decompression_bomb_is_refused(server: Any, bare: Path) -> None:
    line = b"0032have " + b"1" * 40 + b"\n"
    bomb = gzip.compress(b"0012command=fetch\n0001" + line * 700_000)
    assert len(bomb) < 1 << 18
    got = server.post(bare, UPLOAD, bomb, Git_Protocol="version=2", Content_Encoding="gzip")
    assert got.status_code == 413 or b"ERR" in got.content


@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
@pytest.mark.parametrize("body", [b"0000", b""])
@pytest.mark.parametrize("version", ["", "version=2"])
def test_2_4_and_2_8_the_probe(
    server: Any, bare: Path, service: str, body: bytes, version: str
) -> None:
    got = server.post(bare, service, body, Git_Protocol=version)
    assert (got.status_code, got.content) == (200, b"")
    assert got.headers["Content-Type"] == f"application/x-{service}-result"


def test_2_7_expect_continue(server: Any, bare: Path) -> None:
    with socket_to(server) as connection:
        connection.sendall(
            f"POST /{bare.name}/git-upload-pack HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\nContent-Length: 4\r\n"
            "\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"0000")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [("{}", "text/plain", 415), ("none.git", "application/x-git-receive-pack-request", 404)],
)
def test_2_7_a_refusal_does_not_wait_for_the_body(
    server: Any, bare: Path, path: str, content_type: str, status: int
) -> None:
    with socket_to(server) as connection:
        connection.sendall(
            f"POST /{path.format(bare.name)}/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: 1000000000\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        answer = connection.recv(4096).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert (answer or connection.recv(4096)).startswith(f"HTTP/1.1 {status} ".encode())


def socket_to(server: Any) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_2_9_a_trickle_is_fine(server: Any, bare: Path, work: Path) -> None:
    with socket_to(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST /{bare.name}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\nConnection: close\r\n"
            f"Content-Length: {len(LS_REFS)}\r\n\r\n"
        ).encode()
        connection.sendall(head)
        for byte in LS_REFS:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"refs/heads/main" in answer


def test_2_10_one_connection_serves_many_requests(server: Any, bare: Path, work: Path) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    wanted = "application/x-git-upload-pack-request"
    seen = []
    for method, path, content_type in (
        ("GET", f"/{bare.name}/info/refs?service=git-upload-pack", ""),
        ("GET", "/nope/info/refs?service=git-upload-pack", ""),
        ("GET", f"/{bare.name}/info/refs?service=git-foo", ""),
        ("POST", f"/{bare.name}/git-upload-pack", "text/plain"),
        ("POST", f"/{bare.name}/git-upload-pack", wanted),
    ):
        headers = {"Content-Type": content_type, "Git-Protocol": "version=2"}
        connection.request(method, path, LS_REFS if method == "POST" else None, headers)
        sock = connection.sock
        response = connection.getresponse()
        response.read()
        seen.append(response.status)
        assert connection.sock is sock
    connection.close()
    assert seen == [200, 404, 403, 415, 200]


def test_2_10_requests_may_be_sent_ahead(server: Any, bare: Path, work: Path) -> None:
    """Answered in order, also behind refusals whose bodies nobody read."""
    head = (
        "POST /{}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
        "Content-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n"
    )
    right = "application/x-git-upload-pack-request"
    sent = []
    for path, content_type, body, connection in (
        (bare.name, right, LS_REFS, "keep-alive"),
        ("none.git", right, bytes(100_000), "keep-alive"),
        (bare.name, "text/plain", LS_REFS, "keep-alive"),
        (bare.name, right, LS_REFS, "close"),
    ):
        line = head.format(path, content_type, len(body), connection)
        sent.append(line.encode() + body)
    with socket_to(server) as connection:
        connection.sendall(b"".join(sent))
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"404", b"415", b"200"]
    assert answers.count(b"refs/heads/main") == 2


def test_2_11_a_refusal_is_heard_while_the_body_is_sent(
    server: Any, name: str, tmp_path: Path, git: Git, commit: Git
) -> None:
    bare = server.create(name, receive__maxInputSize="1k")
    work = tmp_path / "w"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    (work / "big").write_bytes(os.urandom(8 << 20))
    commit(work, "big", other="x")
    done = git("push", server.url_of(bare), "main", cwd=work, check=False)
    assert "pack exceeds maximum allowed size" in done.err
    assert "Connection reset" not in done.err


def test_2_12_http_1_0_is_answered_without_chunks(server: Any, bare: Path, work: Path) -> None:
    with socket_to(server) as connection:
        connection.sendall(
            f"POST /{bare.name}/git-upload-pack HTTP/1.0\r\nGit-Protocol: version=2\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\n"
            f"Content-Length: {len(LS_REFS)}\r\n\r\n".encode()
            + LS_REFS
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.endswith(b"0000")


def test_2_14_a_client_that_leaves_mid_pack_leaves_nothing(
    server: Any, bare: Path, work: Path, wire: Any, commit: Git, head: Git
) -> None:
    old = head(work)
    (work / "big").write_bytes(os.urandom(300_000))
    new = commit(work, "two")
    pack = wire.pack(new, f"^{old}")
    line = f"{old} {new} refs/heads/main\0report-status".encode()
    data = b"%04x%b0000" % (len(line) + 4, line) + pack
    for form in (f"Content-Length: {len(data)}", "Transfer-Encoding: chunked"):
        with socket_to(server) as connection:
            connection.sendall(
                f"POST /{bare.name}/git-receive-pack HTTP/1.1\r\nHost: x\r\n{form}\r\n"
                "Content-Type: application/x-git-receive-pack-request\r\n\r\n".encode()
            )
            part = data[: len(data) // 2]
            chunked = b"%x\r\n%b\r\n" % (len(part), part) if "chunked" in form else part
            connection.sendall(chunked)
            time.sleep(0.1)
        wait_until(lambda: not left_of_pushes(bare))
        assert head(bare, "main") == old


def wait_until(is_true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_2_15_a_client_that_leaves_after_the_pack_has_pushed(
    server: Any, bare: Path, work: Path, wire: Any, commit: Git, head: Git
) -> None:
    hook = bare / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {bare}/begun\nsleep 0.5\necho words\n")
    hook.chmod(0o755)
    old = head(work)
    new = commit(work, "two")
    line = f"{old} {new} refs/heads/main\0report-status side-band-64k".encode()
    data = b"%04x%b0000" % (len(line) + 4, line) + wire.pack(new, f"^{old}")
    with socket_to(server) as connection:
        connection.sendall(
            f"POST /{bare.name}/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {len(data)}\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n\r\n".encode()
            + data
        )
        wait_until((bare / "begun").exists)
    wait_until(lambda: head(bare, "main") == new)


def test_many_slow_clients_do_not_stop_the_others(server: Any, bare: Path, work: Path) -> None:
    """Idle connections, and requests that never end, cost nobody else."""
    open_sockets = [socket_to(server) for _ in range(100)]
    for number, connection in enumerate(open_sockets):
        if number % 2:
            connection.sendall(
                f"POST /{bare.name}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
                "Content-Type: application/x-git-receive-pack-request\r\n\r\n00".encode()
            )
    start = time.monotonic()
    for _ in range(20):
        assert server.post(bare, UPLOAD, LS_REFS, Git_Protocol="version=2").status_code == 200
    assert time.monotonic() - start < 30
    for connection in open_sockets:
        connection.close()


def test_3_a_refusal_at_info_refs_is_shown_to_the_user(
    server: Any, name: str, tmp_path: Path, git: Git
) -> None:
    bare = server.create(name, http__uploadpack="false")
    done = git("clone", server.url_of(bare), "c", cwd=tmp_path, check=False)
    assert "The requested URL returned error: 403" in done.err
    gone = git("clone", f"{server.url}/gone.git", "d", cwd=tmp_path, check=False)
    assert "not found" in gone.err


def test_3_an_unknown_want_is_shown_to_the_user(
    server: Any, bare: Path, work: Path, raw: Any
) -> None:
    body = (
        raw.pkt("command=fetch\n")
        + b"0001"
        + raw.pkt(f"want {'1' * 40}\n")
        + raw.pkt("done\n")
        + b"0000"
    )
    got = server.post(bare, UPLOAD, body, Git_Protocol="version=2")
    assert got.content[4:] == b"ERR upload-pack: not our ref " + b"1" * 40


def test_requests_at_once_are_answered_at_once(server: Any, bare: Path, work: Path) -> None:
    answers: list[int] = []

    def ask() -> None:
        with httpx.Client() as client:
            for _ in range(5):
                url = f"{server.url_of(bare)}/info/refs?service=git-upload-pack"
                answers.append(client.get(url).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40


def test_what_is_no_http_is_refused_without_a_word_about_us(server: Any) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(b"GET /x.git HTTP/9.9 \x01\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert re.match(r"HTTP/1.[01] 400 Bad Request\r\n", answer)
    assert "\r\nServer: gitd\r\n" in answer
    assert answer.endswith("\r\n\r\nThis is no request that HTTP/1.1 allows.\n")
