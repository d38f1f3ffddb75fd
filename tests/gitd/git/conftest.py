"""A real server process over real repositories, and the real git client."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.warm import warm

REPOSITORY_ROOT = Path(__file__).parents[3]
IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


@dataclass(frozen=True)
class Done:
    """A finished git command; `text` is both of its streams."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def run_git(
    *arguments: str | Path, cwd: Path, check: bool = True, stdin: bytes = b"", **environ: str
) -> Done:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **IDENTITY, **environ},
        capture_output=True,
        input=stdin,
        timeout=100,
        check=False,
    )
    found = Done(
        done.returncode,
        done.stdout.decode("utf-8", "replace").strip(),
        done.stderr.decode("utf-8", "replace").strip(),
    )
    if check and done.returncode:
        raise AssertionError(f"git {arguments} failed: {found.text}")
    return found


def left_of_pushes(repository: Path) -> list[str]:
    """What pushes have put beside the objects and not taken in; more may come and go meanwhile."""
    walked = os.walk(repository / "objects")  # unlike `rglob`, it passes over what goes
    names = (name for _, folders, files in walked for name in (*folders, *files))
    return [name for name in names if name.startswith("tmp_")]


@dataclass
class Server:
    """The server: where its repositories are, and how they are reached."""

    root: Path
    url: str
    process: subprocess.Popen[str]
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def create(self, name: str, *, push: bool = True, **config: str) -> Path:
        """Make a bare repository; config keys have `__` for dots."""
        path = self.root / name
        run_git("init", "-q", "--bare", "-b", "main", path, cwd=self.root)
        if push:
            run_git("config", "http.receivepack", "true", cwd=path)
        for key, value in config.items():
            run_git("config", key.replace("__", "."), value, cwd=path)
        return path

    def url_of(self, path: Path) -> str:
        return f"{self.url}/{path.relative_to(self.root)}"

    def post(self, path: Path, service: str, body: bytes, **headers: str) -> httpx.Response:
        return self.client.post(
            f"{self.url_of(path)}/{service}",
            content=body,
            headers={
                "Content-Type": f"application/x-{service}-request",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )


def start_server(
    root: Path, *arguments: str, log: Path | None = None, is_anew: bool = False
) -> Server:
    """Start a server; its standard error goes to `log`, where that is given.

    One that is started anew shares no memory with what was loaded before.
    """
    errors = log.open("wb") if log is not None else None
    popen = subprocess.Popen if is_anew else warm("import gitd.git.__main__")
    process = popen(
        [
            sys.executable,
            "-m",
            "gitd.git",
            "--root",
            str(root),
            "--listen",
            "127.0.0.1:0",
            *arguments,
        ],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    if errors is not None:
        errors.close()
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+:\d+", line)
    assert found, line
    return Server(root, found[0], process)


def stop_server(server: Server) -> None:
    server.client.close()
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert server.process.stdout is not None
    server.process.stdout.close()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(
        tmp_path_factory.mktemp("served"), "--remote-user-header", "X-Remote-User"
    )
    yield server
    stop_server(server)


STRICT = """
[git]
idle_s = 3  # no less: this machine may be busy
refs_max = 3
commands_max = 3
push_options_max = 2
push_options_bytes_max = 20
pack_bytes_max = "200k"
objects_max = 9
object_bytes_max = "100KiB"
request_bytes_max = "64KiB"
wants_max = 3
haves_max = 3
"""


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose bounds are soon reached."""
    root = tmp_path_factory.mktemp("strict")
    config = root.with_suffix(".toml")
    config.write_text(STRICT)
    server = start_server(root, "--config", str(config))
    yield server
    stop_server(server)


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a repository that no other test has."""
    digits = re.sub(r"\W+", "-", request.node.name)[:60]
    return f"{digits}-{os.urandom(3).hex()}.git"


@pytest.fixture
def bare(server: Server, name: str) -> Path:
    """An empty served repository that takes pushes."""
    return server.create(name)


@pytest.fixture(scope="session")
def first_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit: a copy costs less than half a dozen processes."""
    work = tmp_path_factory.mktemp("first") / "work"
    run_git("init", "-q", "-b", "main", work, cwd=work.parent)
    commit(work, "one")
    return work


@pytest.fixture
def work(server: Server, bare: Path, tmp_path: Path, first_work: Path) -> Path:
    """A clone with one commit, pushed as main to the served repository."""
    work = copied(first_work, tmp_path / "work", server.url_of(bare))
    run_git("push", "-q", "origin", "main", cwd=work)
    return work


def copied(work: Path, target: Path, origin: str) -> Path:
    """Copy a repository without a remote one, and give it that."""
    shutil.copytree(work, target)
    run_git("remote", "add", "origin", origin, cwd=target)
    return target


def commit(work: Path, message: str, **files: str) -> str:
    """Commit files (by default one that is named for the message); return the commit's id."""
    for file, content in (files or {message: f"{message}\n"}).items():
        path = work / file.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    run_git("add", "-A", cwd=work)
    run_git("commit", "-q", "--allow-empty", "-m", message, cwd=work)
    return head(work)


def head(path: Path, ref: str = "HEAD") -> str:
    return run_git("rev-parse", ref, cwd=path).out


@pytest.fixture(scope="session")
def git() -> Callable[..., Done]:
    return run_git


@pytest.fixture(scope="session", name="commit")
def commit_fixture() -> Callable[..., str]:
    return commit


@pytest.fixture(scope="session", name="copied")
def copied_fixture() -> Callable[..., Path]:
    return copied


@pytest.fixture(scope="session", name="head")
def head_fixture() -> Callable[..., str]:
    return head


@pytest.fixture
def launch() -> Iterator[Callable[..., Server]]:
    """Start servers of one's own, stopped at the end."""
    yield from started()


@pytest.fixture(scope="module")
def launch_once() -> Iterator[Callable[..., Server]]:
    """The same, for servers that the tests of a module share."""
    yield from started()


def started() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(root: Path, *arguments: str, **how: Any) -> Server:
        servers.append(start_server(root, *arguments, **how))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            stop_server(server)
        else:
            server.client.close()
            assert server.process.stdout is not None
            server.process.stdout.close()


# raw requests


def pkt(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return b"%04x%b" % (len(data) + 4, data)


def unpkt(data: bytes) -> list[bytes | None]:
    """Take pkt-lines apart; None is a flush (or delim)."""
    found: list[bytes | None] = []
    while data:
        length = int(data[:4], 16)
        if length < 4:
            found.append(None)
            data = data[4:]
        else:
            assert length <= len(data), "a packet is cut off"
            found.append(data[4:length])
            data = data[length:]
    return found


@dataclass
class Answer:
    """The answer of a push: what the user reads, and the report."""

    status: int
    words: str = ""
    fatal: str = ""
    report: list[str] = field(default_factory=list)
    bands: list[int] = field(default_factory=list)
    raw: bytes = b""

    @property
    def unpack(self) -> str:
        return self.report[0].removeprefix("unpack ")

    @property
    def refs(self) -> dict[str, str]:
        """Ref -> `ok`, or the reason."""
        found = {}
        for line in self.report[1:]:
            word, _, rest = line.partition(" ")
            name, _, reason = rest.partition(" ")
            found[name] = "ok" if word == "ok" else reason
        return found


def parse_push_answer(response: httpx.Response, *, has_bands: bool = True) -> Answer:
    answer = Answer(response.status_code, raw=response.content)
    if response.status_code != 200:
        return answer
    if not has_bands:
        answer.report = [line.decode().strip() for line in unpkt(response.content) if line]
        return answer
    report = b""
    for packet in unpkt(response.content):
        if packet is None:
            continue
        answer.bands.append(packet[0])
        if packet[0] == 1:
            report += packet[1:]
        elif packet[0] == 2:
            answer.words += packet[1:].decode("utf-8", "replace")
        else:
            answer.fatal += packet[1:].decode("utf-8", "replace")
    answer.report = [line.decode("utf-8", "replace").strip() for line in unpkt(report) if line]
    return answer


CAPS = "report-status side-band-64k agent=test"


@dataclass
class Wire:
    """Pushes by hand to one repository."""

    server: Server
    bare: Path
    work: Path

    def pack(self, *revisions: str, thin: bool = False) -> bytes:
        """Pack what `git rev-list --objects` lists for some revisions of the clone."""
        done = subprocess.run(
            ["git", "pack-objects", "--stdout", "-q", "--revs", *(["--thin"] if thin else [])],
            input="".join(f"{revision}\n" for revision in revisions).encode(),
            cwd=self.work,
            env={**os.environ, **IDENTITY},
            capture_output=True,
            check=True,
        )
        return done.stdout

    def push(
        self,
        *commands: tuple[str, str, str],
        pack: bytes = b"",
        caps: str = CAPS,
        before: list[str] | None = None,
        options: list[str] | None = None,
        **headers: str,
    ) -> Answer:
        """Push (old, new, ref) triples; `pack` follows the flush."""
        body = b"".join(pkt(line) for line in before or [])
        for number, (old, new, ref) in enumerate(commands):
            body += pkt(f"{old} {new} {ref}" + (f"\0{caps}" if number == 0 else ""))
        body += b"0000"
        if options is not None:
            body += b"".join(pkt(option) for option in options) + b"0000"
        response = self.server.post(self.bare, "git-receive-pack", body + pack, **headers)
        return parse_push_answer(response, has_bands="side-band-64k" in caps)


def make_pack(*objects: tuple[str, bytes], count: int | None = None, version: int = 2) -> bytes:
    """Make a pack of whole objects by hand."""
    kinds = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
    out = b"PACK" + struct.pack(">LL", version, len(objects) if count is None else count)
    for kind, data in objects:
        out += pack_entry(kinds[kind], len(data)) + zlib.compress(data)
    return out + hashlib.sha1(out).digest()


def pack_entry(kind: int, size: int) -> bytes:
    byte, size = (kind << 4) | (size & 15), size >> 4
    head = bytearray()
    while size:
        head.append(byte | 128)
        byte, size = size & 127, size >> 7
    head.append(byte)
    return bytes(head)


def oid_of(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def by_git(bare: Path, service: str, body: bytes | None = None, version: str = "") -> bytes:
    """Return the body of git's own answer: of its advertisement when there is no request body."""
    environ = {
        **os.environ,
        "GIT_PROJECT_ROOT": str(bare.parent),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "REQUEST_METHOD": "GET" if body is None else "POST",
        "PATH_INFO": f"/{bare.name}/" + ("info/refs" if body is None else service),
        "QUERY_STRING": f"service={service}" if body is None else "",
        "CONTENT_TYPE": f"application/x-{service}-request",
        "CONTENT_LENGTH": str(len(body or b"")),
        "GIT_PROTOCOL": version,
        "REMOTE_USER": "ada",
    }
    done = subprocess.run(
        ["git", "http-backend"],
        env=environ,
        input=body or b"",
        capture_output=True,
        check=False,
    )
    return done.stdout.partition(b"\r\n\r\n")[2]


@pytest.fixture
def wire(server: Server, bare: Path, work: Path) -> Wire:
    return Wire(server, bare, work)


class RawTools:
    """What tests of raw bytes share."""

    pkt = staticmethod(pkt)
    unpkt = staticmethod(unpkt)
    make_pack = staticmethod(make_pack)
    pack_entry = staticmethod(pack_entry)
    oid_of = staticmethod(oid_of)
    parse_push_answer = staticmethod(parse_push_answer)
    by_git = staticmethod(by_git)
    wire = Wire


@pytest.fixture(scope="session")
def raw() -> type[RawTools]:
    return RawTools
