"""Connections as our HTTP servers have them: real ones, to a server of this process."""

from __future__ import annotations

import asyncio
import gzip
import logging

import pytest
from aiohttp import ClientError, ClientSession, web

from hooks.http_server import HttpLimits, Runner


@pytest.fixture
async def serve():
    """Serves with a handler, and says at which port."""
    runners = []

    async def start(handler):
        app = web.Application()
        app.router.add_route("*", "/", handler)
        runner = Runner(app, HttpLimits(drain_s=1))
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][1]

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_an_answer_that_is_broken_off_leaves_no_traceback(serve, caplog):
    async def break_off(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise ConnectionResetError("the visitor left")

    port = await serve(break_off)
    with caplog.at_level(logging.INFO):
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
            with pytest.raises(ClientError):
                await asyncio.wait_for(answer.read(), 20)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_body_is_not_inflated_before_somebody_reads_it(serve):
    """What is refused costs nothing: 300 kB become 300 MB otherwise, in the one loop."""

    async def count(request):
        return web.Response(text=str(len(await request.read())))

    port, packed = await serve(count), gzip.compress(bytes(1_000_000))
    headers = {"Content-Encoding": "gzip"}
    async with ClientSession() as session:
        url = f"http://127.0.0.1:{port}/"
        async with session.post(url, data=packed, headers=headers) as answer:
            assert await answer.text() == str(len(packed))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
            "allows: its Content-Type is there twice.",
        ),
        ("GET / HTTP/9\r\nAuthorization: Bearer secret\r\n\r\n", "allows."),
    ],
)
async def test_a_request_that_is_none_is_told_which_header_is_there_twice(serve, head, said):
    async def answer(request):
        return web.Response()

    reader, writer = await asyncio.open_connection("127.0.0.1", await serve(answer))
    writer.write(head.encode())
    heard = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    assert " 400 " in heard.splitlines()[0]
    assert heard.endswith(f"\r\n\r\nThis is no request that HTTP/1.1 {said}\n")
