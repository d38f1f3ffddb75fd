"""The hosts' socket: what the site host asks of control and tells it, over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from hooks.deploys.runner import RollRunner
from hooks.deploys.wire import Report, RollLog
from hooks.errors import RefusedError
from hooks.peers import only_from
from storage.errors import SealBrokenError

T = TypeVar("T")
log = structlog.get_logger(__name__)
BODY_BYTES_MAX = 16 * 1024 * 1024


def make_app(runner: RollRunner, *, uids: Collection[int]) -> web.Application:
    """The application behind `hosts.sock`, for callers that run as one of `uids`."""
    service = _HostService(runner)
    app = web.Application(middlewares=[only_from(uids)], client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/v1/desired", service.desired)
    app.router.add_get("/v1/configs/{deployment}", service.config)
    app.router.add_post("/v1/reports", service.report)
    app.router.add_post("/v1/log", service.log)
    return app


class _HostService:
    def __init__(self, runner: RollRunner) -> None:
        self._runner = runner

    async def desired(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        messages = self._runner.desired(hears_coming=request.query.get("hears") == "coming")
        with contextlib.suppress(ConnectionError):
            async with contextlib.aclosing(messages):
                async for message in messages:
                    await response.write(msgspec.json.encode(message) + b"\n")
        return response

    async def config(self, request: web.Request) -> web.Response:
        try:
            config = self._runner.config_of(request.match_info["deployment"])
        except (RefusedError, SealBrokenError) as error:
            log.warning("config_not_given", reason=str(error))
            raise web.HTTPNotFound(text=f"{error}\n") from error
        if config is None:
            raise web.HTTPNotFound(text="nothing is given to that\n")
        return web.Response(body=msgspec.json.encode(config), content_type="application/json")

    async def report(self, request: web.Request) -> web.Response:
        await self._runner.report(await _body(request, Report))
        return _nothing()

    async def log(self, request: web.Request) -> web.Response:
        self._runner.take_log(await _body(request, RollLog))
        return _nothing()


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error


def _nothing() -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")
