"""A real store with real keys, a real site host process, and a peer that speaks control's side."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.deploys.host.rollout_tools import RolloutTools
from hooks.deploys.web.forwarding import TrustedProxies
from hooks.deploys.wire import (
    ArtifactPin,
    Changed,
    Coming,
    Config,
    Desired,
    EnvironmentIds,
    Ping,
    Removed,
    Report,
    RollLog,
    Snapshot,
    config_digest,
)
from storage import trust
from storage.artifacts import ArtifactStore
from storage.digest import Digest
from storage.envelope import seal
from storage.errors import DigestInvalidError
from storage.ids import new_id
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.reader import StoreReader
from storage.release_statement import ConfigPin, ReleaseStatement, build_release
from storage.sealing import Vault
from storage.signing import SigningKey
from storage.source import Limits, SourceFile, SourceLink
from tests.new_records import open_records
from tests.warm import warm

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
UID = 60680 if os.geteuid() == 0 else None
WAIT_S = 20
PRELOAD = f"import runpy; runpy.run_path({str(HERE / 'run_host.py')!r})"


@contextlib.contextmanager
def a_folder():
    path = Path(tempfile.mkdtemp(prefix="gitd-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def open_dir():
    """A folder that the host's uid can pass through, as the data folder is."""
    with a_folder() as path:
        yield path


class Shelf:
    """A store as control keeps it: artifacts come in by `put`, signed."""

    def __init__(self, root: Path) -> None:
        self._records = open_records(root / "gitd.db")
        self.store = ArtifactStore.open(root / "store", self._records, group=UID)
        self.layout = self.store.layout
        self.key = SigningKey.load_or_create(root / "signing.key")
        self.root_key = SigningKey.load_or_create(root / "root.key")
        trust.establish(self.layout.trust, root=self.root_key, signing=self.key)
        self.share_trust()
        self._sequences: dict[str, int] = defaultdict(int)

    def share_trust(self) -> None:
        if UID is not None:
            for path in self.layout.trust.iterdir():
                os.chown(path, -1, UID)
                path.chmod(0o640)

    def put(
        self, tree, *, site="acme-store", profile="static", web=None, release=None, health=None
    ) -> ArtifactPin:
        """Take in a tree: {path: text or bytes, or ("link", target)}."""
        entries = [_entry(path, content) for path, content in tree.items()]

        def attest(manifest):
            facts = Provenance(
                site=site,
                ref="refs/heads/main",
                commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
                profile=profile,
                run=RunCommands(web=web, release=release, health=health),
                build_id=new_id("build"),
                builder=SOURCE_BUILDER,
                started_at="2026-01-01T00:00:00.000Z",
                finished_at="2026-01-01T00:00:05.000Z",
                tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
                gitd_version="0.1.0",
            )
            return seal(build_provenance(facts, manifest), self.key)

        ingested, _ = self.store.ingest(
            entries, limits=Limits(), attest=attest, record=lambda _db, _ingested: None
        )
        return ArtifactPin(ingested.artifact_id, str(ingested.digest), ingested.envelope_sha256)

    def put_web(self, source: str, **run) -> ArtifactPin:
        """Take in a Python program as `app.py`, to be run as the web process."""
        run = {"web": "python3 app.py", **run}
        return self.put({"app.py": source}, profile="procfile", **run)

    def digest_of(self, pin: ArtifactPin) -> Digest:
        return Digest.parse(pin.digest)

    def blob_of(self, pin: ArtifactPin, name: str) -> Path:
        from storage.manifest import FileEntry, Manifest

        manifest = Manifest.parse(Path(self.layout.tree(Digest.parse(pin.digest))).read_bytes())
        for entry in manifest.entries:
            if isinstance(entry, FileEntry) and entry.path == name.encode():
                return Path(self.layout.blob(entry.digest, executable=entry.executable))
        raise AssertionError(name)

    def statement(self, wanted: Desired, **facts) -> ReleaseStatement:
        """What control would say of a release, with the environment's next sequence."""
        said = {
            "site": wanted.site,
            "env_id": wanted.env_id,
            "environment": wanted.slug,
            "deployment_id": wanted.deployment_id,
            "provenance_sha256": wanted.artifact.envelope,
            "previous": None,
            "rollback": False,
            "issued_at": "2026-01-01T00:00:10.000Z",
            **facts,
        }
        if "sequence" not in said:
            said["sequence"] = self._sequences[wanted.env_id] = self._sequences[wanted.env_id] + 1
        return ReleaseStatement(**said)

    def release(self, wanted: Desired, key: SigningKey | None = None, **facts) -> Desired:
        """Give what is wanted its release statement; `facts` and `key` make it another one."""
        digest = Digest.parse(wanted.artifact.digest)
        with contextlib.suppress(FileNotFoundError):
            manifest = Path(self.layout.tree(digest)).read_bytes()
            facts = {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), **facts}
        about = {
            "digest": facts.pop("digest", digest),
            "manifest_sha256": facts.pop("manifest_sha256", "0" * 64),
        }
        sealed = seal(build_release(self.statement(wanted, **facts), **about), key or self.key)
        return msgspec.structs.replace(wanted, release=sealed.data.decode())

    def sign_again(self, wanted: Desired, key: SigningKey) -> Desired:
        """Give what is wanted provenance and a release statement by another key."""
        old = json.loads(Path(self.layout.envelope(wanted.artifact.envelope)).read_bytes())
        sealed = seal(base64.b64decode(old["payload"]), key)
        Path(self.layout.envelope(sealed.sha256)).write_bytes(sealed.data)
        pin = msgspec.structs.replace(wanted.artifact, envelope=sealed.sha256)
        return self.release(msgspec.structs.replace(wanted, artifact=pin), key)

    def close(self) -> None:
        self._records.close()


def _entry(path, content):
    if isinstance(content, tuple):
        return SourceLink(path.encode(), content[1].encode())
    data = content.encode() if isinstance(content, str) else content
    return SourceFile(path.encode(), len(data), False, lambda: data)


@pytest.fixture
def shelf(open_dir):
    made = Shelf(open_dir)
    yield made
    made.close()


@pytest.fixture
def wanted():
    return desired


def desired(env="env_1", pin=None, deployment=None, *, hostnames=None, **more) -> Desired:
    return Desired(
        **{
            "env_id": env,
            "site": "acme-store",
            "slug": env.replace("_", "-"),
            "kind": "production",
            "hostnames": hostnames or (f"{env.replace('_', '-')}.localhost",),
            "deployment_id": deployment or (new_id("dep") if pin is not None else None),
            "artifact": pin,
            **more,
        }
    )


class ControlPeer:
    """Speaks control's side on a Unix socket: desires, and hears reports and logs.

    What it wants bears a release statement, unless it was given one: `signs` turns that off.
    """

    def __init__(self, path: Path, shelf: Shelf) -> None:
        self.path = path
        self.shelf = shelf
        self.signs = True
        self._released: dict[str, str | None] = {}
        self.desired: dict[str, Desired] = {}
        self.gone: set[str] = set()
        self.configs: dict[str, Config] = {}
        self.configs_asked: list[str] = []
        self.reports: list[Report] = []
        self.lines: dict[str, list] = defaultdict(list)
        self._seen: dict[tuple[str, str], int] = defaultdict(int)  # lines of each attempt
        self.progress: dict[str, int] = {}
        self.connections = 0
        self.longest_bytes = 0
        self.fail_posts = 0
        self.fail_gone = 0
        self.ping_s = 5.0
        self._queues: set[asyncio.Queue] = set()
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/desired", self._desired)
        app.router.add_get("/v1/configs/{deployment}", self._config)
        app.router.add_post("/v1/gone", self._gone)
        app.router.add_post("/v1/reports", self._report)
        app.router.add_post("/v1/log", self._log)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()
        self.path.chmod(0o666)

    async def stop(self) -> None:
        if self._runner is not None:
            for queue in self._queues:
                queue.put_nowait(None)
            await self._runner.cleanup()
            self._runner = None
            self.path.unlink(missing_ok=True)

    def want(self, wanted: Desired) -> Desired:
        if wanted.artifact is not None and wanted.release is None and self.signs:
            key = f"{wanted.deployment_id} {wanted.artifact.envelope}"
            if key not in self._released:
                with contextlib.suppress(DigestInvalidError):
                    facts = {}
                    if config := self.configs.get(wanted.deployment_id):
                        facts["config"] = ConfigPin(config.version, config_digest(config))
                    self._released[key] = self.shelf.release(wanted, **facts).release
            wanted = msgspec.structs.replace(wanted, release=self._released.get(key))
        self.desired[wanted.env_id] = wanted
        self._tell(Changed(wanted))
        return wanted

    def foretell(self, env_id: str, pin: ArtifactPin | None = None) -> None:
        self._tell(Coming(env_id, pin.digest if pin is not None else None))

    def remove(self, env_id: str) -> None:
        del self.desired[env_id]
        self.gone.add(env_id)
        self._tell(Removed(env_id))

    def lose(self, env_id: str) -> None:
        """As records that were put back from an old copy do."""
        del self.desired[env_id]

    async def reported(self, deployment_id: str, *, since: int = 0) -> Report:
        """Wait for the host's word on a deployment, counting from report number `since`."""

        def found():
            return next(
                (one for one in self.reports[since:] if one.deployment_id == deployment_id), None
            )

        async with self._news, asyncio.timeout(WAIT_S):
            await self._news.wait_for(lambda: found() is not None)
            return found()

    async def roll(self, wanted: Desired) -> Report:
        """Want it, and wait for the host's word."""
        since = len(self.reports)
        self.want(wanted)
        return await self.reported(wanted.deployment_id, since=since)

    def log_of(self, deployment_id: str) -> list[str]:
        return [line.line for line in self.lines[deployment_id]]

    def _tell(self, message) -> None:
        for queue in self._queues:
            queue.put_nowait(message)

    async def _desired(self, request):
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        queue: asyncio.Queue = asyncio.Queue()
        self._queues.add(queue)
        self.connections += 1
        message = Snapshot(tuple(self.desired.values()))
        try:
            while message is not None:
                await response.write(msgspec.json.encode(message) + b"\n")
                try:
                    message = await asyncio.wait_for(queue.get(), self.ping_s)
                except TimeoutError:
                    message = Ping()
        except ConnectionError:
            pass
        finally:
            self._queues.discard(queue)
        return response

    async def _config(self, request):
        deployment_id = request.match_info["deployment"]
        self.configs_asked.append(deployment_id)
        if deployment_id not in self.configs:
            raise web.HTTPNotFound
        return web.Response(body=msgspec.json.encode(self.configs[deployment_id]))

    async def _gone(self, request):
        asked = msgspec.json.decode(await request.read(), type=EnvironmentIds)
        if self.fail_gone:
            self.fail_gone -= 1
            raise web.HTTPServiceUnavailable
        gone = tuple(self.gone.intersection(asked.env_ids))
        return web.Response(body=msgspec.json.encode(EnvironmentIds(gone)))

    async def _heard(self, request):
        data = await request.read()
        self.longest_bytes = max(self.longest_bytes, len(data))
        return data

    async def _report(self, request):
        report = msgspec.json.decode(await self._heard(request), type=Report)
        if self.fail_posts:
            self.fail_posts -= 1
            raise web.HTTPServiceUnavailable
        if report.log is not None:
            self._keep(report.log)
        async with self._news:
            self.reports.append(report)
            self._news.notify_all()
        return web.json_response({})

    async def _log(self, request):
        batch = msgspec.json.decode(await self._heard(request), type=RollLog)
        if self.fail_posts:
            self.fail_posts -= 1
            raise web.HTTPServiceUnavailable
        self._keep(batch)
        return web.json_response({})

    def _keep(self, batch: RollLog) -> None:
        seen = self._seen[batch.deployment_id, batch.attempt]
        assert batch.first <= seen, "a gap in the log"
        fresh = batch.lines[seen - batch.first :]
        self._seen[batch.deployment_id, batch.attempt] += len(fresh)
        self.lines[batch.deployment_id].extend(fresh)
        self.progress[batch.deployment_id] = batch.progress


@pytest.fixture
async def control(open_dir, shelf):
    peer = ControlPeer(open_dir / "hosts.sock", shelf)
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
def tools(shelf, tmp_path):
    """What rollouts work with that this process makes itself; nothing has a config."""

    async def no_config(_: str) -> None:
        return None

    with ThreadPoolExecutor(2) as threads:
        yield RolloutTools(
            StoreReader(shelf.layout.root),
            Vault.open(tmp_path, may_create=True),
            no_config,
            threads,
            Sandboxes(),
            unpacking=asyncio.Semaphore(1),
            starting=asyncio.Semaphore(1),
            trusted=TrustedProxies(()),
        )


@dataclass
class HostProcess:
    """`gitd host` as a process of its own, with a socket that outlives it."""

    root: Path
    settings: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.directory = self.root / "host"
        self.log = self.root / "host.log"

    def start(self, **settings) -> None:
        config = {
            "socket": str(self.root / "hosts.sock"),
            "directory": str(self.directory),
            "store": str(self.root / "store"),
            "listen_fd": self.listener.fileno(),
            **({"uid": UID, "gid": UID} if UID is not None else {}),
            **self.settings,
            **settings,
        }
        self._run(warm(PRELOAD), str(HERE / "run_host.py"), json.dumps(config))

    def start_by_command(self, *options: str) -> None:
        """As a service manager does it."""
        command = ["-m", "gitd", "host", "--socket", str(self.root / "hosts.sock")]
        command += ["--dir", str(self.directory), "--store", str(self.root / "store")]
        command += ["--listen-fd", str(self.listener.fileno()), *options]
        if UID is not None:
            command += ["--uid", str(UID), "--gid", str(UID)]
        self._run(subprocess.Popen, *command)

    def _run(self, start: Callable[..., subprocess.Popen], *command: str) -> None:
        with self.log.open("ab") as log:
            self.process = start(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
                pass_fds=[self.listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """As a crash does it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def recorded_withdrawal(self, env_id: str = "env_1") -> None:
        """Wait until its state says that nothing is served: visitors see that before."""
        state = self.directory / "environments" / env_id / "state.json"
        async with asyncio.timeout(WAIT_S):
            while json.loads(state.read_text())["served"] is not None:
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """Ask it to end, and return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 30)

    def events(self) -> list[dict]:
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.listener.close()


@contextlib.contextmanager
def a_host(root):
    made = HostProcess(root)
    made.start()
    yield made
    made.close()
    text = made.log.read_text()
    print(text)
    assert "Traceback" not in text, text


@pytest.fixture
def another_host(open_dir):
    """A second host over the same folder, not started."""
    made = HostProcess(open_dir)
    yield made
    made.close()


@pytest.fixture
def host(open_dir):
    with a_host(open_dir) as made:
        yield made


@dataclass
class Served:
    """A host that serves one release, with control gone: tests share it and change nothing."""

    host: HostProcess
    shelf: Shelf


@pytest.fixture(scope="module")
def served(request):
    """The module's `RELEASE` (arguments of `Shelf.put`), served as env-1.localhost."""

    async def roll(root, shelf, pin):
        control = ControlPeer(root / "hosts.sock", shelf)
        await control.start()
        report = await control.roll(desired(pin=pin))
        await control.stop()
        assert report.status == "serving", report

    with a_folder() as root, a_host(root) as host:
        shelf = Shelf(root)
        asyncio.run(roll(root, shelf, shelf.put(**request.module.RELEASE)))
        yield Served(host, shelf)
        shelf.close()


@pytest.fixture
async def visitors():
    """Makes visitors of any port."""
    made = []

    def make(port):
        made.append(Visitor(port))
        return made[-1]

    yield make
    for visitor in made:
        await visitor.session.close()


@pytest.fixture
async def guest(served, visitors):
    """A visitor of the module's host."""
    return visitors(served.host.port)


class Visitor:
    """A browser of sorts: asks the host for a path of a host name."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.session = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=WAIT_S)
        )

    async def ask(self, path="/", *, host="env-1.localhost", method="GET", headers=None, **more):
        from yarl import URL

        async with self.session.request(
            method,
            URL(self.base + path, encoded=True),
            headers={"Host": host, **(headers or {})},
            allow_redirects=False,
            **more,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def text(self, path="/", **more) -> str:
        answer = await self.ask(path, **more)
        return answer.body.decode()

    async def until(self, wanted, path="/", **more) -> None:
        """Ask again and again until the answer has this status or text."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    answer = await self.ask(path, **more)
                    if wanted in (answer.status, answer.body.decode()):
                        return
                await asyncio.sleep(0.02)


@dataclass
class Answer:
    status: int
    headers: object
    body: bytes


@pytest.fixture
async def visitor(host, visitors):
    return visitors(host.port)
