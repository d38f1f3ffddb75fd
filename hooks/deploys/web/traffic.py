"""Traffic: visitors' requests, from the listening socket to the release that answers them."""

from __future__ import annotations

import logging
import time
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import structlog
from aiohttp import web

from hooks.deploys.web import pages
from hooks.deploys.web.forwarding import destination
from hooks.deploys.web.router import Router
from hooks.deploys.web.serving import Absence, Serving
from hooks.http_server import Server, affordable

HOLD_S: Final = 10.0
"""How long a request waits for an environment that is only just starting with its host."""
ASK_PATH: Final = "/served"
KEEP_ALIVE_S: Final = 75.0
HEAD_BYTES_MAX: Final = 32 * 1024
"""Of a request: its line and all its headers."""
CONNECTIONS_MAX: Final = 8192

_log = structlog.get_logger()
_silent = logging.Logger("hooks.deploys.web.traffic")  # noqa: LOG001 - nobody is to configure it
_silent.addHandler(logging.NullHandler())  # aiohttp's: it would write a traceback per bad request


def make_server(router: Router[Serving]) -> Server:
    """Make the HTTP server. Call it in the loop."""
    traffic = Traffic(router)
    server = Server(
        traffic.handle,
        access_log=None,
        logger=_silent,
        handler_cancellation=True,  # who leaves takes the request along
        auto_decompress=False,  # bodies pass as they are
        keepalive_timeout=KEEP_ALIVE_S,
        max_line_size=HEAD_BYTES_MAX,
        max_field_size=HEAD_BYTES_MAX,
    )
    server.connections_max = affordable(CONNECTIONS_MAX)
    server.head_bytes_max = HEAD_BYTES_MAX
    return server


class Traffic:
    """Finds who answers a request, and counts it in that release while it is answered."""

    def __init__(self, router: Router[Serving]) -> None:
        self._router = router

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started_at = time.perf_counter()
        try:
            response = await self._answer(request)
        except ConnectionError:
            response = _broken_off(request)
        except Exception:  # noqa: BLE001 - the ring around a request
            _log.exception("request_failed", target=request.raw_path)
            started = request.writer.output_size > 0
            response = _broken_off(request) if started else pages.internal_error()
        _log.debug(
            "request_served",
            host=request.headers.get("Host"),
            method=request.method,
            target=request.raw_path,
            status=response.status,
            seconds=round(time.perf_counter() - started_at, 4),
        )
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if _head_bytes(request) > HEAD_BYTES_MAX:
            return pages.head_too_large()
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1:
            return pages.bad_request("A request names one host.")
        host, target = destination(request.raw_path, hosts[0] if hosts else "")
        if not target.startswith("/"):
            return pages.bad_request("A request names a path.")
        serving = self._router.find(host)
        if serving is None:
            name = _asked_about(request.method, host, target)
            if name is not None:
                return pages.served() if self._router.find(name) is not None else pages.not_served()
            return pages.unknown_host()
        await serving.decided(timeout_s=HOLD_S)
        release = serving.current
        if release is None:
            return _absent(serving)
        with release.in_flight():
            response = await release.responder.respond(request, target)
            await response.prepare(request)
            await response.write_eof()
            return response


def _asked_about(method: str, host: str, target: str) -> str | None:
    """The name of which a front asks whether it is served here, before it gets a certificate.

    Anybody may ask: a request with that `Host` tells as much. So a front needs no key, and no
    control that might be away. Only by an address does it come here: all names are the sites' own.
    """
    path, _, query = target.partition("?")
    if path != ASK_PATH or method not in ("GET", "HEAD") or not _is_address(host):
        return None
    return next((value for name, value in parse_qsl(query) if name == "domain"), "")


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _head_bytes(request: web.BaseRequest) -> int:
    """How long the request's line and headers are, as they are usually written."""
    line = len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n")
    fields = sum(len(name) + len(value) for name, value in request.raw_headers)
    return line + fields + len(": \r\n") * len(request.raw_headers)


def _broken_off(request: web.BaseRequest) -> web.StreamResponse:
    """End the connection: the visitor left, or the answer cannot be finished.

    When its head is out, that is the one way left to say "incomplete".
    """
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)  # for the log; nobody gets it


def _absent(serving: Serving) -> web.StreamResponse:
    match serving.absence:
        case Absence.NOTHING_RELEASED:
            return pages.nothing_released()
        case Absence.SUSPENDED:
            return pages.suspended()
        case Absence.REFUSED:
            return pages.unavailable(serving.code)
        case Absence.STARTING:
            return pages.starting()
