"""Hostile bytes against a running server: a clear refusal, nothing left behind, and it lives on.

Each test is brief here and long in the soak; a failure prints the seed that makes it again.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import random
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Git = Callable[..., Any]
UPLOAD, RECEIVE = "git-upload-pack", "git-receive-pack"
BRIEF, LONG = 50, 20_000
SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
# What a wrong request may be answered with. 500 is not among them, and silence neither.
REFUSALS = {200, 400, 408, 413, 415}
HEAD_REFUSALS = REFUSALS | {401, 403, 404, 405, 411, 414, 417, 426, 431, 501, 505}
LENGTHS = (b"0000", b"0001", b"0002", b"0003", b"0004", b"fff0", b"fff1", b"ffff", b"zzzz", b"-001")
WORDS = (
    b"want ", b"have ", b"done", b"done\n", b"deepen 1\n", b"deepen -1\n", b"deepen 0\n",
    b"deepen 99999999999999999999\n", b"deepen \xd9\xa1\n", b"deepen \xc2\xb2\n",
    b"want " + b" " * 20 + b"a" * 20, b"deepen-since 1\n", b"deepen-since 999999999999999999\n",
    b"deepen-since x\n",
    b"deepen-not refs/heads/main\n", b"deepen-not \xff\n", b"deepen-relative\n", b"shallow ",
    b"filter blob:none\n", b"filter tree:99999999999999\n", b"filter combine:\n", b"filter \0\n",
    b"filter blob:limit=9999999999999999999g\n", b"filter tree:\xc2\xb2\n", b"filter blob:limit=\n",
    b"filter combine:combine:tree:1%2Btree:2+blob:none\n", b"filter object:type=x\n",
    b"ref-prefix \n", b"ref-prefix refs/\xff\n", b"symrefs\n", b"peel\n", b"unborn\n",
    b"want-ref refs/heads/main\n", b"want-ref HEAD\n", b"want-ref \xff\n", b"sideband-all\n",
    b"wait-for-done\n", b"packfile-uris https\n", b"thin-pack\n", b"ofs-delta\n", b"include-tag\n",
    b"no-progress\n", b"command=ls-refs\n", b"command=fetch\n", b"command=object-info\n",
    b"command=bundle-uri\n", b"command=\n", b"command=\xff\n", b"object-format=sha256\n",
    b"object-format=\xfe\n", b"agent=\xff\n", b"server-option=\0\n", b"session-id=x\n", b"size\n",
    b"oid ", b"push-cert\0report-status\n", b"push-cert-end\n", b"\0", b"\n", b"", b"\xff" * 70,
    b"0" * 40, b"f" * 40, b"F" * 40, b"\xd9\xa1" * 20, b" refs/heads/x\0report-status atomic\n",
    b"refs/heads/../../x", b"refs/heads/" + b"x" * 300,
    b"side-band-64k side-band push-options report-status-v2\n",
)  # fmt: skip


def damaged(body: bytes, numbers: random.Random) -> bytes:
    """Damage a body in a few ways, most of which leave lines of it well formed."""
    data = bytearray(body)
    for _ in range(numbers.randint(1, 4)):
        at = numbers.randrange(len(data) + 1)
        match numbers.randrange(9):
            case 0:
                data[at : at + numbers.randint(1, 3)] = numbers.randbytes(numbers.randint(0, 4))
            case 1:
                del data[at:]
            case 2:
                stop = at + numbers.randint(0, 200)
                data[at:at] = data[at:stop] * numbers.randint(1, 40)
            case 3:
                data[at : at + 4] = numbers.choice(LENGTHS)
            case 4:
                data[at : at + numbers.randint(0, 100)] = b""
            case 5 if at < len(data):
                data[at] ^= 1 << numbers.randrange(8)
            case _:
                change_line(data, numbers)
    return bytes(data[: 1 << 20])


def change_line(data: bytearray, numbers: random.Random) -> None:
    """Put a word, perhaps behind a part of what was there, or another line, in a line's place."""
    lines = lines_of(bytes(data))
    if not lines:
        return
    start, stop = numbers.choice(lines)
    if numbers.random() < 0.3:
        from_start, from_stop = numbers.choice(lines)
        line = bytes(data[from_start:from_stop])
    else:
        kept = bytes(data[start + 4 : start + 4 + numbers.choice((0, 5, 8, 45, 60, 90))])
        words = kept + numbers.choice(WORDS)
        line = b"%04x%b" % (len(words) + 4, words)
    data[start : start if numbers.random() < 0.3 else stop] = line


def lines_of(data: bytes) -> list[tuple[int, int]]:
    """Where the pkt-lines are that a body begins with."""
    found, at = [], 0
    with contextlib.suppress(ValueError):
        while at + 4 <= len(data):
            stop = at + max(int(data[at : at + 4], 16), 4)
            if stop > len(data):
                break
            found.append((at, stop))
            at = stop
    return found


class Target:
    """A server of its own, a repository with some history, and requests that it answers."""

    def __init__(self, server: Any, log: Path, bare: Path, requests: dict[str, list[bytes]]):
        self.server, self.log, self.bare, self.requests = server, log, bare, requests
        parts = urlsplit(server.url)
        self.address = (parts.hostname, parts.port)

    def head(self, service: str, form: str, *more: str) -> bytes:
        lines = [
            f"POST /{self.bare.name}/{service} HTTP/1.1", "Host: x", "Connection: close",
            f"Content-Type: application/x-{service}-request", form, *more, "", "",
        ]  # fmt: skip
        return "\r\n".join(lines).encode()

    def ask(self, request: bytes, *, patience_s: float = 30) -> tuple[int, bytes] | None:
        """Send bytes; return status and body, or None where nothing was answered.

        After `patience_s` the client hangs up: the request may have no end.
        """
        with socket.create_connection(self.address, timeout=patience_s) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            try:
                response.begin()
            except (ConnectionError, TimeoutError, http.client.BadStatusLine):
                return None
            connection.settimeout(30)
            try:
                return response.status, response.read()
            except http.client.IncompleteRead as error:
                return response.status, error.partial

    def check(self) -> None:
        """Nothing is left, nothing broke, and a right request is answered."""
        assert self.server.process.poll() is None
        assert not list((self.bare / "objects").rglob("tmp_*"))
        assert not list(self.bare.rglob("*.lock"))
        body = self.requests["ls-refs"][0]
        head = self.head(
            "git-upload-pack", f"Content-Length: {len(body)}", "Git-Protocol: version=2"
        )
        answered = self.ask(head + body)
        assert answered is not None
        assert b"refs/heads/main" in answered[1]


@pytest.fixture(scope="module")
def target(
    tmp_path_factory: pytest.TempPathFactory,
    launch_once: Any,
    raw: Any,
    git: Git,
    commit: Git,
    head: Git,
) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("fuzzed")
    log, config, work = (root.with_suffix(suffix) for suffix in (".log", ".toml", ".work"))
    config.write_text('[git]\nidle_s = 5\nrequest_bytes_max = "1MiB"\npack_bytes_max = "1MiB"\n')
    server = launch_once(root, "--config", str(config), log=log)
    options = {
        "receive__advertisePushOptions": "true", "receive__certNonceSeed": "seed",
        "uploadpack__allowFilter": "true", "uploadpack__allowRefInWant": "true",
        "uploadpack__allowSidebandAll": "true", "transfer__advertiseObjectInfo": "true",
        "uploadpack__advertiseBundleURIs": "true", "receive__shallowUpdate": "true",
        "receive__fsckObjects": "true",
    }  # fmt: skip
    bare = server.create("fuzzed.git", **options)
    git("init", "-q", "-b", "main", work, cwd=root)
    for number in range(6):
        text = "".join(f"line {line} of {number if line % 7 == 0 else 0}\n" for line in range(200))
        commit(work, f"n{number}", text=text)
    git("tag", "-a", "-m", "x", "v1", cwd=work)
    git("push", "-q", server.url_of(bare), "main", "v1", "main:gone", cwd=work)
    old, tip, tag = (head(work, name) for name in ("main~3", "main", "v1"))
    new = commit(work, "new", text="changed\n")
    pack = raw.wire(server, bare, work).pack
    packs = [pack(new, f"^{tip}"), pack(new, f"^{tip}", thin=True), pack(new)]
    yield Target(server, log, bare, requests_for(raw.pkt, packs, old, tip, new, tag))
    git("fsck", "--full", "--strict", cwd=bare)


def requests_for(
    pkt: Callable[[str], bytes], packs: list[bytes], old: str, tip: str, new: str, tag: str
) -> dict[str, list[bytes]]:
    pack, thin, whole = packs
    null = "0" * 40
    caps = "report-status-v2 side-band-64k object-format=sha1 agent=git/2"
    fetch = pkt("command=fetch\n") + pkt("agent=git/2\n") + b"0001" + pkt("thin-pack\n")
    fetch += pkt("ofs-delta\n") + pkt(f"want {tip}\n") + pkt(f"want {tag}\n")
    update = pkt(f"{null} {new} refs/heads/x\0 {caps}") + b"0000"
    options = pkt(f"{null} {new} refs/heads/y\0{caps} push-options atomic")
    options += pkt(f"{null} {old} refs/tags/z") + b"0000" + pkt("a=b") + b"0000"
    signed = pkt(f"push-cert\0{caps} push-cert=x\n") + pkt("certificate version 0.1\n")
    signed += pkt("pusher A <a@b> 1 +0000\n") + pkt("nonce x\n") + pkt("\n")
    signed += pkt(f"{null} {new} refs/heads/s\n") + pkt("-----BEGIN PGP SIGNATURE-----\n")
    signed += pkt("push-cert-end\n") + b"0000"
    v0 = pkt(f"want {tip} multi_ack_detailed no-done side-band-64k thin-pack ofs-delta\n")
    return {
        "ls-refs": [
            pkt("command=ls-refs\n") + b"0001" + pkt("peel\n") + pkt("symrefs\n") + b"0000",
            pkt("command=ls-refs") + pkt("object-format=sha1") + b"0001"
            + pkt("ref-prefix refs/heads/ma\n") + pkt("unborn\n") + b"0000",
        ],
        "fetch": [
            fetch + pkt("done\n") + b"0000",
            fetch + pkt(f"have {old}\n") + pkt("sideband-all\n") + b"0000",
            fetch + pkt("deepen 2\n") + pkt("done\n") + b"0000",
            fetch + pkt("filter blob:none\n") + pkt(f"shallow {old}\n") + pkt("done\n") + b"0000",
            pkt("command=object-info\n") + b"0001" + pkt("size\n") + pkt(f"oid {tip}\n") + b"0000",
            pkt("command=bundle-uri\n") + b"0001" + b"0000",
        ],
        "v0": [
            v0 + b"0000" + pkt("done\n"),
            v0 + pkt(f"want {tag}\n") + b"0000" + pkt(f"have {old}\n") + b"0000" + pkt("done\n"),
            v0 + pkt(f"shallow {old}\n") + pkt("deepen 1\n") + b"0000" + pkt("done\n"),
        ],
        "push": [
            update + pack, update + thin, options + pack, signed + pack,
            pkt(f"{tip} {null} refs/heads/gone\0{caps}") + b"0000",
            pkt(f"shallow {tip}") + update + pack,
        ],
        "pack": [pack, thin, whole],
        "before a pack": [update],
    }  # fmt: skip


def framed(body: bytes, numbers: random.Random) -> tuple[bytes, str]:
    """A body as it may be sent: whole, in chunks, and now and then in chunks that have no end."""
    if numbers.random() < 0.6:
        return body, f"Content-Length: {len(body)}"
    pieces = [body[at : at + 700] for at in range(0, len(body), 700)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    end = b"0\r\n\r\n" if numbers.random() < 0.9 else b"zz\r\n"
    return chunks + end, "Transfer-Encoding: chunked"


briefly_and_long = pytest.mark.parametrize(
    "examples",
    [BRIEF, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)


def fuzz(target: Target, examples: int, one: Callable[[random.Random], None]) -> None:
    """Do something with that many seeds, and look at what is left at the end."""

    said = target.log.read_text()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=SEEDS)
    def each(seed: int) -> None:
        one(random.Random(seed))
        assert target.server.process.poll() is None
        assert target.log.read_text() == said

    each()
    target.check()


def ask_damaged(
    target: Target, numbers: random.Random, kinds: tuple[str, ...], service: str, *more: str
) -> None:
    body = damaged(numbers.choice(target.requests[numbers.choice(kinds)]), numbers)
    body, form = framed(body, numbers)
    require_clear(target.ask(target.head(service, form, *more) + body))


def require_clear(answered: tuple[int, bytes] | None, statuses: set[int] = REFUSALS) -> None:
    """It is refused by its status, or answered in whole packets and perhaps a pack."""
    if answered is None:  # it had no end, and its client has left
        return
    status, body = answered
    assert status in statuses, answered
    at = 0
    while status == 200 and at < len(body) and body[at : at + 4] != b"PACK":
        at += max(int(body[at : at + 4], 16), 4)
        assert at <= len(body), "a packet is cut off"


@briefly_and_long
@pytest.mark.parametrize("version", ["version=2", "version=1"])
def test_fetches(target: Target, examples: int, version: str) -> None:
    """ls-refs and fetch arguments; wants, haves, depths and filters of all versions."""
    kinds = ("ls-refs", "fetch") if version == "version=2" else ("v0",)
    header = f"Git-Protocol: {version}"
    fuzz(target, examples, lambda numbers: ask_damaged(target, numbers, kinds, UPLOAD, header))


@briefly_and_long
def test_requests_of_another_service_or_version(target: Target, examples: int) -> None:
    def one(numbers: random.Random) -> None:
        ask_damaged(target, numbers, ("push", "v0"), UPLOAD, "Git-Protocol: version=2")
        ask_damaged(target, numbers, ("fetch", "v0"), RECEIVE)

    fuzz(target, examples // 2, one)


@briefly_and_long
def test_pushes(target: Target, examples: int) -> None:
    """The command list, capabilities, options, certificates, and what follows them."""
    fuzz(target, examples, lambda numbers: ask_damaged(target, numbers, ("push",), RECEIVE))


@briefly_and_long
def test_packs(target: Target, examples: int) -> None:
    """Pack headers and entries, behind a right command and with a right checksum."""

    def one(numbers: random.Random) -> None:
        pack = damaged(numbers.choice(target.requests["pack"])[:-20], numbers)
        body = target.requests["before a pack"][0] + pack + hashlib.sha1(pack).digest()
        body, form = framed(body, numbers)
        answered = target.ask(target.head(RECEIVE, form) + body)
        require_clear(answered)

    fuzz(target, examples, one)


@briefly_and_long
def test_compressed_bodies(target: Target, examples: int) -> None:
    def one(numbers: random.Random) -> None:
        encoding = numbers.choice(("gzip", "x-gzip", "deflate"))
        kind, service = numbers.choice((("fetch", UPLOAD), ("push", RECEIVE)))
        body = numbers.choice(target.requests[kind])
        body = damaged(body, numbers) if numbers.random() < 0.5 else body
        body = zlib.compress(body) if encoding == "deflate" else gzip.compress(body, 1)
        body = damaged(body, numbers) if numbers.random() < 0.7 else body
        body, form = framed(body, numbers)
        headers = (f"Content-Encoding: {encoding}", "Git-Protocol: version=2")
        require_clear(target.ask(target.head(service, form, *headers) + body))

    fuzz(target, examples, one)


@briefly_and_long
def test_heads_of_requests(target: Target, examples: int) -> None:
    def one(numbers: random.Random) -> None:
        service = numbers.choice((UPLOAD, RECEIVE))
        body = target.requests["ls-refs"][0]
        head = target.head(service, f"Content-Length: {len(body)}", "Git-Protocol: version=2")
        if numbers.random() < 0.3:
            head = f"GET /{target.bare.name}/info/refs?service={service} HTTP/1.1\r\n".encode()
            head += b"Host: x\r\nConnection: close\r\n\r\n"
        request = damaged(head, numbers) + body
        require_clear(target.ask(request, patience_s=0.2), HEAD_REFUSALS)

    fuzz(target, examples, one)
