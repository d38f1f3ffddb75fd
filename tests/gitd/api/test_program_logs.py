"""What programs print, over the API: a real log, sent by the site host's sender over its socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientError, web

from hooks.deploys import service as host_service
from hooks.deploys.control import ControlLine
from hooks.deploys.log_sender import LogSender
from hooks.deploys.program_logs import READERS_MAX
from hooks.deploys.state import HostFolder
from hooks.deploys.weblog import WebLog
from hooks.deploys.wire import DesiredMessage, LogWanted
from storage.records import api_keys


class Host:
    """The site host's part of it: it follows control, and sends logs that it is asked for."""

    def __init__(self, service, env_id: str) -> None:
        self._service = service
        self._folder = HostFolder(service.root / "host")
        path = self._folder.environment(env_id).web_log
        path.parent.mkdir(parents=True)
        self.log = WebLog(path)
        self.socket = service.root / "hosts.sock"

    async def connect(self) -> None:
        self.sender = LogSender(self._folder, self.socket)
        self._following = asyncio.create_task(ControlLine(self.socket).follow(self._take))
        for _ in range(500):
            if self._service.program_logs._hosts:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not connect")

    def _take(self, message: DesiredMessage) -> None:
        if isinstance(message, LogWanted):
            self.sender.take(message)

    async def leave(self) -> None:
        self._following.cancel()
        await asyncio.wait({self._following})
        await self.sender.close()


@pytest.fixture
async def logs(acme) -> str:
    return f"{acme.production}/logs"


@pytest.fixture
async def hurried(service) -> None:
    """Silences are filled soon."""
    service.heartbeat_s = 0.05
    await service.restart()


@pytest.fixture
async def host(service, acme) -> AsyncIterator[Host]:
    made = Host(service, await acme.env_id("production"))
    app = host_service.make_app(service.rolls, service.program_logs, uids={os.geteuid()})
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(made.socket)).start()
    await made.connect()
    yield made
    await made.leave()
    made.log.close()
    await runner.cleanup()


async def test_last_lines_are_read_as_text(service, host, logs) -> None:
    for number in range(200):
        host.log.write(b"%d\n" % number)
    heard = await service.get(f"{logs}?lines=3")
    assert heard.status == 200
    assert heard.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert heard.headers["Cache-Control"] == "no-store"
    assert [line.split(" ")[1] for line in heard.raw.decode().splitlines()] == ["197", "198", "199"]
    assert len((await service.get(logs)).raw.splitlines()) == 100
    assert (await service.get(f"{logs}?lines=0")).raw == b""
    assert (await service.call("HEAD", logs)).raw == b""


async def test_silence_is_filled_and_events_have_the_places_to_go_on_from(
    hurried, service, host, logs
) -> None:
    headers = {"Authorization": f"Bearer {service.secret}"}
    host.log.write(b"one\n")
    async with service.client.get(f"{logs}/stream", headers=headers) as answer:
        place = (await answer.content.readline()).decode().removeprefix("id: ").strip()
        assert await answer.content.readline() == b"event: log\n"
        data = json.loads((await answer.content.readline()).removeprefix(b"data: "))
        assert (data["line"], data["stage"]) == ("one", "run")
        assert await answer.content.readline() == b"\n"
        assert await answer.content.readline() == b": still here\n"
    host.log.write(b"two\n")
    headers["Last-Event-ID"] = place
    async with service.client.get(f"{logs}/stream", headers=headers) as answer:
        heard = [await answer.content.readline() for _ in range(3)]
        assert b'"line":"two"' in heard[2]


async def test_without_a_host_it_is_said_that_it_is_away(service, logs) -> None:
    for path in (logs, f"{logs}?follow=1", f"{logs}/stream"):
        heard = await service.get(path)
        assert (heard.status, heard.code) == (409, "host.away")


@pytest.mark.parametrize("place", ["1", "x/1", "2026-11-27T00:00:00.000Z/", "..//1"])
async def test_what_is_no_place_is_refused(service, logs, place) -> None:
    heard = await service.get(f"{logs}/stream", headers={"Last-Event-ID": place})
    assert (heard.status, heard.code) == (400, "stream.position_invalid")


async def test_a_key_that_ends_ends_what_it_follows(service, host, logs) -> None:
    secret, key = service.minted("observability:read")
    headers = {"Authorization": f"Bearer {secret}"}
    async with service.client.get(f"{logs}?follow=1", headers=headers) as answer:
        host.log.write(b"before\n")
        assert (await answer.content.readline()).endswith(b" before\n")
        service.records.write(lambda db: api_keys.revoke(db, key.id, service.clock()))
        host.log.write(b"after\n")
        with pytest.raises(ClientError):
            await answer.content.read()


async def test_a_host_that_goes_away_breaks_the_answer_off(service, host, logs) -> None:
    headers = {"Authorization": f"Bearer {service.secret}"}
    async with service.client.get(f"{logs}/stream", headers=headers) as answer:
        host.log.write(b"before\n")
        assert await answer.content.readline()
        await host.leave()
        with pytest.raises(ClientError):
            await answer.content.read()
    await host.connect()
    assert (await service.get(logs)).raw.endswith(b" before\n")


async def test_a_line_that_is_dead_keeps_no_other_host_from_being_asked(
    service, host, logs
) -> None:
    async def dead(_: LogWanted) -> None:
        raise ConnectionResetError

    host.log.write(b"here\n")
    hosts = service.program_logs._hosts
    with service.program_logs.asked_of(dead):
        hosts.insert(0, hosts.pop())
        assert (await service.get(logs)).raw.endswith(b" here\n")


async def test_readers_are_counted_and_let_go(service, host, logs) -> None:
    headers = {"Authorization": f"Bearer {service.secret}"}
    async with AsyncExitStack() as stack:
        for _ in range(READERS_MAX):
            answer = await stack.enter_async_context(
                service.client.get(f"{logs}?follow=1", headers=headers)
            )
            assert answer.status == 200
        heard = await service.get(logs)
        assert (heard.status, heard.code) == (409, "log.readers_too_many")
    for _ in range(500):
        host.log.write(b"somebody wakes up\n")  # who left is noticed when there is something
        if (await service.get(logs)).status == 200:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("nobody was let go")


async def test_a_slow_reader_holds_nothing_up_and_loses_nothing_that_is_kept(
    service, host, logs
) -> None:
    headers = {"Authorization": f"Bearer {service.secret}"}
    line = b"x" * 1000 + b"\n"
    async with service.client.get(f"{logs}?follow=1&lines=0", headers=headers) as answer:
        for _ in range(800):
            host.log.write(line)
        host.log.note("the end")
        assert (await service.get(f"{logs}?lines=1")).raw.endswith(b"[gitd] the end\n")
        lines = [await answer.content.readline() for _ in range(801)]
        assert all(each.endswith(line) for each in lines[:-1])
        assert lines[-1].endswith(b"[gitd] the end\n")
