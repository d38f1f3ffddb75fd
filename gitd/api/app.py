"""The API, put together: its parts, its table, and the routes to mount."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

from aiohttp import web

from gitd.addresses import TrustedProxies
from gitd.api import error_pages, openapi
from gitd.api.api_keys import ApiKeys
from gitd.api.artifacts import Artifacts
from gitd.api.audit_log import AuditLog
from gitd.api.builds import Builds
from gitd.api.capabilities import Capabilities
from gitd.api.deployments import Deployments
from gitd.api.dispatch import Dispatch, Gate
from gitd.api.domains import DnsHelp, EnvironmentDomains
from gitd.api.endpoint import Call, Endpoint, Form
from gitd.api.endpoints import (
    api_keys_table,
    artifacts_table,
    audit_log_table,
    builds_table,
    capabilities_table,
    deployments_table,
    domains_table,
    environments_table,
    jobs_table,
    program_logs_table,
    sites_table,
    variables_table,
    webhooks_table,
)
from gitd.api.envelope import ENCODER, answer_headers
from gitd.api.environments import Environments
from gitd.api.exports import Exports, OpenExport
from gitd.api.jobs import PAGES_COUNT_MAX, Jobs
from gitd.api.metrics import PATH as METRICS_PATH
from gitd.api.metrics import MetricsPage
from gitd.api.program_logs import ProgramLogs
from gitd.api.reading import BODY_TIMEOUT_S, NoBody, NoQuery
from gitd.api.sites import Sites
from gitd.api.stream import HEARTBEAT_S, JobStreams, OpenEnds
from gitd.api.variables import Variables
from gitd.api.webhooks import Webhooks
from gitd.auth import Authenticator
from gitd.log import Note, logged
from gitd.metrics.exporter import Exporter
from gitd.rate_limits import RateLimits, add_rate_headers
from hooks.deploys.control.program_logs import ProgramLogs as ProgramLogReaders
from hooks.deploys.wire import Running
from hooks.domains import Domains
from hooks.follow import Addresses
from hooks.jobs import Jobs as AllJobs
from hooks.pipeline import Pipeline
from hooks.sites import Sites as AllSites
from hooks.variables import Variables as AllVariables
from hooks.webhooks import Messenger
from storage.records.db import Records
from storage.records.recall import Recall


@dataclass(frozen=True, slots=True)
class ApiDeps:
    """What the API stands on.

    Attributes:
        manifest_bytes: Reads a manifest by its digest (`blake3:...`); blocks.
        envelope_bytes: Reads a signed statement by its SHA-256 in hexadecimal; blocks.
        running: Says how the program of an environment stands, by the environment's id.
        open_export: Opens an artifact with all that proves it, as one archive; blocks.
        dns: Says what makes a custom domain lead here.
        has_build_cache: Whether builds keep anything for the next ones.
        metrics: What `/metrics` shows, and hears of requests.
        metrics_networks: From where it is read without a key.
    """

    records: Records
    jobs: AllJobs
    sites: AllSites
    pipeline: Pipeline
    domains: Domains
    variables: AllVariables
    messenger: Messenger
    authenticator: Authenticator
    addresses: Addresses
    manifest_bytes: Callable[[str], bytes]
    envelope_bytes: Callable[[str], bytes]
    open_export: OpenExport
    dns: DnsHelp
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    running: Callable[[str], Running | None] = lambda _: None
    program_logs: ProgramLogReaders = field(default_factory=ProgramLogReaders)
    rate_limits: RateLimits | None = None
    has_build_cache: bool = False
    metrics: Exporter = field(default_factory=Exporter)
    metrics_networks: tuple[str, ...] = ()
    heartbeat_s: float = HEARTBEAT_S
    body_timeout_s: float = BODY_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Api:
    """The routes to mount, and what to do at the end.

    `mount` adds them to an application. `close` ends the streams and long polls that are open:
    call it when the server stops (`app.on_shutdown`), or it waits for them.
    """

    routes: list[web.RouteDef]
    endpoints: tuple[Endpoint, ...]
    open_ends: OpenEnds
    has_rate_limits: bool

    def mount(self, app: web.Application) -> None:
        app.add_routes(self.routes)
        if self.has_rate_limits:
            app.on_response_prepare.append(add_rate_headers)

    async def close(self) -> None:
        await self.open_ends.close()


class Description:
    """Serves the OpenAPI document, to anybody.

    It is made when it is first asked for: a start need not wait for what few want.
    """

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._endpoints: tuple[Endpoint, ...] = ()
        self._data = b""
        self._etag = ""

    def describe(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints

    def _make(self) -> None:
        described = openapi.document(
            self._endpoints, server_url=self._server_url, version=version("gitd")
        )
        self._data = ENCODER.encode(described)
        self._etag = f'"{hashlib.sha256(self._data).hexdigest()[:32]}"'

    async def show(self, call: Call[NoQuery, NoBody]) -> web.Response:
        if not self._data:
            self._make()
        headers = answer_headers(call.request_id, version=call.version)
        headers["Cache-Control"] = "no-cache"
        headers["ETag"] = self._etag
        if call.request.headers.get("If-None-Match") == self._etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._data, headers=headers)


def build_api(deps: ApiDeps) -> Api:
    """Return the API's routes: everything below /v1, /errors and /metrics."""
    freshness = deps.authenticator.freshness
    recall = Recall(deps.records, freshness=freshness)
    pages = Recall(deps.records, entries_max=PAGES_COUNT_MAX, freshness=freshness)
    open_ends = OpenEnds()
    streams = JobStreams(deps.jobs, open_ends, heartbeat_s=deps.heartbeat_s)
    description = Description(deps.addresses.server)
    endpoints = (
        *jobs_table(Jobs(deps.jobs, deps.pipeline, streams, open_ends, recall, pages)),
        *api_keys_table(ApiKeys(deps.jobs)),
        *audit_log_table(AuditLog()),
        *webhooks_table(Webhooks(deps.jobs, deps.variables.vault, deps.messenger)),
        *sites_table(Sites(deps.sites, deps.addresses)),
        *capabilities_table(
            Capabilities(
                deps.sites,
                has_build_cache=deps.has_build_cache,
                has_rate_limits=deps.rate_limits is not None,
            )
        ),
        *environments_table(Environments(deps.sites, deps.addresses, deps.running)),
        *domains_table(EnvironmentDomains(deps.domains, deps.addresses, deps.dns)),
        *variables_table(Variables(deps.variables)),
        *builds_table(Builds(deps.jobs, deps.pipeline, streams)),
        *artifacts_table(
            Artifacts(deps.pipeline, deps.manifest_bytes, deps.envelope_bytes),
            Exports(deps.open_export),
        ),
        *deployments_table(Deployments(deps.pipeline)),
        *program_logs_table(
            ProgramLogs(deps.program_logs, open_ends, heartbeat_s=deps.heartbeat_s)
        ),
        Endpoint(
            "GET",
            "/v1/openapi.json",
            description.show,
            "Describe this API",
            form=Form.RAW,
            is_public=True,
        ),
    )
    description.describe(endpoints)
    gate = Gate(recall, deps.authenticator, deps.proxies)
    dispatch = Dispatch(
        gate,
        deps.records,
        server_url=deps.addresses.server,
        freshness=freshness,
        body_timeout_s=deps.body_timeout_s,
        rate_limits=deps.rate_limits,
    )
    page = MetricsPage(deps.metrics, gate, dispatch.refuse, networks=deps.metrics_networks)
    noted = deps.metrics.requests.of
    routes = [_route(endpoint, dispatch, noted(endpoint.path)) for endpoint in endpoints]
    fallback = logged(dispatch.fallback(endpoints), noted("/v1/{path}"))
    routes += [web.route("*", "/v1", fallback), web.route("*", "/v1/{path:.*}", fallback)]
    routes += [
        web.get("/errors", logged(error_pages.index, noted("/errors"))),
        web.get("/errors/{code}", logged(error_pages.show, noted("/errors/{code}"))),
        web.get(METRICS_PATH, logged(page.show, noted(METRICS_PATH))),
    ]
    return Api(routes, endpoints, open_ends, deps.rate_limits is not None)


def _route(endpoint: Endpoint, dispatch: Dispatch, note: Note) -> web.RouteDef:
    handler = logged(dispatch.handler(endpoint), note)
    if endpoint.method == "GET":
        return web.get(endpoint.path, handler)  # HEAD too
    return web.route(endpoint.method, endpoint.path, handler)
