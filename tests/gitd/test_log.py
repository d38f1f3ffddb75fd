"""Our own log: one line per request, and never a secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys

import pytest
import structlog
from aiohttp import ClientPayloadError, ClientSession, web

from gitd.api_keys import mint
from gitd.log import FLUSH_AFTER_S, REQUEST_ID, Lines, configure, logged
from storage.ids import is_id


@pytest.fixture
def lines():
    out = io.BytesIO()
    handlers = logging.root.handlers[:]
    configure(stream=out, level="debug", as_json=True)
    flush = structlog.get_config()["logger_factory"].__self__.flush

    def written() -> list[dict]:
        flush()
        return [json.loads(line) for line in out.getvalue().splitlines()]

    yield written
    logging.root.handlers[:] = handlers
    structlog.reset_defaults()


def test_secrets_are_hidden_by_name_and_by_look_at_any_depth(lines) -> None:
    secret = mint("ci", ["*"])[0].reveal()
    structlog.get_logger().info(
        "event",
        authorization=f"Bearer {secret}",
        Password="hunter2",
        token=["a"],
        note=f"the key {secret} was sent",
        headers={"Authorization": "Basic eA==", "X": [secret.encode()]},
        kept="mfk_live",
    )
    (line,) = lines()
    text = json.dumps(line)
    assert secret not in text
    assert "hunter2" not in text
    assert "eA==" not in text
    assert line["note"] == "the key *** was sent"
    assert line["kept"] == "mfk_live"


def test_nobody_else_gives_orders_to_the_terminal_that_shows_the_log() -> None:
    out = io.BytesIO()
    handlers = logging.root.handlers[:]
    configure(stream=out, as_json=False)
    logger = structlog.get_logger()
    try:
        logger.info("request", path="/\x1b]0;mine\x07\x9b2J", site="a\u202eb c\x1b[2J")
        fails("\x1b[2J")
    except ValueError:
        logger.exception("failed", left="two\nlines")
    finally:
        structlog.get_config()["logger_factory"].__self__.flush()
        logging.root.handlers[:] = handlers
        structlog.reset_defaults()
    text = out.getvalue().decode()
    assert "/\\x1b]0;mine\\x07\\x9b2J" in text
    assert "ValueError: \\x1b[2J\n" in text
    own = re.sub(r"\x1b\[[0-9]*m", "", text)  # the colours of the log
    assert all(each.isprintable() or each == "\n" for each in own)


def fails(text: str) -> None:
    raise ValueError(text)


def test_traceback_tells_where_and_not_which_values(lines) -> None:
    secret = mint("ci", ["*"])[0].reveal()

    def fails(held: str) -> None:
        raise ValueError(f"broken for {held}")

    try:
        fails(secret)
    except ValueError:
        structlog.get_logger().exception("broke")
    (line,) = lines()
    assert "test_log.py" in line["exception"]
    assert secret not in line["exception"]


def test_libraries_speak_through_the_same_log(lines) -> None:
    logging.getLogger("aiohttp.server").warning("odd %s", "thing")
    logging.getLogger("aiohttp.server").info("chatter")
    (line,) = lines()
    assert (line["event"], line["message"]) == ("library_message", "odd thing")
    assert line["level"] == "warning"


async def test_every_request_has_one_line_with_the_id_that_it_was_answered_with(lines) -> None:
    async def fine(request: web.Request) -> web.Response:
        structlog.get_logger().info("inside")
        return web.Response(text=request[REQUEST_ID])

    async def breaks(request: web.Request) -> web.Response:
        raise RuntimeError("no")

    async def half(request: web.Request) -> web.Response:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise RuntimeError("in the middle")

    async def none(request: web.Request) -> web.Response:
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/fine", logged(fine))
    app.router.add_get("/none", logged(none))
    app.router.add_get("/breaks", logged(breaks))
    app.router.add_get("/half", logged(half))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = site._server.sockets[0].getsockname()
    async with ClientSession(f"http://{host}:{port}") as client:
        ids = []
        for path, status in (("/fine?token=x", 200), ("/breaks", 500), ("/none", 404)):
            async with client.get(path) as answer:
                assert answer.status == status
                ids.append(answer.headers["X-Request-Id"])
                if status == 200:
                    assert await answer.text() == ids[0]
        async with client.get("/half") as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
    await runner.cleanup()
    assert len(set(ids)) == 3
    assert all(is_id(request_id, "req") for request_id in ids)
    requests = [line for line in lines() if line["event"] == "request"]
    assert [(r["path"], r["status"], r["request_id"]) for r in requests[:3]] == [
        ("/fine", 200, ids[0]),
        ("/breaks", 500, ids[1]),
        ("/none", 404, ids[2]),
    ]
    assert next(x for x in lines() if x["event"] == "inside")["request_id"] == ids[0]
    broke, middle = [line for line in lines() if line["level"] == "error"]
    assert "RuntimeError: no" in broke["exception"]
    assert "RuntimeError: in the middle" in middle["exception"]


async def test_quiet_lines_wait_for_their_like_and_warnings_take_them_along() -> None:
    out = io.BytesIO()
    lines = Lines(out)
    lines.info(b"one")
    lines.info(b"two")
    assert out.getvalue() == b""
    lines.warning(b"three")
    assert out.getvalue() == b"one\ntwo\nthree\n"
    lines.info(b"four")
    await asyncio.sleep(FLUSH_AFTER_S * 3)
    assert out.getvalue().endswith(b"four\n")
    lines.info(b"x" * 100_000)
    lines.info(b"five")
    assert out.getvalue().count(b"x") == 100_000


def test_line_outside_of_a_loop_is_written_at_once_also_after_one() -> None:
    out = io.BytesIO()
    lines = Lines(out)

    async def says() -> None:
        lines.info(b"inside")

    asyncio.run(says())
    lines.info(b"outside")
    assert out.getvalue() == b"inside\noutside\n"


def test_everything_is_written_at_the_exit() -> None:
    script = (
        "import asyncio, structlog; from gitd.log import configure; configure(as_json=True)\n"
        "async def main(): structlog.get_logger().info('last words')\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert b"last words" in done.stderr
