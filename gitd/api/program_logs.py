"""What the programs of an environment print: the last lines, and those to come.

Source: docs/api.md, "What programs print"; HTML Standard §9.2 "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from aiohttp import hdrs, web

from gitd.api import answers
from gitd.api.endpoint import Call
from gitd.api.envelope import ENCODER, answer_headers
from gitd.api.reading import NoBody
from gitd.api.stream import EVENT_STREAM, HEARTBEAT_S, PLAIN_TEXT, CutShortError, OpenEnds
from gitd.errors import AddressRefusedError, AuthenticationError, RequestError
from hooks.deploys.control.program_logs import LogBrokenError, Reader, Reading
from hooks.deploys.control.program_logs import ProgramLogs as ProgramLogReaders
from hooks.deploys.log_position import is_position, position
from hooks.deploys.wire import LogPiece

LINES_DEFAULT = 100
LINES_MAX = 10_000
LOOK_EVERY_S = 0.5  # whether a reader is there still, to whom nothing is said
STAGE = "run"

Lines = Annotated[
    int,
    msgspec.Meta(ge=0, le=LINES_MAX, description="How many of the lines that were printed last."),
]


class ProgramLogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lines: Lines = LINES_DEFAULT
    follow: bool = False


class ProgramLogStreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lines: Lines = LINES_DEFAULT


@dataclass(frozen=True, slots=True)
class _Format:
    """How an answer is written: pieces of a log, a silence, and the end."""

    content_type: str
    piece: Callable[[LogPiece], bytes]
    silence: bytes = b""
    end: bytes = b""


class ProgramLogs:
    """Answers with what the site host says that programs printed.

    An answer that goes on does so until the environment is removed. When something else ends it (a
    stop of the server or the host, the end of the key) the connection is broken off.
    """

    def __init__(
        self, logs: ProgramLogReaders, open_ends: OpenEnds, *, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._logs = logs
        self._open_ends = open_ends
        self._heartbeat_s = heartbeat_s

    async def text(self, call: Call[ProgramLogQuery, NoBody]) -> web.StreamResponse:
        """Answer with lines, each with its time before it."""
        return await self._answer(call, TEXT, follow=call.query.follow)

    async def stream(self, call: Call[ProgramLogStreamQuery, NoBody]) -> web.StreamResponse:
        """Answer with an event for each line; `Last-Event-ID` goes on behind what was seen.

        Raises:
            RequestError: `Last-Event-ID` cannot be one.
        """
        after = call.request.headers.get("Last-Event-ID") or None
        if after is not None and not is_position(after):
            raise RequestError("stream.position_invalid", "This is no id of an event of this log.")
        return await self._answer(call, EVENTS, follow=True, after=after)

    async def _answer(
        self,
        call: Call[Any, NoBody],
        form: _Format,
        *,
        follow: bool,
        after: str | None = None,
    ) -> web.StreamResponse:
        headers = answer_headers(
            call.request_id, version=call.version, content_type=form.content_type
        )
        headers["X-Accel-Buffering"] = "no"
        response = web.StreamResponse(headers=headers)
        lines = 0 if call.request.method == hdrs.METH_HEAD else call.query.lines
        async with self._logs.reading(
            call.environment.id,
            Reader(call.actor.ref.id, call.site.id),
            lines=lines,
            follow=follow,
            after=after,
        ) as reading:
            await response.prepare(call.request)
            if call.request.method == hdrs.METH_HEAD:
                return response
            if not await self._open_ends.run(self._send(call, response, reading, form)):
                raise CutShortError("the log was cut short")
        return response

    async def _send(
        self,
        call: Call[Any, NoBody],
        response: web.StreamResponse,
        reading: Reading,
        form: _Format,
    ) -> None:
        async for piece in self._pieces(call.request, reading):
            try:
                call.confirm()
            except (AuthenticationError, AddressRefusedError) as error:
                raise CutShortError("the key is not good any more") from error
            if data := form.piece(piece) if piece is not None else form.silence:
                await response.write(data)
        if form.end:
            await response.write(form.end)

    async def _pieces(
        self, request: web.Request, reading: Reading
    ) -> AsyncIterator[LogPiece | None]:
        """Yield what comes, and None for a silence.

        Raises:
            CutShortError: The host went away, or the reader.
        """
        silent_s, look_s = 0.0, min(LOOK_EVERY_S, self._heartbeat_s)
        while True:
            try:
                async with asyncio.timeout(look_s):
                    piece = await reading.next()
            except TimeoutError:
                if request.transport is None:
                    raise CutShortError("the reader left") from None
                silent_s += look_s
                if silent_s >= self._heartbeat_s:
                    silent_s = 0.0
                    yield None
                continue
            except LogBrokenError as error:
                raise CutShortError("the site host went away") from error
            silent_s = 0.0
            if piece is None:
                return
            yield piece


def _events_of(piece: LogPiece) -> bytes:
    events, offset = [], piece.offset
    for line in piece.data.removesuffix(b"\n").split(b"\n"):
        offset += len(line) + 1
        place = position(piece.file, offset)
        if is_position(place):  # it is not when somebody else wrote into the file
            events.append(b"id: %b\n" % place.encode())
        at, _, said = line.decode("utf-8", "replace").partition(" ")
        data = ENCODER.encode(answers.LogLine(said, at, STAGE))
        events.append(b"event: log\ndata: %b\n\n" % data)
    return b"".join(events)


TEXT: Final = _Format(PLAIN_TEXT, lambda piece: piece.data)
EVENTS: Final = _Format(
    EVENT_STREAM, _events_of, silence=b": still here\n\n", end=b"event: end\ndata: {}\n\n"
)
