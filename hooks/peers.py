"""Who is at the other end of a Unix socket, as the kernel says."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid. Source: unix(7), SO_PEERCRED


def peer_uid(request: web.Request) -> int | None:
    """The uid of the process that connected, None when it is gone."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None:
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def only_from(uids: Collection[int]) -> Middleware:
    """Refuse every caller that does not run as one of `uids`."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        uid = peer_uid(request)
        if uid not in uids:
            raise web.HTTPForbidden(text=f"uid {uid} may not use this socket\n")
        return await handler(request)

    return check
