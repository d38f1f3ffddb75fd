"""Scenarios: the installed daemon, the real git, real kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hooks.builds.sandbox.processor_share import KEEPER_NAME
from tests import memory
from tests.ports import free_port
from tests.warm import run_warm, warm

BIN = Path(sys.executable).parent
PRELOAD = """
from gitd import starting
starting.load_aiohttp()
import gitd.__main__, gitd.app, gitd.collecting, gitd.checking, gitd.log
import gitd.cli.main, gitd.cli.proofs, gitd.cli.waiting, storage.proof
import httpx, rich.cells, rich.console, rich.progress, rich.text
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_S = 30.0


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> object:
    """Poll until `is_so` gives something true, and return that."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := is_so():
                return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


def fetch(
    port: int,
    path: str,
    *,
    method: str = "GET",
    host: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        sent = {**(headers or {}), **({"Host": host} if host else {})}
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


@dataclass
class Server:
    """A `gitd serve` in a folder of its own, as an operator would start it."""

    root: Path
    port: int = field(default_factory=free_port)
    sites_port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None
    token: str = ""
    config: str = ""
    said: list[str] = field(default_factory=list)
    reserve_bytes: int = 1 << 20
    slots: int = 1
    logged_before: int = 0  # bytes
    last_job: str = ""  # of those before
    is_anew: bool = False  # at first: by its installed command, not in a fork of what is loaded

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log_path(self) -> Path:
        return self.root / "gitd.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITD_", "FORGE_"))}
        return {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FORGE_URL": self.url,
            "FORGE_TOKEN": self.token,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "NO_COLOR": "1",
            "GITD_BUILDERS_CPU_WEIGHT": "100",  # no less than what else runs on this machine
            "GITD_BUILDERS_PROCESSORS_FREE_MIN": "0",  # tests beside it have builds, too
            # Not the usual 64 MiB and two slots for each of all these servers.
            "GITD_STORE_RESERVE_BYTES": str(self.reserve_bytes),
            "GITD_BUILDERS_SLOTS": str(self.slots),
        }

    def start(self) -> float:
        """Start it and wait until it says that it is ready; returns the seconds that took."""
        began = time.monotonic()
        if self.config:
            (self.root / "gitd.toml").write_text(self.config)
        arguments = ["--config", str(self.root / "gitd.toml")] if self.config else []
        with self.log_path.open("ab") as log:
            popen = subprocess.Popen if self.is_anew else warm(PRELOAD)
            self.process = popen(
                [
                    *(str(BIN / "gitd"), "serve", "--data", str(self.data)),
                    *("--listen", f"127.0.0.1:{self.port}"),
                    *("--sites", f"127.0.0.1:{self.sites_port}"),
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environ,
            )
        self.is_anew = False
        assert self.process.stdout
        self.said = [self.process.stdout.readline() for _ in range(2)]
        assert all(self.said), self.log()
        return time.monotonic() - began

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._close()
        return status

    def kill(self) -> None:
        """SIGKILL to control alone."""
        assert self.process
        self.process.kill()
        self.process.wait(30)
        self._close()

    def _close(self) -> None:
        if self.process and self.process.stdout:
            self.process.stdout.close()
        self.process = None

    def end(self) -> None:
        """Leave no process behind, whatever the test did."""
        if self.is_running():
            with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
                self.stop()
        if self.process is not None:
            self.kill()
        for pid in self.children("host") + self.children("builder"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def children(self, kind: str) -> list[int]:
        """Pids of this server's `gitd builder` or `gitd host` processes, but for their keepers."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                mine = any(str(self.data).encode() in word for word in words)
                if mine and b"gitd" in words and kind.encode() in words:
                    name, _, rest = (entry / "stat").read_text().rpartition(")")
                    if not name.endswith(f"({KEEPER_NAME}"):
                        parents[int(entry.name)] = int(rest.split()[1])
        # A keeper has its name a moment after it was made.
        return sorted(pid for pid, parent in parents.items() if parent not in parents)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_path.read_bytes()[self.logged_before :].decode()

    # -- as its users ---------------------------------------------------------------------------

    def gitd(self, *arguments: str) -> str:
        return self.run("gitd", *arguments, "--data", str(self.data)).stdout

    def mf(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("mf", *arguments, check=check)

    def run(
        self, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `gitd` or `mf` to its end."""
        command = [BIN / program, *arguments]
        done = run_warm(PRELOAD, command, env=self.environ, timeout_s=60)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def new_key(self) -> None:
        made = self.gitd("key", "create", "--label", "tests", "--scope", "*", "--json")
        self.token = json.loads(made)["secret"]

    def new_site(self, name: str = "acme-store") -> None:
        if not self.token:
            self.new_key()
        made = self.api("POST", "/sites", {"name": name})
        assert made.status == 201, made.body

    def delete_sites(self) -> bool:
        """Delete all sites; says whether the server did as it was told."""
        try:
            found = self.api("GET", "/sites").json["data"]
            gone = [self.api("DELETE", f"/sites/{site['name']}").status for site in found]
        except (OSError, LookupError, ValueError, http.client.HTTPException):
            return False
        return set(gone) <= {200}

    def api(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        data = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        return fetch(self.port, f"/v1{path}", method=method, headers=sent, body=data)

    def jobs(self) -> list[dict[str, object]]:
        """The jobs of this test, newest first."""
        return self.mine(self.api("GET", "/jobs").json["data"])

    def mine(self, jobs: list[dict[str, object]]) -> list[dict[str, object]]:
        return [job for job in jobs if str(job["id"]) > self.last_job]

    def fetch(self, path: str, **headers: str) -> Answer:
        """What anybody gets who asks control, without a key."""
        return fetch(self.port, path, headers=headers)

    def visit(self, name: str = "acme-store", path: str = "/", **headers: str) -> Answer:
        host = f"{name}.localhost:{self.sites_port}"
        return fetch(self.sites_port, path, host=host, headers=headers)

    def serves(self, text: str, name: str = "acme-store") -> bool:
        answer = self.visit(name)
        return answer.status == 200 and text.encode() in answer.body

    def wait_for(self, text: str, name: str = "acme-store", timeout_s: float = WAIT_S) -> None:
        wait_until(lambda: self.serves(text, name), f"{name} serves {text!r}", timeout_s)

    def work(self, name: str = "acme-store", folder: str = "work") -> WorkTree:
        return WorkTree(self, self.root / folder, name)


@dataclass
class WorkTree:
    """A developer's clone, pushed with the real git."""

    server: Server
    path: Path
    site: str

    def __post_init__(self) -> None:
        self.path.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("config", "user.name", "A Developer")
        self.git("config", "user.email", "dev@example.com")
        self.git("remote", "add", "managed", f"{self.server.url}/{self.site}.git")
        helper = "!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"
        self.git("config", "credential.helper", helper)

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self.server.environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def commit(self, files: Mapping[str, str | bytes], message: str = "change") -> str:
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def use(self, example: str) -> None:
        shutil.copytree(EXAMPLES / example, self.path, dirs_exist_ok=True)
        self.commit({})

    def push(self, *arguments: str, check: bool = True) -> str:
        """Push as at a terminal, waiting until it is live; return all that git printed."""
        done = self.git("push", "--progress", "managed", *(arguments or ("main",)), check=check)
        return done.stdout + done.stderr


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that builders and site host, users of their own, can walk through."""
    folder = memory.MEMORY if memory.has_room() else "/tmp"  # TMPDIR may be its user's alone
    path = Path(tempfile.mkdtemp(prefix="gitd-scenario-", dir=folder))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


class Lender:
    """Lends out a running server, one test after the other: a start takes seconds."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._token = ""
        self._folder = contextlib.ExitStack()

    def take(self) -> Server:
        if self._server is None:
            folder = self._folder.enter_context(open_folder())
            self._server = Server(folder, is_anew=True)
            self._server.start()
        else:
            self._server.logged_before = self._server.log_path.stat().st_size
        self._server.token = self._token
        return self._server

    def give_back(self, server: Server, token: str) -> None:
        """Take it back without its sites; one that was stopped or changed is lent no more."""
        server.token = self._token = token
        if server.config or not server.is_running() or not server.delete_sites():
            self.end()
            return
        for path in server.root.iterdir():
            if path.is_dir() and path != server.data:
                shutil.rmtree(path, ignore_errors=True)
            elif path not in (server.data, server.log_path):
                path.unlink()

    def end(self) -> None:
        if self._server is not None:
            self._server.end()
        self._server = None
        self._token = ""
        self._folder.close()


@pytest.fixture(scope="session")
def lender() -> Iterator[Lender]:
    made = Lender()
    yield made
    made.end()


@pytest.fixture
def shared(lender: Lender) -> Iterator[Server]:
    """A running server on which others have been, with a key for everything and no site."""
    try:
        server = lender.take()
        if not server.token:
            server.new_key()
        token = server.token
        everything = server.api("GET", "/jobs").json["data"]  # newest first
        server.last_job = everything[0]["id"] if everything else ""
    except BaseException:
        lender.end()
        raise
    yield server
    lender.give_back(server, token)


@pytest.fixture
def stopped(folder: Path) -> Iterator[Server]:
    """A server of this test alone, that was not started yet."""
    server = Server(folder)
    yield server
    server.end()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """A running server with the site acme-store and a key for everything.

    Others have been on it, unless the test is marked `own_server`.
    """
    if own := request.node.get_closest_marker("own_server"):
        server: Server = request.getfixturevalue("stopped")
        server.is_anew = own.kwargs.get("is_anew", False)
        server.start()
    else:
        server = request.getfixturevalue("shared")
    server.new_site()
    return server


@pytest.fixture
def other() -> Iterator[Server]:
    """Another host, on which nothing is yet."""
    with open_folder() as path:
        made = Server(path)
        yield made
        made.end()
