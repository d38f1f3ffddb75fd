"""The API on a real port over real records, repositories and a real store, in this process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, web

from gitd.addresses import TrustedProxies
from gitd.api.app import Api, ApiDeps, build_api
from gitd.api.domains import DnsHelp
from gitd.api.webhook_bodies import render
from gitd.api_keys import mint
from gitd.auth import Authenticator
from gitd.metrics.exporter import Exporter
from gitd.rate_limits import RateLimits
from gitd.scopes import expand_scopes
from hooks.builds.control.leases import BuildLimits
from hooks.builds.control.packing import Packer
from hooks.builds.control.runner import BuildRunner
from hooks.builds.sources.sources import Sources
from hooks.builds.sources.submodules import Submodules
from hooks.builds.wire import BatchLine, BuildError, Finish, LogBatch
from hooks.configs import Configs
from hooks.deploys.control.issuing import ReleaseIssuer
from hooks.deploys.control.program_logs import ProgramLogs
from hooks.deploys.control.rolling import RollLimits
from hooks.deploys.control.runner import RollRunner
from hooks.deploys.wire import Report, RollFailure
from hooks.domains import Domains
from hooks.follow import Addresses
from hooks.hostnames import PlatformNames
from hooks.jobs import Jobs
from hooks.pipeline import Pipeline
from hooks.sites import Sites
from hooks.variables import Variables
from hooks.webhooks import Messenger
from storage.artifacts import ArtifactStore
from storage.custody import Custody
from storage.digest import Digest
from storage.export import exporting
from storage.joblog import JobLogs
from storage.model import ApiKey
from storage.reader import StoreReader
from storage.records import api_keys, deployments, release_statements
from storage.records.db import Records
from storage.repos import Repositories
from storage.sealing import Vault
from tests.committing import write_commit
from tests.new_records import open_records

PLATFORM = PlatformNames("sites.forge.example", "forge.example")


class FrozenClock:
    """The time of day, as a test sets it. Milliseconds."""

    def __init__(self) -> None:
        self.now = 1_780_000_000_000

    def __call__(self) -> int:
        return self.now


@dataclass
class Heard:
    """An answer: `body` is its JSON, or None when it is no JSON."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    body: Any

    @property
    def data(self) -> Any:
        return self.body["data"]

    @property
    def code(self) -> str:
        return self.body["error"]["code"]


@dataclass
class Service:
    """A server and its client. `stop` and `start` give what a restart would."""

    root: Path
    clock: FrozenClock
    proxies: tuple[str, ...] = ()
    heartbeat_s: float = 15.0
    body_timeout_s: float = 30.0
    rate_limits: RateLimits | None = None
    has_build_cache: bool = False
    metrics_networks: tuple[str, ...] = ()
    secret: str = ""
    records: Records = field(init=False)
    jobs: Jobs = field(init=False)
    api: Api = field(init=False)

    async def start(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.records = open_records(self.root / "gitd.db")
        self.jobs = Jobs(self.records, JobLogs(self.root / "joblogs"), self.clock)
        self.jobs.recover()
        self.repositories = Repositories(self.root / "repos")
        self.store = ArtifactStore.open(self.root / "store", self.records, group=None)
        (self.root / "keys").mkdir(exist_ok=True)
        self.custody = Custody(self.root / "keys")
        self.custody.open(self.store.layout.trust)
        self.reader = StoreReader(self.root / "store")
        (self.root / "tmp").mkdir(exist_ok=True)
        submodules = Submodules(
            self.records, self.repositories, lambda _, __: False, server_url="http://forge.example"
        )
        sources = Sources(self.repositories, submodules, self.jobs, timeout_s=60)
        packer = Packer(
            self.jobs,
            sources,
            self.store,
            self.custody.seal,
            scratch=self.root / "tmp",
            size_bytes_max=BuildLimits().output_bytes_max,
        )
        self.builds = BuildRunner(self.jobs, sources, packer, limits=BuildLimits())
        variables = Variables(self.jobs, Vault.open(self.root / "keys", may_create=True))
        configs = Configs(variables)
        self.rolls = RollRunner(
            self.jobs,
            ReleaseIssuer(self.jobs, self.custody, self.store.layout, configs),
            configs,
            limits=RollLimits(roll_timeout_s=60, host_timeout_s=60),
            names=PLATFORM,
        )
        self.messenger = Messenger(self.jobs, variables.vault, render, may_be_private=True)
        self.addresses = Addresses(
            of_environment=lambda env: f"http://{env.hostname}.localhost:8081",
            server=self.url,
            platform=PLATFORM,
        )
        self.program_logs = ProgramLogs()
        self.metrics = Exporter()
        self.api = build_api(
            ApiDeps(
                records=self.records,
                jobs=self.jobs,
                sites=Sites(self.jobs, self.repositories),
                pipeline=Pipeline(self.jobs, self.repositories),
                domains=Domains(self.jobs, PLATFORM),
                dns=DnsHelp(PLATFORM, ("203.0.113.7", "2001:db8::7")),
                variables=variables,
                messenger=self.messenger,
                authenticator=Authenticator(self.records, self.clock),
                addresses=self.addresses,
                manifest_bytes=lambda digest: self.reader.manifest(Digest.parse(digest)).data,
                envelope_bytes=self.reader.envelope,
                open_export=lambda digest, provenance, releases: exporting(
                    self.store, self.reader, digest, provenance=provenance, releases=releases
                ),
                proxies=TrustedProxies(self.proxies),
                running=self.rolls.running,
                program_logs=self.program_logs,
                rate_limits=self.rate_limits,
                has_build_cache=self.has_build_cache,
                metrics=self.metrics,
                metrics_networks=self.metrics_networks,
                heartbeat_s=self.heartbeat_s,
                body_timeout_s=self.body_timeout_s,
            )
        )
        app = web.Application()
        self.api.mount(app)
        app.on_shutdown.append(lambda _: self.api.close())
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
        await self.runner.setup()
        await web.SockSite(self.runner, self.socket).start()
        self.client = ClientSession(self.url, timeout=ClientTimeout(total=30))

    async def stop(self) -> None:
        await self.client.close()
        await self.runner.cleanup()
        self.records.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    # -- keys and requests

    def key(self, *scopes: str, preset: str | None = None, **more: Any) -> str:
        """Make a key and return its secret."""
        return self.minted(*scopes, preset=preset, **more)[0]

    def minted(self, *scopes: str, preset: str | None = None, **more: Any) -> tuple[str, ApiKey]:
        label = more.pop("label", "tests")
        expanded = expand_scopes(scopes, preset=preset)
        secret, key = mint(label, expanded, now=self.clock.now, **more)
        self.records.write(lambda db: api_keys.add(db, key))
        return secret.reveal(), key

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        secret: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Heard:
        sent = {} if secret == "" else {"Authorization": f"Bearer {secret or self.secret}"}
        sent |= headers or {}
        if body is not None:
            more["json"] = body
        async with self.client.request(method, path, headers=sent, **more) as answer:
            raw = await answer.read()
            is_json = answer.content_type == "application/json" and raw
            return Heard(answer.status, answer.headers, raw, json.loads(raw) if is_json else None)

    async def get(self, path: str, **more: Any) -> Heard:
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> Heard:
        return await self.call("POST", path, body, **more)

    async def until(self, path: str, **wanted: Any) -> Heard:
        """Poll a job by its ETag until it has the fields that are wanted."""
        heard = await self.get(path)
        for _ in range(20):
            if all(heard.data[name] == value for name, value in wanted.items()):
                return heard
            seen = {"If-None-Match": heard.headers["ETag"]}
            changed = await self.get(f"{path}?wait=5", headers=seen)
            assert changed.status == 200, f"{heard.data} stays so"
            heard = changed
        raise AssertionError(heard.data)

    async def every(self, path: str, *, limit: int = 100, **more: Any) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        cursor = ""
        while True:
            mark = "&" if "?" in path else "?"
            page = await self.get(f"{path}{mark}limit={limit}{cursor}", **more)
            assert page.status == 200, page.raw
            items += page.data
            if not page.body["pagination"]["has_more"]:
                return items
            cursor = f"&cursor={page.body['pagination']['next_cursor']}"

    # -- what builders and the site host would do

    def commit(self, site_id: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        return write_commit(self.repositories.path(site_id), files, branch=branch)

    async def build(self, *lines: str, error: BuildError | None = None) -> str:
        """Carry out the oldest queued build; returns its job's id."""
        lease = await self.builds.lease("slot-0", 5)
        assert lease is not None
        if lines:
            at = "2026-06-23T00:00:00.000Z"
            batch = LogBatch(0, tuple(BatchLine(line, at, "build") for line in lines))
            self.builds.take_log(lease.job_id, batch)
        outcome = (
            Finish("slot-0", "failed", error=error)
            if error
            else Finish("slot-0", "succeeded", profile="static", output="source", folder=".")
        )
        await self.builds.finish(lease.job_id, outcome)
        return lease.job_id

    async def serve(self, env_id: str, failure: RollFailure | None = None) -> None:
        """Answer the deployment that an environment should serve, as the site host would."""
        deployment, *_ = deployments.unfinished(self.records.reader(), env_id)
        while release_statements.of_deployment(self.records.reader(), deployment.id) is None:
            await asyncio.sleep(0)
        status = "failed" if failure else "serving"
        await self.rolls.report(Report(env_id, deployment.id, status, failure))


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
async def service(tmp_path: Path, clock: FrozenClock) -> AsyncIterator[Service]:
    """A server with a key that may do everything but what is isolated."""
    opened = Service(tmp_path, clock)
    await opened.start()
    opened.secret = opened.key("*", label="the owner")
    yield opened
    await opened.stop()


@dataclass
class Acme:
    """A site with a commit on `main`. Paths end without a slash."""

    service: Service
    id: str
    path: str
    production: str
    staging: str
    commit: str

    async def env_id(self, slug: str) -> str:
        return (await self.service.get(f"{self.path}/environments/{slug}")).data["id"]

    async def release(self, content: bytes, slug: str = "production") -> Any:
        """Commit, build, deploy and serve; returns the new release."""
        self.service.commit(self.id, {"index.html": content})
        where = f"{self.path}/environments/{slug}"
        body = {"ref": "main", "deploy": True}
        assert (await self.service.post(f"{where}/builds", body)).status == 202
        await self.service.build()
        await self.service.serve(await self.env_id(slug))
        return (await self.service.get(f"{where}/releases")).data[0]


@pytest.fixture
async def acme(service: Service) -> Acme:
    site = (await service.post("/v1/sites", {"name": "acme-store"})).data
    path = "/v1/sites/acme-store"
    made = service.commit(site["id"], {"index.html": b"one"})
    environments = f"{path}/environments"
    return Acme(
        service,
        site["id"],
        path,
        f"{environments}/production",
        f"{environments}/staging",
        made,
    )
