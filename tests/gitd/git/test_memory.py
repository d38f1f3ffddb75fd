"""docs/git-server.md, 2.13 and section 10: what the server's own process holds stays small."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

Git = Callable[..., Any]
SLOW_COUNT = 20


def memory_kib(server: Any, what: str) -> int:
    """VmRSS, VmHWM or RssAnon of the server's process, without its workers."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(rf"^{what}:\s+(\d+)", status, re.MULTILINE)[0])


def open_packs(server: Any) -> set[str]:
    """The packs without a name that the server has open, each once."""
    found = set()
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if ".pack" in target and "deleted" in target:
            found.add(target)
    return found


@pytest.fixture
def own(launch: Any, tmp_path: Path) -> Any:
    """A server of the test's own, so that its memory tells of this test alone."""
    root = tmp_path / "root"
    root.mkdir()
    return launch(root, is_anew=True)


def loose_repository(server: Any, git: Git, *sizes: int) -> Path:
    """A repository whose objects are all loose: random files of these sizes, in one commit."""
    bare = server.create("loose.git")
    numbers = random.Random(3)
    entries = []
    for number, size in enumerate(sizes):
        data = numbers.randbytes(size)
        oid = git(
            "-c", "core.looseCompression=0", "hash-object", "-w", "--stdin", cwd=bare, stdin=data
        ).out
        entries.append(f"100644 blob {oid}\tf{number}\n")
    tree = git("mktree", cwd=bare, stdin="".join(entries).encode()).out
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "x", tree, cwd=bare).out,
        cwd=bare)  # fmt: skip
    return bare


def test_a_large_loose_object_is_cloned_without_being_held(
    own: Any, tmp_path: Path, git: Git
) -> None:
    bare = loose_repository(own, git, 32 << 20)
    before = memory_kib(own, "VmHWM")
    git("clone", "-q", "--no-checkout", own.url_of(bare), "c", cwd=tmp_path)
    git("fsck", cwd=tmp_path / "c")
    assert memory_kib(own, "VmHWM") - before < 20 << 10


def clone_request(want: str) -> bytes:
    lines = [
        b"0011command=fetch0001",
        f"0032want {want}\n".encode(),
        b"000dofs-delta0009done\n0000",
    ]
    body = b"".join(lines)
    return (
        b"POST /loose.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
        b"Content-Type: application/x-git-upload-pack-request\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@pytest.fixture
def slow_reader(own: Any) -> Iterator[Callable[[bytes], socket.socket]]:
    """Makes clients that send a request and read nothing of its answer."""
    with ExitStack() as stack:

        def start(request: bytes) -> socket.socket:
            port = int(own.url.rpartition(":")[2])
            # A small buffer, set before connecting, so that the system takes little for them.
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(request)
            return client

        yield start


def test_slow_readers_cost_little_each_and_share_a_pack(
    own: Any, tmp_path: Path, git: Git, head: Git, slow_reader: Any
) -> None:
    bare = loose_repository(own, git, 12 << 20, 12 << 20)
    request = clone_request(head(bare, "main"))
    git("ls-remote", own.url_of(bare), cwd=tmp_path)
    before = memory_kib(own, "VmHWM")
    clients = [slow_reader(request) for _ in range(SLOW_COUNT)]
    for client in clients:
        assert client.recv(1, socket.MSG_PEEK) == b"H"  # the answer has begun
    git("clone", "-q", "--bare", own.url_of(bare), "c", cwd=tmp_path)
    assert len(open_packs(own)) == 1
    assert memory_kib(own, "VmHWM") - before < (8 << 10) + SLOW_COUNT * 1024


def test_a_long_list_of_refs_waits_for_a_slow_reader_without_copies(
    own: Any, git: Git, head: Git, slow_reader: Any
) -> None:
    bare = loose_repository(own, git, 10)
    tip = head(bare, "main")
    lines = [f"{tip} refs/tags/{'t' * 100}{number:06}\n" for number in range(20_000)]
    (bare / "packed-refs").write_text("".join(lines))
    url = f"{own.url_of(bare)}/info/refs?service=git-upload-pack"
    size = len(own.client.get(url).content)
    assert size > 2_500_000
    before = memory_kib(own, "VmHWM")
    body = b"0014command=ls-refs\n0000"
    for request in (
        b"GET /loose.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /loose.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
        b"Content-Type: application/x-git-upload-pack-request\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    ):
        for client in [slow_reader(request) for _ in range(SLOW_COUNT)]:
            assert client.recv(1, socket.MSG_PEEK) == b"H"
    # A copy for each would be 100 MiB and more. Rendering the list takes some 20, whoever asks.
    assert memory_kib(own, "VmHWM") - before < (36 << 10) + 2 * SLOW_COUNT * 512


def test_a_small_pack_that_inflates_to_much_is_read_elsewhere(
    own: Any, work: Path, git: Git, raw: Any
) -> None:
    """A push of 200 KB that holds a tree of 100 MB, and a delta that makes a blob of 100 MB."""
    bare = own.create("bomb.git")
    entry = b"100644 a\0" + bytes(range(20))
    tree = entry * ((100 << 20) // len(entry))
    pack = b"PACK" + struct.pack(">LL", 2, 1) + raw.pack_entry(2, len(tree)) + zlib.compress(tree)
    tree_pack = pack + hashlib.sha1(pack).digest()
    base = os.urandom(60_000)
    copy = b"\xb0" + struct.pack("<H", len(base))  # all of the base, by offset 0
    times = (100 << 20) // len(base)
    delta = raw_size(len(base)) + raw_size(len(base) * times) + copy * times
    pack = b"PACK" + struct.pack(">LL", 2, 2)
    pack += raw.pack_entry(3, len(base)) + zlib.compress(base)
    pack += raw.pack_entry(7, len(delta)) + bytes.fromhex(raw.oid_of("blob", base))
    pack += zlib.compress(delta)
    delta_pack = pack + hashlib.sha1(pack).digest()
    assert max(len(tree_pack), len(delta_pack)) < 256 << 10
    own.client.get(f"{own.url_of(bare)}/info/refs?service=git-receive-pack")
    before = memory_kib(own, "VmHWM")
    new = "1" * 40
    for pack in (tree_pack, delta_pack):
        body = raw.pkt(f"{'0' * 40} {new} refs/heads/x\0report-status side-band-64k") + b"0000"
        answer = raw.parse_push_answer(own.post(bare, "git-receive-pack", body + pack))
        assert answer.refs["refs/heads/x"] in ("missing necessary objects", "unpacker error")
    assert memory_kib(own, "VmHWM") - before < 30 << 10


def raw_size(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def test_memory_stays_flat_under_a_large_push_and_clone(
    own: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    """200 MB through the server, and the server's own process grows by a fraction of it."""
    bare = own.create("large.git")
    before = memory_kib(own, "VmHWM")
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    numbers = random.Random(7)
    for number in range(4):
        (work / f"big{number}").write_bytes(numbers.randbytes(50 << 20))
    git("config", "core.compression", "0", cwd=work)
    git("config", "core.bigFileThreshold", "1m", cwd=work)  # the client need not look for deltas
    commit(work, "large", x="x")
    slow: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.wait(0.02):
                start = time.monotonic()
                client.get(f"{own.url}/large.git/info/refs?service=git-upload-pack")
                slow.append(time.monotonic() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        git("push", "-q", own.url_of(bare), "main", cwd=work)
        git("clone", "-q", "--no-checkout", own.url_of(bare), "c", cwd=tmp_path)
    finally:
        stop.set()
        watcher.join()
    slow.sort()
    grown_mib = (memory_kib(own, "VmHWM") - before) / 1024
    print(f"grown by {grown_mib:.0f} MiB; other answers p50 {slow[len(slow) // 2] * 1e3:.0f} ms, "
          f"p99 {slow[int(len(slow) * 0.99)] * 1e3:.0f} ms of {len(slow)}")  # fmt: skip
    assert head(bare, "main") == head(work)
    assert grown_mib < 40
