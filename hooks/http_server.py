"""HTTP as aiohttp serves it, saying no more of itself than it must: no versions, tidy refusals."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

SERVER: Final = "gitd"
_NO_HTTP: Final = "This is no request that HTTP/1.1 allows.\n"


class Connection(web.RequestHandler):
    """A connection. What is no HTTP, and what no handler answers, is answered in one line."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs, knows when it is late
        known = HTTPStatus(status)
        text = _NO_HTTP if known is HTTPStatus.BAD_REQUEST else f"{known.value} {known.phrase}\n"
        response = web.Response(status=status, text=text, headers={hdrs.SERVER: SERVER})
        response.force_close()
        return response


class Server(web.Server):
    """Makes connections of that kind."""

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on such connections."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        self.app.on_response_prepare.append(_name_plainly)
        server = await super()._make_server()
        server.__class__ = Server
        return server


async def _name_plainly(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = SERVER
