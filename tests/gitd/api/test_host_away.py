"""A site host that goes away, as control's other parts see it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiohttp import web

from hooks.deploys.control import service as host_service


async def test_host_whose_connection_has_closed_is_away_at_once(
    service, acme, tmp_path: Path
) -> None:
    """Not only when control next has something to tell it: that takes seconds."""
    app = host_service.make_app(service.rolls, service.program_logs, uids={os.geteuid()})
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "hosts.sock")).start()
    async with asyncio.timeout(2):
        assert not service.rolls.has_host
        reader, writer = await asyncio.open_unix_connection(tmp_path / "hosts.sock")
        writer.write(b"GET /v1/desired HTTP/1.1\r\nHost: control\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert service.rolls.has_host
        writer.close()
        while service.rolls.has_host:
            await asyncio.sleep(0.01)
    await runner.cleanup()
