from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket

import pytest
from structlog.testing import capture_logs

from hooks.deploys.host import selector
from hooks.deploys.host.selector import SparingSelector, warn_of_few_watches
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


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_connections_that_are_refused_a_watch_fill_no_log(monkeypatch):
    one, other = socket.socketpair()
    sparing = SparingSelector()
    monkeypatch.setattr(selectors.EpollSelector, "register", refuse)
    with one, other, capture_logs() as logs:
        for _ in range(3):
            sparing.register(one, selectors.EVENT_WRITE)
            assert [key.fileobj for key, _ in sparing.select(0)] == [one]
            sparing.unregister(one)
    sparing.close()
    assert [entry["event"] for entry in logs] == ["epoll_watches_used_up"]


@pytest.mark.parametrize(
    ("watches", "said"),
    [("1000", ["epoll_watches_few"]), ("1000000000", []), (None, [])],
    ids=["few", "enough", "not shown"],
)
def test_few_watches_are_warned_of_where_they_are_shown(tmp_path, monkeypatch, watches, said):
    monkeypatch.setattr(selector, "WATCHES_MAX", tmp_path / "max_user_watches")
    if watches is not None:
        (tmp_path / "max_user_watches").write_text(f"{watches}\n")
    with capture_logs() as logs:
        warn_of_few_watches(1 << 30)
    assert [entry["event"] for entry in logs] == said
