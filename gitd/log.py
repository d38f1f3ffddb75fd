"""Our own log: structured, one canonical line per request, no secrets.

Output of users' builds is their data and goes to the job's log, never here.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, BinaryIO, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor, WrappedLogger

from gitd.terminal import written_out
from storage.ids import IdSequence

REQUEST_ID = web.RequestKey("request_id", str)
ACTOR = web.RequestKey("actor", str)
REQUEST_ID_HEADER = "X-Request-Id"
HIDDEN = "***"
_SECRET_NAMES = frozenset(
    {"authorization", "password", "secret", "token", "cookie", "proxy_authorization", "api_key"}
)
_SECRET_VALUE = re.compile(rb"mf[ks]_(?:live|test)_[0-9A-Za-z]+")
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})
FLUSH_AFTER_S = 0.05
_BUFFER_BYTES_MAX = 64 * 1024
_ENCODER = msgspec.json.Encoder(enc_hook=str)
_current: ContextVar[str | None] = ContextVar("request_id", default=None)
_request_ids = IdSequence("req")
_log = structlog.get_logger("gitd.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Note = Callable[[web.Request, web.StreamResponse | None, int, float], None]
"""Takes in a request that has ended: its answer, if it has one, its status and its seconds. The
status is 0 when it was broken off, and 499 when its client left.
"""


def configure(
    *, stream: BinaryIO | None = None, level: str = "info", as_json: bool | None = None
) -> None:
    """Set up this process's log: to `stream` (standard error), JSON unless that is a terminal.

    What libraries say through `logging` comes out in the same form, from warnings on.
    """
    out = stream or cast("BinaryIO", sys.stderr.buffer)
    json = not out.isatty() if as_json is None else as_json
    number = logging.getLevelNamesMapping()[level.upper()]
    lines = Lines(out)
    structlog.configure(
        processors=_processors(as_json=json),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lines.logger,
        cache_logger_on_first_use=True,
    )
    _ring.lines = lines if json and number <= logging.INFO else None
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)


class Lines:
    """Writes lines to a stream. Inside an event loop, quiet ones wait a moment for their like.

    A warning or worse takes along what waits and is written at once; so is everything at exit.
    What a kill can cost is `FLUSH_AFTER_S` of quiet lines.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        atexit.register(self.flush)

    def logger(self, *_: object) -> Lines:
        return self

    def debug(self, line: bytes) -> None:
        with self._lock:
            self._waiting += line + b"\n"
            waits = self._loop is not None and not self._loop.is_closed()
            if waits and len(self._waiting) < _BUFFER_BYTES_MAX:
                return
        self._flush_soon()

    info = debug

    def warning(self, line: bytes) -> None:
        with self._lock:
            self._waiting += line + b"\n"
        self.flush()

    error = critical = exception = warn = msg = warning

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is None or self._loop.is_closed():
            self._loop = loop
            loop.call_later(FLUSH_AFTER_S, self.flush)
        else:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            self._loop = None
            data = bytes(self._waiting)
            self._waiting.clear()
            if data:
                with suppress(OSError, ValueError):  # nobody reads any more
                    self._stream.write(data)
                    self._stream.flush()


# -- lines ----------------------------------------------------------------------------------------


def _processors(*, as_json: bool) -> list[Processor]:
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    if as_json:
        return [*shared, _to_json]
    console = structlog.dev.ConsoleRenderer(timestamp_key="at")
    return [
        *shared,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="at"),
        write_out_controls,
        console,
        _to_bytes,
    ]


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    request_id = _current.get()
    if request_id is not None:
        event["request_id"] = request_id
    return event


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: hide what is named like a secret, at any depth.

    What looks like one of our own is hidden once more, wherever it stands, in the written line.
    """
    if not _harmless.issuperset(event):
        for name in [*event]:
            if name.lower() in _SECRET_NAMES:
                event[name] = HIDDEN
            elif len(_harmless) < _HARMLESS_COUNT_MAX:
                _harmless.add(name)
    for name, value in event.items():
        if type(value) in _CONTAINERS:
            event[name] = _without_secrets(value)
    return event


def write_out_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: let no text of others, such as a request's path, give orders to a terminal."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = "\n".join(map(written_out, value.split("\n")))
    return event


_harmless: set[str] = set()  # names that were looked at before
_HARMLESS_COUNT_MAX = 1000


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if str(name).lower() in _SECRET_NAMES else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_without_secrets(item) for item in value]
    return str(value) if isinstance(value, bytes) else value


def _to_json(_logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    line = {"at": _now(), "level": "error" if method == "exception" else method, **event}
    return _unmarked(_ENCODER.encode(line))


def _to_bytes(_logger: WrappedLogger, _method: str, text: Any) -> bytes:
    return _unmarked(str(text).encode("utf-8", "backslashreplace"))


def _unmarked(line: bytes) -> bytes:
    if b"_live_" in line or b"_test_" in line:
        return _SECRET_VALUE.sub(HIDDEN.encode(), line)
    return line


def _now() -> str:
    at = time.time()
    return f"{_second(int(at))}.{int(at % 1 * 1_000_000):06d}Z"


_seconds: dict[int, str] = {}


def _second(at: int) -> str:
    """The time to the second; most lines fall into the second of the line before."""
    text = _seconds.get(at)
    if text is None:
        _seconds.clear()
        text = _seconds[at] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return text


class _FromLibraries(logging.Handler):
    """Hands the records of `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            # No fault of ours, anybody can send it, and its words quote the request: a password.
            structlog.get_logger(record.name).info("request_malformed", reason=type(error).__name__)
            return
        if isinstance(error, AnswerBrokeError):
            return  # the ring of the request has logged what was behind it
        structlog.get_logger(record.name).log(
            record.levelno,
            "library_message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info if record.exc_info and record.exc_info[0] else None,
        )


# -- the ring of a request ------------------------------------------------------------------------


class RequestLine(msgspec.Struct):
    """The canonical line of a request."""

    at: str
    level: str
    event: str
    request_id: str
    method: str
    path: str
    status: int
    took_ms: float
    remote: str | None
    actor: str | None


class _Ring:
    """How the lines of requests are written: to `lines` when that is set, else by structlog.

    As JSON they take the short way, at a third of the price: there is one for every request.
    """

    def __init__(self) -> None:
        self.lines: Lines | None = None

    def close(self, request: web.Request, status: int, took_s: float) -> None:
        line = RequestLine(
            _now(),
            "info",
            "request",
            request[REQUEST_ID],
            request.method,
            request.path,
            status,
            round(took_s * 1000, 3),
            request.remote,
            request.get(ACTOR),
        )
        if self.lines is not None:
            self.lines.info(_unmarked(_ENCODER.encode(line)))
        else:
            facts = msgspec.structs.asdict(line)
            _log.info(facts.pop("event"), **facts)


_ring = _Ring()


class AnswerBrokeError(ConnectionError):
    """A handler failed after its answer had begun. It was logged; aiohttp ends the connection."""


def logged(handler: Handler, note: Note | None = None) -> Handler:
    """Put the ring around a handler: each request gets an id, and one line when it has ended.

    The id is `request[REQUEST_ID]` and goes out as `X-Request-Id`. A handler that knows the actor
    leaves its id in `request[ACTOR]`. An exception that nobody caught is logged once, as a 500.
    Where an answer had begun by then no other one can follow it: the connection ends. `note` hears
    of each end too.
    """

    async def ring(request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        request_id = request[REQUEST_ID] = _request_ids.next()
        bound = _current.set(request_id)
        response, status = None, 0
        try:
            response = await handler(request)
            status = response.status
            if not response.prepared:
                response.headers[REQUEST_ID_HEADER] = request_id
            return response
        except web.HTTPException as error:
            status = error.status
            error.headers[REQUEST_ID_HEADER] = request_id
            raise
        except ConnectionError:
            status = 499  # the client went away
            raise
        except Exception:  # noqa: BLE001 - the ring of a request: logged once and answered
            status = 500
            _log.exception("request_broke", method=request.method, path=request.path)
            if request.writer.output_size:
                raise AnswerBrokeError from None
            return web.Response(
                status=500, text="Internal error\n", headers={REQUEST_ID_HEADER: request_id}
            )
        finally:
            took_s = time.perf_counter() - began
            _ring.close(request, status, took_s)
            if note is not None:
                note(request, response, status, took_s)
            _current.reset(bound)

    return ring
