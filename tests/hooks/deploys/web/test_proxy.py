"""Traffic to a web process: a real HTTP server stands for the process, without its sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from hooks import portions
from hooks.deploys.web import pages
from hooks.deploys.web.forwarding import TrustedProxies
from hooks.deploys.web.proxy import INTERIM_COUNT_MAX, NotListeningError, WebProxy
from hooks.deploys.web.router import Router
from hooks.deploys.web.serving import Absence, ServedRelease, Serving
from hooks.deploys.web.traffic import make_server
from hooks.deploys.wire import ArtifactPin
from tests.hooks.deploys.conftest import WAIT_S


class Passing:
    """Answers by the proxy alone."""

    def __init__(self, proxy: WebProxy) -> None:
        self.proxy = proxy

    async def respond(self, request, target):
        try:
            return await self.proxy.forward(request, target)
        except NotListeningError:
            return pages.starting()

    def hurry(self):
        self.proxy.end_tunnels()

    async def close(self, *, grace_s):
        await self.proxy.close()


@pytest.fixture
async def front(visitors):
    """Gives a visitor to whatever listens on a port."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(port, *, trusted=()):
            router: Router[Serving] = Router()
            serving = Serving(Absence.NOTHING_RELEASED)
            proxy = WebProxy(lambda: port, trusted=TrustedProxies(trusted))
            pin = ArtifactPin("art_x", "blake3:x", "x")
            release = ServedRelease("dep_1", pin, Passing(proxy))
            serving.switch(release)
            router.put("env_1", ["env-1.localhost"], serving)
            server = make_server(router)
            runner = web.ServerRunner(server, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(proxy.close)
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            made = visitors(runner.addresses[0][1])
            made.release = release
            made.port = runner.addresses[0][1]
            made.server = server
            return made

        yield start


@pytest.fixture
async def app(front):
    """Gives a visitor to an application: a handler, or several by path."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(handler, **how):
            server = web.Server(handler, auto_decompress=False)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return await front(runner.addresses[0][1], **how)

        yield start


@pytest.fixture
async def raw(front):
    """Gives a visitor to a server that says just these bytes to each connection."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*answer, hold=False):
            async def talk(reader, writer):
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await reader.readuntil(b"\r\n\r\n")
                    for part in answer:
                        writer.write(part)
                        await writer.drain()
                    if hold:
                        await reader.read()
                writer.close()

            server = await asyncio.start_server(talk, "127.0.0.1", 0)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            return await front(server.sockets[0].getsockname()[1])

        yield start


async def mirror(request):
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
        }
    )


async def ask_json(visitor, path="/", **more):
    answer = await visitor.ask(path, **more)
    assert answer.status == 200
    import json

    told = json.loads(answer.body)
    told["headers"] = {name.lower(): value for name, value in told["headers"]}
    return told


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a/../b",
        "/a%2Fb%20c?x=%20+&y",
        "/%C3%BC?q=%ff",
        "//double//slash",
        "/a;b=c,d!'()*",
        "/??",
        "/a?b?c=/d",
    ],
)
async def test_the_target_passes_unchanged(app, target):
    visitor = await app(mirror)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    head = f"GET {target} HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    import json

    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["target"].encode("utf-8", "surrogateescape") == target.encode()


async def test_the_process_sees_the_visitors_headers_and_no_others(app):
    told = await ask_json(await app(mirror), headers={"Cookie": "a=1", "X-Own": "2"})
    headers = told["headers"]
    assert headers["host"] == "env-1.localhost"
    assert headers["x-own"] == "2"
    assert headers["cookie"] == "a=1"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert set(headers) <= {
        "host",
        "x-own",
        "cookie",
        "accept",
        "accept-encoding",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
    }


async def test_the_host_of_a_whole_url_as_target_is_the_host_that_the_process_sees(app):
    visitor = await app(mirror)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    head = "GET http://env-1.localhost/a?b HTTP/1.1\r\nHost: forged\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    assert b'"/a?b"' in answer
    assert b"forged" not in answer


async def test_a_request_with_few_headers_gets_none_of_the_proxys(app):
    visitor = await app(mirror)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    for name in (b"User-Agent", b"Accept", b"Content-Type"):
        assert name not in answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_every_method_passes_with_its_body(app, method):
    told = await ask_json(await app(mirror), method=method, data=b"payload")
    assert (told["method"], told["body"]) == (method, "payload")
    assert told["headers"]["content-length"] == "7"


async def test_a_body_of_unknown_length_streams_in(app):
    async def digest(request):
        seen = hashlib.sha256()
        async for chunk in request.content.iter_any():
            seen.update(chunk)
        return web.Response(text=seen.hexdigest())

    visitor = await app(digest)
    pieces = [os.urandom(100_000) for _ in range(30)]

    async def body():
        for piece in pieces:
            yield piece

    answer = await visitor.ask("/", method="POST", data=body())
    assert answer.body.decode() == hashlib.sha256(b"".join(pieces)).hexdigest()


async def test_a_visitor_who_expects_continue_is_asked_for_the_body(app):
    visitor = await app(mirror)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    writer.write(
        b"POST / HTTP/1.1\r\nHost: env-1.localhost\r\nExpect: 100-continue\r\n"
        b"Content-Length: 4\r\nConnection: close\r\n\r\n"
    )
    assert (
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    writer.write(b"body")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"body": "body"' in answer


async def test_an_answer_streams_out_as_it_comes(app):
    go_on = asyncio.Event()

    async def events(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go_on.wait()
        await response.write(b"data: 2\n\n")
        return response

    visitor = await app(events)
    async with visitor.session.get(
        visitor.base + "/", headers={"Host": "env-1.localhost"}
    ) as answer:
        assert await asyncio.wait_for(answer.content.readany(), WAIT_S) == b"data: 1\n\n"
        go_on.set()
        assert await asyncio.wait_for(answer.content.readany(), WAIT_S) == b"data: 2\n\n"


async def test_an_answer_passes_as_it_is(app):
    async def handler(request):
        response = web.Response(status=203, reason="Just So", body=b"\x1f\x8bnot really")
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Server"] = "own/1"
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        response.headers["Connection"] = "X-Hop"
        response.headers["X-Hop"] = "1"
        return response

    visitor = await app(handler)
    answer = await visitor.ask("/")
    assert (answer.status, answer.body) == (203, b"\x1f\x8bnot really")
    assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["Server"] == "own/1"
    assert "X-Hop" not in answer.headers


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_have_none(app, status):
    async def handler(request):
        return web.Response(status=status, headers={"ETag": '"1"'})

    visitor = await app(handler)
    for _ in range(2):
        answer = await visitor.ask("/")
        assert (answer.status, answer.body) == (status, b"")


async def test_head_keeps_its_length(app):
    async def handler(request):
        return web.Response(body=b"x" * 1234)

    answer = await (await app(handler)).ask("/", method="HEAD")
    assert answer.headers["Content-Length"] == "1234"
    assert answer.body == b""


async def test_a_redirect_is_the_visitors_to_follow(app):
    async def handler(request):
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    assert (await (await app(handler)).ask("/")).status == 302


async def test_an_old_server_that_ends_with_the_connection_is_understood(raw):
    visitor = await raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"all of it")
    assert await visitor.text() == "all of it"


async def test_nobody_listening_is_a_503_and_the_next_try_works(front):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        visitor = await front(taken.getsockname()[1])
        assert (await visitor.ask("/")).status == 503


@pytest.mark.parametrize(
    "answer",
    [b"", b"not http\r\n\r\n", b"HTTP/1.1 999999 What\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y"],
)
async def test_nonsense_from_the_process_is_a_502(raw, answer):
    assert (await (await raw(answer)).ask("/")).status == 502


async def test_a_reason_that_can_be_in_no_status_line_is_left_out(raw):
    visitor = await raw(b"HTTP/1.1 200 \xff\x01bad\r\nContent-Length: 2\r\n\r\nok")
    answer = await visitor.ask("/")
    assert (answer.status, answer.body) == (200, b"ok")


async def test_an_answer_that_breaks_off_breaks_off_for_the_visitor(raw):
    visitor = await raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    with pytest.raises(aiohttp.ClientError):
        await visitor.ask("/")
    chunked = await raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    with pytest.raises(aiohttp.ClientError):
        await chunked.ask("/")


async def test_connections_are_shared_by_what_can_be_repeated_only(app):
    peers = []

    async def handler(request):
        peers.append((request.method, request.transport.get_extra_info("peername")))
        await request.read()
        return web.Response()

    visitor = await app(handler)
    for method in ("GET", "GET", "POST", "POST", "GET"):
        await visitor.ask("/", method=method, data=b"x" if method == "POST" else None)
    assert len({peer for method, peer in peers if method == "GET"}) == 1
    assert len({peer for method, peer in peers if method == "POST"}) == 2


async def test_a_shared_connection_that_the_process_closes_is_no_visitors_trouble(app):
    async def handler(request):
        asyncio.get_running_loop().call_later(0.001, request.transport.close)
        return web.Response(text="ok")

    visitor = await app(handler)
    for _ in range(200):
        assert await visitor.text() == "ok"


async def test_a_visitor_who_leaves_ends_the_request_at_the_process(app):
    left = asyncio.Event()

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 1000)
                await asyncio.sleep(0.005)
        except ConnectionError:
            left.set()
        return response

    visitor = await app(handler)
    answer = await visitor.session.get(visitor.base + "/", headers={"Host": "env-1.localhost"})
    await answer.content.readany()
    answer.close()
    await asyncio.wait_for(left.wait(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while not await visitor.release.drain(timeout_s=0.1):
            pass


# -- WebSockets ----------------------------------------------------------------------------------


async def echo(request):
    socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "bye":
            await socket.close(code=4001, message=b"so long")
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def connect(visitor, **more):
    return visitor.session.ws_connect(
        visitor.base + "/chat", headers={"Host": "env-1.localhost"}, max_msg_size=0, **more
    )


async def test_a_websocket_passes_both_ways(app):
    visitor = await app(echo)
    async with connect(visitor, protocols=("chat",), compress=15) as chat:
        assert chat.protocol == "chat"
        for size in (1, 200, 70_000, 3_000_000):
            await chat.send_str("x" * size)
            assert await chat.receive_str(timeout=WAIT_S) == "x" * size
            await chat.send_bytes(b"y" * size)
            assert await chat.receive_bytes(timeout=WAIT_S) == b"y" * size
        await chat.ping()
        await chat.send_str("bye")
        closing = await chat.receive(timeout=WAIT_S)
        assert (closing.type, closing.data, closing.extra) == (WSMsgType.CLOSE, 4001, "so long")


async def test_many_websockets_are_open_at_once(app):
    visitor = await app(echo)
    async with contextlib.AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(connect(visitor)) for _ in range(50)]
        await asyncio.gather(*(chat.send_str(str(n)) for n, chat in enumerate(chats)))
        answers = [await chat.receive_str(timeout=WAIT_S) for chat in chats]
        assert answers == [str(n) for n in range(50)]


async def test_a_visitor_who_reads_slowly_slows_the_process_down(app):
    sent = 0

    async def flood(request):
        nonlocal sent
        socket = web.WebSocketResponse(writer_limit=1)
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await socket.send_bytes(b"z" * 100_000)
                sent += 100_000
        return socket

    visitor = await app(flood)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port, limit=1024)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    before = -1
    async with asyncio.timeout(WAIT_S):
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
    assert sent < 30_000_000
    assert len(await reader.readexactly(20_000_000)) == 20_000_000
    assert sent > before
    writer.close()


async def test_a_websocket_that_is_refused_is_a_plain_answer(app):
    async def handler(request):
        return web.Response(status=403, text="not you")

    visitor = await app(handler)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        async with connect(visitor):
            pass
    assert (await visitor.ask("/")).status == 403


@pytest.mark.parametrize(
    ("asked", "switched"),
    [(None, b"websocket"), (None, None), ("websocket", b"h2c"), ("websocket", None)],
)
async def test_a_process_that_switches_to_what_nobody_asked_for_is_a_502(raw, asked, switched):
    """Else it would have the visitor's bare connection, and whatever is sent on it later."""
    named = b"" if switched is None else b"Connection: Upgrade\r\nUpgrade: %b\r\n" % switched
    visitor = await raw(b"HTTP/1.1 101 Switching Protocols\r\n" + named + b"\r\n", hold=True)
    headers = {} if asked is None else {"Connection": "Upgrade", "Upgrade": asked}
    for method in ("GET", "POST"):
        assert (await visitor.ask("/", method=method, headers=headers)).status == 502


async def test_either_end_of_a_websocket_ends_the_other(app):
    ended = asyncio.Event()

    async def handler(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.data == "drop":
                request.transport.abort()
        ended.set()
        return socket

    visitor = await app(handler)
    chat = await connect(visitor)
    await chat.send_str("drop")
    assert (await chat.receive(timeout=WAIT_S)).type in (
        WSMsgType.CLOSED,
        WSMsgType.ERROR,
        WSMsgType.CLOSE,
    )
    ended.clear()
    other = await connect(visitor)
    await other.send_str("hello")
    other._response.connection.transport.abort()
    await asyncio.wait_for(ended.wait(), WAIT_S)
    assert await visitor.release.drain(timeout_s=WAIT_S)


async def test_a_release_that_goes_ends_its_websockets(app):
    visitor = await app(echo)
    async with connect(visitor) as chat:
        await chat.send_str("x")
        await chat.receive_str(timeout=WAIT_S)
        assert not await visitor.release.drain(timeout_s=0.05)
        visitor.release.responder.hurry()
        assert await visitor.release.drain(timeout_s=WAIT_S)


# -- what two parsers could read differently -----------------------------------------------------


async def exchange(visitor, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length : 4\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"X: a\r\n b\r\n",
        b"X: a\x00b\r\n",
    ],
)
async def test_ambiguous_requests_are_refused(app, head):
    visitor = await app(mirror)
    answer = await exchange(
        visitor,
        b"POST / HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: close\r\n" + head
        + b"\r\n0\r\n\r\n",
    )  # fmt: skip
    assert answer.split()[1] == b"400"


async def test_an_empty_body_stays_empty(app):
    told = await ask_json(await app(mirror), method="POST", data=b"")
    assert told["body"] == ""
    assert told["headers"].get("content-length") == "0"
    assert "transfer-encoding" not in told["headers"]


async def test_headers_in_utf8_pass_unchanged(raw, app):
    told = await ask_json(await app(mirror), headers={"X-Name": "é"})
    assert told["headers"]["x-name"] == "é"
    visitor = await raw("HTTP/1.1 200 OK\r\nX-Name: é\r\nContent-Length: 0\r\n\r\n".encode())
    answer = await exchange(
        visitor, b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: close\r\n\r\n"
    )
    assert "X-Name: é\r\n".encode() in answer


async def test_large_headers_pass(app):
    told = await ask_json(await app(mirror), headers={"X-Large": "x" * 8_000})
    assert told["headers"]["x-large"] == "x" * 8_000


async def test_no_header_is_made_up_for_an_answer(raw):
    visitor = await raw(b"HTTP/1.0 200 OK\r\n\r\n<h1>hello</h1>")
    answer = await visitor.ask("/")
    assert set(answer.headers) <= {"Date", "Transfer-Encoding"}


async def test_a_request_that_ends_the_process_is_not_sent_a_third_time(front):
    asked = 0
    server = None

    async def die(reader, writer):
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 2:
            server.close()
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    visitor = await front(server.sockets[0].getsockname()[1])
    assert (await visitor.ask("/")).status == 502
    assert asked == 2
    server.close()


@pytest.mark.parametrize(
    ("method", "count"), [("GET", 2), ("DELETE", 1), ("PUT", 1), ("TRACE", 1), ("POST", 1)]
)
async def test_only_what_changes_nothing_is_repeated(front, method, count):
    asked = []

    async def die(reader, writer):
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[0].decode())
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    visitor = await front(server.sockets[0].getsockname()[1])
    assert (await visitor.ask("/", method=method)).status == 502
    assert asked == [method] * count
    server.close()


async def test_a_release_that_is_closed_breaks_off_what_is_in_flight(app):
    async def never_done(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        await asyncio.sleep(60)
        return response

    async def never_begun(request):
        await asyncio.sleep(60)
        return web.Response()

    begun = await app(never_done)
    async with begun.session.get(begun.base, headers={"Host": "env-1.localhost"}) as answer:
        assert await answer.content.readany() == b"begun"
        await begun.release.responder.close(grace_s=0)
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(answer.read(), WAIT_S)
    waiting = await app(never_begun)
    asking = asyncio.create_task(waiting.ask("/"))
    await asyncio.sleep(0.1)
    await waiting.release.responder.close(grace_s=0)
    assert (await asyncio.wait_for(asking, WAIT_S)).status == 502


async def test_a_visitor_who_leaves_before_the_answer_ends_the_request_at_the_process(front):
    asked, left = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    visitor = await front(server.sockets[0].getsockname()[1])
    asking = asyncio.create_task(visitor.ask("/"))
    await asyncio.wait_for(asked.wait(), WAIT_S)
    asking.cancel()
    await asyncio.wait_for(left.wait(), WAIT_S)
    assert await visitor.release.drain(timeout_s=WAIT_S)
    server.close()


# -- heads of requests ---------------------------------------------------------------------------

FIELD = b"X-Field: " + b"x" * 1013 + b"\r\n"
HEAD = b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("count", "end", "status"),
    [(31, b"\r\n", b"200"), (40, b"\r\n", b"431"), (40, b"", b"431")],
)
@pytest.mark.parametrize("pieces", [1, 8])
async def test_a_head_is_bounded_as_a_whole(app, count, end, status, pieces):
    visitor = await app(mirror)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    answered = asyncio.create_task(reader.readline())  # before what is sent too late is refused
    request = HEAD + FIELD * count + end
    length = len(request) // pieces + 1
    for start in range(0, len(request), length):
        writer.write(request[start : start + length])
        await asyncio.sleep(0.01)
    status_line = await asyncio.wait_for(answered, WAIT_S)
    assert status_line.split()[1] == status
    writer.close()


async def test_a_body_is_no_head(app):
    visitor = await app(mirror)
    answer = await visitor.ask("/", method="POST", data=b"x" * 100_000)
    assert len(answer.body) > 100_000


async def test_connections_are_bounded(front):
    visitor = await front(9)
    assert visitor.server.connections_max > 1000
    visitor.server.connections_max = 2
    talks = [await asyncio.open_connection("127.0.0.1", visitor.port) for _ in range(3)]
    assert await asyncio.wait_for(talks[0][0].read(), WAIT_S) == b""
    for _, writer in talks:
        writer.close()


async def test_whoever_sends_a_body_that_nobody_reads_makes_room(front):
    """It needs no site for that: an unknown host is refused before its body is there."""
    visitor = await front(9)
    visitor.server.connections_max = 4
    begun = b"POST / HTTP/1.1\r\nHost: nobody.localhost\r\nContent-Length: 1000\r\n\r\nx"
    idle = await asyncio.open_connection("127.0.0.1", visitor.port)
    crowd = []
    for _ in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
        crowd.append(writer)
        writer.write(begun)
        assert b" 404 " in await asyncio.wait_for(reader.readline(), WAIT_S)
    assert (await visitor.ask("/")).status == 503, "nothing listens behind it, and that is said"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(idle[0].read(), 0.2)
    for writer in (idle[1], *crowd):
        writer.close()


async def test_answers_before_the_answer_come_to_an_end(raw):
    """Each of them is work, and a program can send them without an end."""
    hint, end = (
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    few = await raw(hint * INTERIM_COUNT_MAX + end)
    assert (await few.ask("/")).body == b"ok"
    many = await raw(hint * (INTERIM_COUNT_MAX + 1), hold=True)
    assert (await asyncio.wait_for(many.ask("/"), WAIT_S)).status == 502


async def test_little_is_read_at_once_of_a_connection_whose_data_take_long(app):
    """Of chunks of one byte each, what asyncio reads at once keeps all others waiting."""

    async def count(request):
        async for _ in request.content.iter_any():
            pass
        return web.Response()

    visitor = await app(count)
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    writer.write(HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n")
    sizes = []
    for chunk in (b"10000\r\n" + b"x" * 65536 + b"\r\n", b"1\r\na\r\n" * 11_000):
        for _ in range(16):
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        (served,) = [c for c in visitor.server.connections if c.transport is not None]
        sizes.append(served.transport.max_size)
    assert sizes[1] < portions.BYTES_AT_FIRST < sizes[0]
    writer.write(b"0\r\n\r\n")
    assert b" 200 " in await asyncio.wait_for(reader.readline(), WAIT_S)
    writer.close()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 000 Odd\r\n", b"HTTP/1.1 999 Odd\r\n", b"HTTP/1.1 200 OK\r\nX-Odd : 1\r\n"]
)
async def test_answers_that_proxies_read_differently_are_not_passed_on(raw, head):
    visitor = await raw(head + b"Content-Length: 2\r\n\r\nok")
    assert (await visitor.ask("/")).status == 502


async def test_cookies_of_a_program_are_for_its_own_host(raw):
    cookie = b"Set-Cookie: a=1; Domain=localhost; Path=/\r\n"
    visitor = await raw(b"HTTP/1.1 200 OK\r\n" + cookie + b"Content-Length: 2\r\n\r\nok")
    assert (await visitor.ask("/")).headers["Set-Cookie"] == "a=1; Path=/"
