from __future__ import annotations

import asyncio

import pytest

from tests.hooks.deploys.conftest import HostProcess

WEB = """
import http.server, os
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ["PORT"]))
"""


@pytest.fixture
def starved_host(open_dir):
    """A host whose sites have all epoll watches of their user, before its start and ever after."""
    made = HostProcess(open_dir, {"no_watches": True})
    made.start()
    yield made
    made.close()
    assert "Traceback" not in made.log.read_text()


async def test_sites_are_served_where_one_has_all_epoll_watches(
    starved_host, control, shelf, wanted, visitors
):
    static = shelf.put({"index.html": "static", "big.bin": bytes(1 << 20)})
    program = shelf.put_web(WEB)
    for env, pin in (("env_1", static), ("env_2", program)):
        assert (await control.roll(wanted(env, pin))).status == "serving"
    visitor = visitors(starved_host.port)
    hosts = ("env-1.localhost", "env-2.localhost")
    answers = await asyncio.gather(*(visitor.ask(host=host) for host in hosts * 20))
    assert {answer.status for answer in answers} == {200}
    assert len((await visitor.ask("/big.bin")).body) == 1 << 20
    assert "epoll_watches_used_up" in [each["event"] for each in starved_host.events()]
    assert await starved_host.stop() == 0
