"""What `GET /healthz` says, over HTTP."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gitd.server_health import ServerHealth
from storage.errors import StorageFullError


@pytest.mark.parametrize(
    ("lack", "has_host", "reasons"),
    [
        (None, True, []),
        (None, False, ["host_away"]),
        (StorageFullError("full"), True, ["no_room"]),
        (StorageFullError("full"), False, ["host_away", "no_room"]),
    ],
)
async def test_health_names_what_is_wrong(lack, has_host, reasons) -> None:
    health = ServerHealth(lambda: lack, lambda: has_host)
    app = web.Application()
    app.router.add_get("/healthz", health.show)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/healthz")
        assert answer.status == (503 if reasons else 200)
        said = {"status": "unavailable", "reasons": reasons} if reasons else {"status": "ok"}
        assert await answer.json() == said
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await client.head("/healthz")).status == answer.status
