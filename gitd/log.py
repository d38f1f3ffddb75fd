"""Our own log: structured, one canonical line per request, no secrets.

Output of users' builds is their data and goes to the job's log, never here.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, cast

import msgspec
import structlog
from aiohttp import web
from structlog.typing import EventDict, Processor, WrappedLogger

from storage.ids import new_id

REQUEST_ID = web.RequestKey("request_id", str)
ACTOR = web.RequestKey("actor", str)
REQUEST_ID_HEADER = "X-Request-Id"
HIDDEN = "***"
_SECRET_NAMES = frozenset(
    {"authorization", "password", "secret", "token", "cookie", "proxy_authorization", "api_key"}
)
_SECRET_VALUE = re.compile(r"mf[ks]_(?:live|test)_[0-9A-Za-z]+")
_ENCODER = msgspec.json.Encoder(enc_hook=str)
_log = structlog.get_logger("gitd.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def configure(
    *, stream: BinaryIO | None = None, level: str = "info", as_json: bool | None = None
) -> None:
    """Set up this process's log: to `stream` (standard error), JSON unless that is a terminal.

    What libraries say through `logging` comes out in the same form, from warnings on.
    """
    out = stream or cast("BinaryIO", sys.stderr.buffer)
    json = not out.isatty() if as_json is None else as_json
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=_processors(as_json=json),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(cast("Any", out)),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: hide what is named like a secret or looks like one, at any depth."""
    for name, value in event.items():
        if isinstance(value, str):
            if name.lower() in _SECRET_NAMES:
                event[name] = HIDDEN
            elif "_live_" in value or "_test_" in value:
                event[name] = _SECRET_VALUE.sub(HIDDEN, value)
        elif not isinstance(value, (int, float)) and value is not None:
            event[name] = _redacted(name, value)
    return event


def _redacted(name: str, value: object) -> object:
    if name.lower() in _SECRET_NAMES:
        return HIDDEN
    if isinstance(value, str):
        return _SECRET_VALUE.sub(HIDDEN, value)
    if isinstance(value, bytes):
        return _SECRET_VALUE.sub(HIDDEN, value.decode("utf-8", "replace"))
    if isinstance(value, dict):
        return {key: _redacted(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted("", item) for item in value]
    return value


def _processors(*, as_json: bool) -> list[Processor]:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    if as_json:
        return [*shared, structlog.processors.format_exc_info, redact, _to_json]
    console = structlog.dev.ConsoleRenderer(timestamp_key="at")
    return [*shared, structlog.processors.format_exc_info, redact, console, _to_bytes]


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    return _ENCODER.encode(event)


def _to_bytes(_logger: WrappedLogger, _method: str, text: Any) -> bytes:
    return str(text).encode("utf-8", "backslashreplace")


class _FromLibraries(logging.Handler):
    """Hands the records of `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno,
            "library_message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info if record.exc_info and record.exc_info[0] else None,
        )


@web.middleware
async def request_lines(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The ring around every request: gives it an id, and logs one line when it has ended.

    The id is `request[REQUEST_ID]` and goes out as `X-Request-Id`. A handler that knows the actor
    leaves its id in `request[ACTOR]`. An exception that nobody caught is logged once, as a 500.
    """
    request_id = request[REQUEST_ID] = new_id("req")
    began = time.perf_counter()
    tokens = structlog.contextvars.bind_contextvars(request_id=request_id)
    status = 0
    try:
        response = await handler(request)
        status = response.status
        if not response.prepared and REQUEST_ID_HEADER not in response.headers:
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
        return web.Response(
            status=500, text="Internal error\n", headers={REQUEST_ID_HEADER: request_id}
        )
    finally:
        _log.info(
            "request",
            method=request.method,
            path=request.path,
            status=status,
            took_ms=round((time.perf_counter() - began) * 1000, 3),
            remote=request.remote,
            actor=request.get(ACTOR),
        )
        structlog.contextvars.reset_contextvars(**tokens)
