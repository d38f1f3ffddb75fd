"""No visitor notices a release: 200 requests a second through 50 pushes of the whole daemon.

They come when they are due, however long the ones before take. The site host alone is held to the
same at each run of the tests (tests/hooks/deploys).
"""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest

PUSHES = 50
EVERY_S = 1 / 200


class Visitors:
    """Half of them keep their connection, half make a new one for each request."""

    def __init__(self, server, path: str) -> None:
        self._url = f"http://127.0.0.1:{server.sites_port}{path}"
        self._host = {"Host": f"acme-store.localhost:{server.sites_port}"}
        self.found: Counter[object] = Counter()
        self.is_over = False

    async def come(self) -> None:
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as staying,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True)
            ) as leaving,
            asyncio.TaskGroup() as group,
        ):
            due = loop.time()
            while not self.is_over:
                group.create_task(self._visit(staying))
                group.create_task(self._visit(leaving))
                due += 2 * EVERY_S
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _visit(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self._url, headers=self._host) as answer:
                await answer.read()
                self.found[answer.status] += 1
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.found[type(error).__name__] += 1


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("example", "path"), [("static", "/"), ("python-web", "/version")])
def test_fifty_pushes_at_two_hundred_requests_a_second_fail_none(
    server, example: str, path: str
) -> None:
    """A page that writes nothing: how often that can be done in a second is the disk's business."""
    work = server.work()
    work.use(example)
    assert "production is live" in work.push()

    def push_all() -> None:
        for number in range(PUSHES):
            work.commit({"number.txt": str(number)})
            assert "production is live" in work.push()

    async def run() -> Visitors:
        visitors = Visitors(server, path)
        coming = asyncio.create_task(visitors.come())
        try:
            await asyncio.to_thread(push_all)
        finally:
            visitors.is_over = True
            await coming
        return visitors

    found = asyncio.run(run()).found
    print(f"{example}: {dict(found)}")
    assert set(found) == {200}
    assert (
        len(
            server.api("GET", "/sites/acme-store/environments/production/releases?limit=100").json[
                "data"
            ]
        )
        == PUSHES + 1
    )
