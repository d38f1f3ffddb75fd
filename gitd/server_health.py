"""Server health: what monitors and fronts ask for at `GET /healthz`, without a key.

It says in a word what is wrong, and nothing of what the server holds. Asking costs a look at the
filesystem, and no line in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from storage.errors import StorageError


class ServerHealth:
    """Whether this server does all of its work just now.

    Args:
        lack: Why nothing more can be taken in; None when it can.
        has_host: Whether a site host is connected.
    """

    def __init__(
        self, lack: Callable[[], StorageError | None], has_host: Callable[[], bool]
    ) -> None:
        self._lack = lack
        self._has_host = has_host

    async def show(self, _: web.Request) -> web.Response:
        troubles = self._troubles()
        return web.json_response(
            {"status": "unavailable", "reasons": troubles} if troubles else {"status": "ok"},
            status=HTTPStatus.SERVICE_UNAVAILABLE if troubles else HTTPStatus.OK,
            headers={"Cache-Control": "no-store"},
        )

    def _troubles(self) -> list[str]:
        found = {
            "host_away": not self._has_host(),
            "no_room": self._lack() is not None,
        }
        return [name for name, is_so in found.items() if is_so]
