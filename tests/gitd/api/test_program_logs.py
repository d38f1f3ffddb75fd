"""What programs print, over the API: a real log, sent by the site host's sender over its socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientError, web

from gitd.api.stream import HEARTBEAT_S
from hooks.deploys.control import service as host_service
from hooks.deploys.control.program_logs import (
    BEGIN_TIMEOUT_S,
    READERS_MAX,
    READERS_OF_KEY_MAX,
    READERS_OF_SITE_MAX,
)
from hooks.deploys.host.control import ControlLine
from hooks.deploys.host.log_sender import LogSender
from hooks.deploys.host.state import HostFolder
from hooks.deploys.processes.weblog import WebLog
from hooks.deploys.wire import DesiredMessage, LastExit, LogWanted, Report, Running
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
        await self._until(is_known=True)

    def _take(self, message: DesiredMessage) -> None:
        if isinstance(message, LogWanted):
            self.sender.take(message)

    async def leave(self) -> None:
        self._following.cancel()
        await asyncio.wait({self._following})
        await self.sender.close()
        await self._until(is_known=False)

    async def _until(self, *, is_known: bool) -> None:
        async with asyncio.timeout(20):
            while bool(self._service.program_logs._hosts) != is_known:
                await asyncio.sleep(0.01)


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


async def next_event(answer) -> tuple[str, dict[str, str]]:
    """The id and the data of the next event, whatever silences are before it."""
    place = ""
    async with asyncio.timeout(20):
        while line := (await answer.content.readline()).decode():
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "id":
                place = value
            elif field == "data":
                return place, json.loads(value)
    raise AssertionError("no event came")


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
        place, data = await next_event(answer)
        assert (data["line"], data["stage"]) == ("one", "run")
        while await answer.content.readline() != b": still here\n":
            pass
    host.log.write(b"two\n")
    headers["Last-Event-ID"] = place
    async with service.client.get(f"{logs}/stream", headers=headers) as answer:
        assert (await next_event(answer))[1]["line"] == "two"


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


async def dead(_: LogWanted) -> None:
    raise ConnectionResetError


async def stuck(_: LogWanted) -> None:
    """As the line to a host that was stopped: nobody takes anything off it."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("line", [dead, stuck])
async def test_a_line_that_nobody_reads_keeps_no_other_host_from_being_asked(
    service, host, logs, line
) -> None:
    host.log.write(b"here\n")
    hosts = service.program_logs._hosts
    with service.program_logs.asked_of(line):
        hosts.insert(0, hosts.pop())
        async with asyncio.timeout(BEGIN_TIMEOUT_S / 2):
            assert (await service.get(logs)).raw.endswith(b" here\n")


async def test_readers_are_counted_by_key_and_site_and_let_go(service, host, logs) -> None:
    keys = [service.key("observability:read") for _ in range(3)]
    async with AsyncExitStack() as stack:
        for secret in keys[:2]:
            headers = {"Authorization": f"Bearer {secret}"}
            for _ in range(READERS_OF_KEY_MAX):
                answer = await stack.enter_async_context(
                    service.client.get(f"{logs}?follow=1", headers=headers)
                )
                assert answer.status == 200
            heard = await service.get(logs, secret=secret)
            assert (heard.status, heard.code) == (409, "log.readers_too_many")
            assert "of this key" in heard.body["error"]["message"]
        heard = await service.get(logs, secret=keys[2])
        assert (heard.status, heard.code) == (409, "log.readers_too_many")
        assert "of this site" in heard.body["error"]["message"]
        assert READERS_OF_SITE_MAX == 2 * READERS_OF_KEY_MAX < READERS_MAX
    async with asyncio.timeout(HEARTBEAT_S / 2):  # nothing is said, and who left is noticed
        while (await service.get(logs, secret=keys[0])).status != 200:
            await asyncio.sleep(0.01)


async def test_a_slow_reader_holds_nothing_up_and_loses_nothing_that_is_kept(
    service, host, logs
) -> None:
    service.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of its connections
    head = (
        f"GET {logs}?follow=1&lines=0 HTTP/1.0\r\nHost: x\r\n"
        f"Authorization: Bearer {service.secret}\r\n\r\n"
    )
    host.log.note("the beginning")
    line = b"x" * 8000
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        async with asyncio.timeout(60):
            await loop.sock_connect(slow, service.socket.getsockname())
            await loop.sock_sendall(slow, head.encode())
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += await loop.sock_recv(slow, 4096)
            for _ in range(200):
                host.log.write(line + b"\n")
            host.log.note("the end")
            # Another one gets the last line while this one has not taken the first.
            assert (await service.get(f"{logs}?lines=1")).raw.endswith(b"[gitd] the end\n")
            while not heard.endswith(b"[gitd] the end\n"):
                heard += await loop.sock_recv(slow, 1 << 16)
    assert heard.count(line) == 200


async def test_environment_says_how_its_program_runs_while_a_host_can_tell(
    service, host, acme
) -> None:
    release = await acme.release(b"one")
    env_id, deployment_id = await acme.env_id("production"), release["deployment_id"]
    assert (await service.get(acme.production)).data["running"] is None
    last_exit = LastExit(1, "the web process ended with status 1", "2026-01-01T00:00:00.000Z")
    running = Running("restarting", 4, last_exit)
    report = Report(env_id, deployment_id, "serving", serves=deployment_id, running=running)
    await service.rolls.report(report)
    said = {
        "state": "restarting",
        "restarts": 4,
        "first_answer": None,
        "last_exit": {"status": 1, "message": last_exit.message, "at": last_exit.at},
    }
    assert (await service.get(acme.production)).data["running"] == said
    listed = (await service.get(acme.production.rpartition("/")[0])).data
    assert [one["running"] for one in listed if one["slug"] == "production"] == [said]
    await service.post(f"{acme.production}/suspend")
    assert (await service.get(acme.production)).data["running"] is None
    await service.post(f"{acme.production}/resume")
    await service.rolls.report(report)
    await host.leave()
    while (await service.get(acme.production)).data["running"] is not None:
        await asyncio.sleep(0.01)
    await host.connect()
