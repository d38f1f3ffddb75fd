"""The real `mf` as a process, and a small real server that speaks the contract."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.warm import warm

MF = Path(sys.executable).with_name("mf")
PRELOAD = """
import gitd.cli.main, gitd.cli.proofs, gitd.cli.waiting, storage.proof
import httpx, rich.cells, rich.console, rich.progress, rich.text
"""
TOKEN = "mfk_live_of_a_test"
REQUEST_ID = "req_01J9ZZZZZZZZZZZZZZZZZZZZZZ"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fields = dict[str, object]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: object


@dataclass
class Stream:
    """A job's events. `breaks` are how many events each of the first connections gets."""

    events: list[tuple[str, Fields]]
    breaks: list[int] = field(default_factory=list)
    resumed_from: list[str] = field(default_factory=list)
    hold: bool = False
    comments_first: bool = True
    refuse_position: bool = False


class Peer:
    """A server in a thread of its own. `on` says what it answers; `seen` is what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.port = 0
        self._answers: dict[tuple[str, str], list[Handler]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- what it answers -------------------------------------------------------------------------

    def on(self, method: str, path: str, *handlers: Handler) -> None:
        """Answer with each handler once, and with the last one from then on."""
        self._answers[method, path] = list(handlers)

    def one(self, data: object, status: int = 200) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            return web.json_response({"data": data, "request_id": REQUEST_ID}, status=status)

        return handle

    def many(self, items: Sequence[Fields]) -> Handler:
        """A list with cursors, which are the index of the next item."""

        async def handle(request: web.Request) -> web.Response:
            start = int(request.query.get("cursor", "0"))
            end = start + int(request.query.get("limit", "20"))
            has_more = end < len(items)
            pagination = {"next_cursor": str(end) if has_more else None, "has_more": has_more}
            return web.json_response(
                {
                    "data": list(items[start:end]),
                    "pagination": pagination,
                    "request_id": REQUEST_ID,
                }
            )

        return handle

    def refusal(self, status: int, code: str, message: str, **more: str) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            error = {"type": "some_type", "code": code, "message": message, **more}
            return web.json_response({"error": error, "request_id": REQUEST_ID}, status=status)

        return handle

    def raw(
        self, body: str, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            return web.Response(text=body, status=status, headers=headers)

        return handle

    def broken(self) -> Handler:
        """The connection breaks instead of an answer."""

        async def handle(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        return handle

    def job(self, job_id: str, stream: Stream, **fields: object) -> Fields:
        """A job whose stream is `stream`. Returns the job as it is first."""
        job = {"id": job_id, "status": "queued", "progress": 0, "type": "build.run", **fields}
        self.on("GET", f"/v1/jobs/{job_id}", self.one(job))
        self.on("GET", f"/v1/jobs/{job_id}/stream", _streamer(stream))
        return job

    # -- its life --------------------------------------------------------------------------------

    def start(self, port: int = 0) -> None:
        self.port = port
        self._thread.start()
        assert self._started.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        assert self._runner is not None
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.rel_url.raw_path
        self.seen.append(
            Seen(
                request.method,
                path,
                dict(request.query),
                dict(request.headers),
                json.loads(body) if body else None,
            )
        )
        handlers = self._answers.get((request.method, path))
        if not handlers:
            return await self.refusal(404, "route.not_found", f"no {path}")(request)
        return await (handlers.pop(0) if len(handlers) > 1 else handlers[0])(request)


def _streamer(stream: Stream) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        position = request.headers.get("Last-Event-ID", "")
        stream.resumed_from.append(position)
        if position and stream.refuse_position:
            error = {"type": "invalid_request", "code": "stream.position_invalid", "message": "no"}
            return web.json_response({"error": error, "request_id": REQUEST_ID}, status=400)
        start = int(position or "0")
        budget = stream.breaks.pop(0) if stream.breaks else None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if stream.comments_first:
            await response.write(b": hello\n\n")
        for number, (kind, data) in enumerate(stream.events[start:], start + 1):
            if budget == 0:
                assert request.transport is not None
                request.transport.abort()
                return response
            budget = None if budget is None else budget - 1
            text = f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
            await response.write(text.encode())
        with suppress(asyncio.CancelledError):
            while stream.hold:
                await response.write(b": still here\n\n")
                await asyncio.sleep(0.05)
        return response

    return handle


@pytest.fixture
def peer() -> Iterator[Peer]:
    server = Peer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def new_peer() -> Iterator[Callable[[], Peer]]:
    """Peers that the test starts itself."""
    made: list[Peer] = []

    def make() -> Peer:
        made.append(Peer())
        return made[-1]

    yield make
    for server in made:
        if server._thread.is_alive():
            server.stop()


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """The whole of standard output, which must be one JSON value."""
        return json.loads(self.out)


class Mf:
    """Runs `mf` with an environment of its own."""

    program = MF
    cwd: Path | None = None

    def __init__(self, url: str) -> None:
        self.environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "FORGE_URL": url,
            "FORGE_TOKEN": TOKEN,
            "NO_PROXY": "*",
            "PYTHONWARNINGS": "error",
        }

    def __call__(self, *arguments: str, **environ: str | None) -> Ran:
        process = self.begin(*arguments, **environ)
        out, err = process.communicate(timeout=60)
        return Ran(process.returncode, out, err)

    def begin(self, *arguments: str, **environ: str | None) -> subprocess.Popen[str]:
        env = {**self.environ, **{k: v for k, v in environ.items() if v is not None}}
        for name, value in environ.items():
            if value is None:
                env.pop(name, None)
        # What only the start of an interpreter reads needs one.
        is_anew = any(name.startswith(("PYTHON", "LC_")) for name in environ)
        popen = subprocess.Popen if is_anew else warm(PRELOAD)
        return popen(
            [MF, *arguments],
            cwd=self.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(autouse=True, scope="session")
def _interrupts() -> None:
    """A shell starts what it sends to the background deaf to Ctrl-C, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mf(peer: Peer) -> Mf:
    return Mf(peer.url)


@pytest.fixture
def mf_at() -> type[Mf]:
    return Mf


@pytest.fixture
def stream_of() -> type[Stream]:
    return Stream


@pytest.fixture
def token() -> str:
    return TOKEN
