"""A proxy: passes requests on to a web process of this machine, and its answers back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from multidict import CIMultiDict
from yarl import URL

from hooks.deploys.web import pages
from hooks.deploys.web.forwarding import (
    TrustedProxies,
    destination,
    end_to_end,
    own_cookies,
    request_headers,
)
from hooks.deploys.web.tunnel import Tunnel
from hooks.portions import Portions

CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_TIMEOUT_S: Final = 600.0
"""How long a process may say nothing, before its answer or within it."""
REUSE_WITHIN_S: Final = 2.0
"""How long an idle connection is kept: less than the servers of the common languages do (Node: 5),
so that a request never meets a connection that is just being closed."""
HEADER_BYTES_MAX: Final = 64 * 1024

INTERIM_COUNT_MAX: Final = 16
"""Answers before the answer, such as 103: who sends more is broken off."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_log = structlog.get_logger()


class NotListeningError(Exception):
    """Nobody accepts connections at the port: nothing of the request was sent."""


class WebProxy:
    """Passes requests on to 127.0.0.1, to the port that `port` gives now.

    Bodies stream both ways, WebSockets too.

    Requests that can be repeated share connections; any other gets its own, because nobody can
    tell whether a request on a connection that broke was carried out.
    """

    def __init__(self, port: Callable[[], int], *, trusted: TrustedProxies) -> None:
        self._port = port
        self._trusted = trusted
        self._shared = _session(
            _Connector(limit=0, keepalive_timeout=REUSE_WITHIN_S, use_dns_cache=False)
        )
        self._single = _session(_Connector(limit=0, force_close=True))
        # Otherwise a session repeats PUT, DELETE and TRACE too, which HTTP calls idempotent, and on
        # fresh connections as well; aiohttp has no public way to say so.
        self._single._retry_connection = False  # noqa: SLF001
        self._tunnels: set[Tunnel] = set()
        self._answers: set[aiohttp.ClientResponse] = set()

    async def close(self) -> None:
        """Break off what is still in flight, and let go of all connections."""
        self.end_tunnels()
        for answer in self._answers:
            answer.close()  # a reader of a session that is closed is not told, and waits for ever
        await self._shared.close()
        await self._single.close()

    def end_tunnels(self) -> None:
        """End upgraded connections: they would outlast any drain."""
        for tunnel in self._tunnels:
            tunnel.end()

    async def forward(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Answer `request` with what the process says to it. The answer is sent when it returns.

        Raises:
            NotListeningError: The process does not accept connections.
        """
        headers = request_headers(
            request.headers,
            host=_host_of(request),
            peer=request.remote or "",
            scheme=request.scheme,
            trusted=self._trusted,
        )
        upgrade = _upgrade(request)
        if upgrade is not None:
            headers["Connection"] = "Upgrade"
            headers["Upgrade"] = upgrade
        if request.headers.get("Expect", "").lower() == "100-continue":
            await _ask_for_body(request)
        base = f"http://127.0.0.1:{self._port()}"
        is_repeatable = request.method in _SAFE_METHODS and not request.can_read_body
        attempt = _Attempt()
        session = self._shared if is_repeatable and upgrade is None else self._single
        try:
            async with session.request(
                request.method,
                URL(base + target, encoded=True),
                headers=headers,
                data=request.content if request.can_read_body else None,
                skip_auto_headers=_OWN_HEADERS,
                allow_redirects=False,
                trace_request_ctx=attempt,
            ) as answer:
                if answer.status == 101:
                    if upgrade is None or not _switches_to(answer, upgrade):
                        answer.close()
                        _log.info("web_process_switched_unasked", target=base)
                        return pages.bad_gateway()
                    return await self._tunnel(request, answer)
                if not _is_regular(answer):
                    answer.close()
                    _log.info("web_process_answered_oddly", target=base, status=answer.status)
                    return pages.bad_gateway()
                self._answers.add(answer)
                try:
                    return await _relay(request, answer)
                finally:
                    self._answers.discard(answer)
        except aiohttp.ClientConnectorError as error:
            if attempt.was_connected:
                return pages.bad_gateway()
            raise NotListeningError from error
        except TimeoutError:
            return pages.gateway_timeout()
        except aiohttp.ClientConnectionResetError:
            raise  # the visitor left
        except aiohttp.ClientError as error:
            _log.info("web_process_broke_off", target=base, reason=repr(error))
            return pages.bad_gateway()

    async def _tunnel(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = end_to_end(answer.headers)
        own_cookies(headers, _host_of(request))
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = answer.headers["Upgrade"]
        response = web.StreamResponse(status=101, reason=answer.reason, headers=headers)
        response.force_close()
        connection = answer.connection
        if connection is None or connection.protocol is None:
            return pages.bad_gateway()
        await response.prepare(request)
        tunnel = Tunnel(request.protocol, connection.protocol)
        self._tunnels.add(tunnel)
        try:
            connection.protocol.set_parser(tunnel.to_visitor, tunnel.to_visitor)
            request.protocol.set_parser(tunnel.to_process)  # type: ignore[arg-type] # duck-typed
            await tunnel.run()
        finally:
            self._tunnels.discard(tunnel)
        return response


@dataclass(slots=True)
class _Attempt:
    """Whether the request may have been sent.

    The session repeats a request that can be repeated, once, when its connection broke. If nobody
    listens then, the request may be what ended the process: it must not be sent a third time.
    """

    was_connected: bool = False


async def _on_connection(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
) -> None:
    context.trace_request_ctx.was_connected = True


class _Connection(ResponseHandler):
    """A connection to the process: read little by little, and broken off if it never answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim_count = 0
        self._portions: Portions | None = None  # once it is connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._portions = Portions(transport)

    def data_received(self, data: bytes) -> None:
        if self._portions is not None:
            self._portions.take(data, super().data_received)

    def feed_data(
        self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0
    ) -> None:
        is_interim = 100 <= data[0].code < 200
        self._interim_count = self._interim_count + 1 if is_interim else 0
        if self._interim_count <= INTERIM_COUNT_MAX:
            super().feed_data(data, size)
        elif self.exception() is None:
            self.set_exception(aiohttp.ClientPayloadError("no end of answers before the answer"))
            if self.transport is not None:
                self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Makes such connections: aiohttp has no public way to say so."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        make: Callable[..., ResponseHandler] = _Connection
        self._factory = partial(make, loop=self._loop)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_on_connection)
    trace.on_connection_create_end.append(_on_connection)
    return aiohttp.ClientSession(
        connector=connector,
        trace_configs=[trace],
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
        ),
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
    )


def _host_of(request: web.BaseRequest) -> str:
    return destination(request.raw_path, request.headers.get("Host", ""))[0]


def _is_regular(answer: aiohttp.ClientResponse) -> bool:
    """Say whether every proxy behind this one reads it alike. Source: RFC 9110, 5.1 and 15."""
    return 200 <= answer.status <= 599 and all(map(_TOKEN.fullmatch, answer.headers))


def _upgrade(request: web.BaseRequest) -> str | None:
    """Return the protocol that the visitor wants to switch to, if it is one that we tunnel."""
    wanted = request.headers.get("Upgrade", "")
    named = request.headers.get("Connection", "").lower()
    return wanted if wanted.lower() == "websocket" and "upgrade" in named else None


def _switches_to(answer: aiohttp.ClientResponse, protocol: str) -> bool:
    """Say whether the process switches to what the visitor asked for, and so knows what follows.

    Source: RFC 9110, 7.8 and 15.2.2.
    """
    named = [name.strip().lower() for name in answer.headers.getall("Upgrade", ())]
    return named == [protocol.lower()]


async def _ask_for_body(request: web.BaseRequest) -> None:
    """Source: RFC 9110, 10.1.1."""
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # of the answer itself nothing is out yet


class _PassedOn(web.StreamResponse):
    """A response with the process's headers alone: no media type is made up for it."""

    async def _prepare_headers(self) -> None:
        absent = [name for name in ("Content-Type", "Server") if name not in self.headers]
        await super()._prepare_headers()
        for name in absent:
            self.headers.popall(name, None)


async def _relay(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers: CIMultiDict[str] = end_to_end(answer.headers)
    own_cookies(headers, _host_of(request))
    response = _PassedOn(status=answer.status, reason=_reason(answer), headers=headers)
    await response.prepare(request)
    while chunk := await _next_chunk(answer):
        await response.write(chunk)
    await response.write_eof()
    return response


def _reason(answer: aiohttp.ClientResponse) -> str | None:
    """The process's words beside the status, if they can stand in a status line; else the usual."""
    reason = answer.reason
    return reason if reason is not None and reason.isascii() and reason.isprintable() else None


async def _next_chunk(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, TimeoutError) as error:
        _log.info("web_process_broke_off", target=str(answer.url), reason=repr(error))
        raise ConnectionResetError("the answer is incomplete") from error
