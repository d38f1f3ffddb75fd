"""HTTP as aiohttp serves it, within bounds, and saying no more of itself than it must.

A connection that waits too long for the head of a request is closed, and so is one whose head has
no end; those that only send what nobody reads and idle ones make room for new ones, what is no HTTP
is answered in one line, and a stop ends requests within its time.
"""

from __future__ import annotations

import asyncio
import re
import resource
from dataclasses import dataclass
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Final

import structlog
from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from hooks.portions import Portions

SERVER: Final = "gitd"
FILES_PER_CONNECTION: Final = 2  # itself, and what it is sent
FILES_BESIDE: Final = 1024  # packs, records, processes, ...
BROKEN_OFF_NAMED_MAX: Final = 10
_LAST_WORDS_S: Final = 2.0
_NO_HTTP: Final = "This is no request that HTTP/1.1 allows"
_DUPLICATE: Final = re.compile(r"Duplicate '([A-Za-z-]+)' header found\.")  # aiohttp's words
_HEAD_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a server.

    Attributes:
        connections_max: beyond it, one that was answered and still sends the body of its request
            is closed for a new one, or the one that has been idle longest.
        keepalive_s: how long a connection may be open without the whole head of a request.
        drain_s: how long requests may go on when the server stops.
    """

    connections_max: int = 4096
    keepalive_s: float = 120.0
    drain_s: float = 10.0


class Connection(web.RequestHandler):
    """A connection. What is no HTTP, and what no handler answers, is answered in one line."""

    __slots__ = ("_answered_at", "_head_bytes", "_left_unread", "_portions")

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._head_bytes = 0  # so many came of a head that is not whole
        self._left_unread: StreamReader | None = None  # the body of what was answered last
        self._answered_at = 0.0
        self._portions: Portions | None = None  # once it is connected

    @property
    def idle_since(self) -> float | None:
        """When it began to wait for a request, on a clock of its own; None while it has one."""
        if self._waiter is None or self._waiter.done():
            return None
        return self._next_keepalive_close_time

    @property
    def lingers_since(self) -> float | None:
        """When it was answered, if all that it does is to send a body that nobody reads."""
        if self._left_unread is None or self._left_unread.is_eof() or self._force_close:
            return None
        return self._answered_at

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        self._left_unread, self._answered_at = request.content, self._loop.time()
        return finished

    def give_way(self) -> None:
        """Close it, and read nothing more."""
        if self.lingers_since is not None and self._task_handler is not None:
            self._task_handler.cancel()  # it would wait for the body all the same
        self.force_close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._portions = Portions(transport)
        if isinstance(self._manager, Server):
            self._manager.make_room(self)

    def data_received(self, data: bytes) -> None:
        if self._portions is not None:
            self._portions.take(data, super().data_received)
        if self.idle_since is None:  # the head was whole, or another request comes first
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        bound = self._manager.head_bytes_max if isinstance(self._manager, Server) else None
        if bound is not None and self._head_bytes > bound:
            if self.transport is not None:
                self.transport.write(_HEAD_TOO_LONG)
            self.force_close()

    def break_off(self) -> str | None:
        """End it at once, whatever it does; return the request that this ends, if there is one."""
        request = self._current_request
        if self._task_handler is not None:
            self._task_handler.cancel()
        if self.transport is not None:
            self.transport.abort()
        if request is None:
            return None
        return f"{request.method} {request.path}"

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            # No fault of ours, anybody can send it, and its words quote the request: a password.
            _log.info("request_malformed", reason=type(error).__name__)
        elif isinstance(error, ConnectionError):
            return  # the visitor left, or was to see that it ends in the middle: no fault of ours
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, HttpProcessingError):
            self.log_exception(exc_info=exc)
        else:
            super().handle_error(request, status, exc, message)  # logs, knows when it is late
        known = HTTPStatus(status)
        is_bad = known is HTTPStatus.BAD_REQUEST
        text = _no_http(exc) if is_bad else f"{known.value} {known.phrase}\n"
        response = web.Response(status=status, text=text, headers={hdrs.SERVER: SERVER})
        response.force_close()
        return response


def _no_http(error: BaseException | None) -> str:
    """Words for a request that is none; they quote nothing of it but the name of a header."""
    twice = _DUPLICATE.fullmatch(error.message) if isinstance(error, HttpProcessingError) else None
    return f"{_NO_HTTP}{f': its {twice[1]} is there twice' if twice else ''}.\n"


class Server(web.Server):
    """Makes connections of that kind, and knows how many there may be."""

    connections_max: int | None = None
    head_bytes_max: int | None = None

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def make_room(self, newest: Connection) -> None:
        """Close one if there are too many: one that lingers, the longest idle, or the newest.

        Anybody can have a connection linger: whoever is refused needs no key for it.
        """
        if self.connections_max is None or len(self._connections) <= self.connections_max:
            return
        ours = [
            connection for connection in self._connections if isinstance(connection, Connection)
        ]
        for since_of in (attrgetter("lingers_since"), attrgetter("idle_since")):
            since = {
                connection: at for connection in ours if (at := since_of(connection)) is not None
            }
            if since:
                min(since, key=since.__getitem__).give_way()
                return
        newest.give_way()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let requests end for that time; then break off what has not ended, and say what."""
        handlers = []
        for connection in self.connections:
            if connection._current_request is None:  # noqa: SLF001 - aiohttp has no other way
                connection.force_close()
            elif connection._task_handler is not None:  # noqa: SLF001
                handlers.append(connection._task_handler)  # noqa: SLF001
        if handlers:
            await asyncio.wait(handlers, timeout=timeout)
        self._break_off(timeout)
        if late := [task for task in handlers if not task.done()]:
            await asyncio.wait(late, timeout=_LAST_WORDS_S)
        self._connections.clear()

    def _break_off(self, drain_s: float | None) -> None:
        ended = [
            request
            for connection in self.connections
            if isinstance(connection, Connection)
            and (request := connection.break_off()) is not None
        ]
        if ended:
            _log.warning(
                "requests_broken_off",
                drain_s=drain_s,
                count=len(ended),
                requests=ended[:BROKEN_OFF_NAMED_MAX],
            )


class Runner(web.AppRunner):
    """Runs an application on such connections."""

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, limits: HttpLimits, **kwargs: Any) -> None:
        super().__init__(
            app,
            shutdown_timeout=limits.drain_s,
            keepalive_timeout=limits.keepalive_s,
            access_log=None,
            auto_decompress=False,  # whoever reads a body inflates it, within their own bounds
            **kwargs,
        )
        self._limits = limits

    async def _make_server(self) -> web.Server:
        self.app.on_response_prepare.append(_name_plainly)
        server = await super()._make_server()
        server.__class__ = Server
        assert isinstance(server, Server)
        server.connections_max = affordable(self._limits.connections_max)
        return server


def affordable(connections_max: int) -> int:
    """Let this process have as many files as so many connections need; return how many it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections_max * FILES_PER_CONNECTION + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        beside = min(FILES_BESIDE, soft // 2)
        return min(connections_max, (soft - beside) // FILES_PER_CONNECTION)
    return connections_max


async def _name_plainly(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = SERVER
