"""The hosts' socket: what the site host asks of control and tells it, over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from hooks.deploys.control.program_logs import ProgramLogs
from hooks.deploys.control.runner import RollRunner
from hooks.deploys.wire import DesiredMessage, EnvironmentIds, Report, RollLog
from hooks.errors import RefusedError
from hooks.peers import only_from
from storage.errors import SealBrokenError

T = TypeVar("T")
log = structlog.get_logger(__name__)
BODY_BYTES_MAX = 16 * 1024 * 1024


def make_app(runner: RollRunner, logs: ProgramLogs, *, uids: Collection[int]) -> web.Application:
    """The application behind `hosts.sock`, for callers that run as one of `uids`."""
    service = _HostService(runner, logs)
    app = web.Application(middlewares=[only_from(uids)], client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/v1/desired", service.desired)
    app.router.add_get("/v1/configs/{deployment}", service.config)
    app.router.add_post("/v1/gone", service.gone)
    app.router.add_post("/v1/reports", service.report)
    app.router.add_post("/v1/log", service.log)
    app.router.add_post("/v1/program-logs/{id}", service.program_log)
    return app


class _HostService:
    def __init__(self, runner: RollRunner, logs: ProgramLogs) -> None:
        self._runner = runner
        self._logs = logs

    async def desired(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        hears = request.query.get("hears", "").split(",")

        async def tell(message: DesiredMessage) -> None:
            await response.write(msgspec.json.encode(message) + b"\n")

        messages = self._runner.desired(
            hears_coming="coming" in hears, is_gone=lambda: request.transport is None
        )
        with contextlib.suppress(ConnectionError), contextlib.ExitStack() as stack:
            async with contextlib.aclosing(messages):
                await tell(await anext(messages))  # before anything else, all that there is
                if "logs" in hears:
                    stack.enter_context(self._logs.asked_of(tell))
                async for message in messages:
                    await tell(message)
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

    async def gone(self, request: web.Request) -> web.Response:
        asked = await _body(request, EnvironmentIds)
        gone = EnvironmentIds(tuple(self._runner.gone(asked.env_ids)))
        return web.Response(body=msgspec.json.encode(gone), content_type="application/json")

    async def report(self, request: web.Request) -> web.Response:
        await self._runner.report(await _body(request, Report))
        return _nothing()

    async def log(self, request: web.Request) -> web.Response:
        self._runner.take_log(await _body(request, RollLog))
        return _nothing()

    async def program_log(self, request: web.Request) -> web.Response:
        if not await self._logs.take(request.match_info["id"], request.content):
            raise web.HTTPGone(text="nobody reads that\n")
        return _nothing()


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error


def _nothing() -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")
