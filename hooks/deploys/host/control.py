"""The line to control: what it desires comes in, what the host has to say goes out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import structlog

from hooks.clock import now_ms, rfc3339
from hooks.deploys.wire import (
    PING_EVERY_S,
    Config,
    DesiredMessage,
    EnvironmentIds,
    Report,
    RollLog,
    RollLogLine,
)

BACK_OFF_FIRST_S: Final = 0.05
BACK_OFF_MAX_S: Final = 1.0
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
OUTPUT_LINES_MAX: Final = 10_000
"""So many lines of a release command are in a roll's log; another one says so."""
POST_TIMEOUT_S: Final = 10.0
LINGER_S: Final = 0.05
"""Lines of a log wait so long for more, or for the report: a short roll is one message."""
BATCH_BYTES_MAX: Final = 1024 * 1024
"""Beyond it neither more lines nor the report go along: control refuses what is too long, and it
must get the report."""
CONNECTION_COUNT_MAX: Final = 16
"""After a reconnect every environment has something to say: not all at once."""

_log = structlog.get_logger()
_DECODER: msgspec.json.Decoder[DesiredMessage] = msgspec.json.Decoder(DesiredMessage)


class ControlUnreachableError(Exception):
    """Control did not take a message: it is away, or in trouble. Try again."""


class ControlLine:
    """A line that is dialled again, for ever, whenever it breaks."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._is_up = asyncio.Event()

    async def follow(self, on_message: Callable[[DesiredMessage], None]) -> None:
        """Pass on what control desires, until canceled. A message that cannot be taken in is
        logged: it must not take down what is served.
        """
        pause_s = BACK_OFF_FIRST_S
        told = ""
        async with self._connected():
            while True:
                try:
                    async for message in self._messages():
                        if not self._is_up.is_set():
                            _log.info("control_reached")
                            pause_s, told = BACK_OFF_FIRST_S, ""
                            self._is_up.set()
                        _pass_on(message, on_message)
                    reason = "control ended it"
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    reason = str(error) or type(error).__name__
                self._is_up.clear()
                if reason != told:
                    told = reason
                    _log.warning("control_lost", reason=reason)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, BACK_OFF_MAX_S)

    async def config(self, deployment_id: str) -> Config | None:
        """Ask what the programs of a deployment are given; None when control gives nothing.

        Raises:
            ControlUnreachableError: Try again.
        """
        await self._is_up.wait()
        if self._session is None:
            raise ControlUnreachableError
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
        url = f"http://control/v1/configs/{deployment_id}"
        try:
            async with self._session.get(url, timeout=timeout) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnreachableError from error
        if answer.status >= 500:
            raise ControlUnreachableError
        return msgspec.json.decode(data, type=Config) if answer.status == 200 else None

    async def gone(self, env_ids: Collection[str]) -> frozenset[str]:
        """Ask which of the environments were there once, and were removed.

        None, where control is one that cannot say (0.1). Raises as `config` does.
        """
        await self._is_up.wait()
        if self._session is None:
            raise ControlUnreachableError
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
        asked = msgspec.json.encode(EnvironmentIds(tuple(env_ids)))
        try:
            async with self._session.post(
                "http://control/v1/gone", data=asked, timeout=timeout
            ) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnreachableError from error
        if answer.status >= 500:
            raise ControlUnreachableError
        if answer.status != 200:
            return frozenset()
        return frozenset(msgspec.json.decode(data, type=EnvironmentIds).env_ids)

    async def post(self, path: str, message: Report | RollLog) -> None:
        """Hand over a message once the line is up.

        Raises:
            ControlUnreachableError: It may have arrived, or not.
        """
        await self._is_up.wait()
        if self._session is None:
            raise ControlUnreachableError
        try:
            async with self._session.post(
                f"http://control{path}",
                data=msgspec.json.encode(message),
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=POST_TIMEOUT_S, sock_read=POST_TIMEOUT_S
                ),
            ) as answer:
                text = (await answer.read())[:200].decode(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnreachableError from error
        if answer.status >= 500:
            raise ControlUnreachableError
        if answer.status >= 400:  # it will not like it better the next time
            _log.warning("control_refused", path=path, status=answer.status, answer=text)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        connector = aiohttp.UnixConnector(path=str(self._socket), limit=CONNECTION_COUNT_MAX)
        async with aiohttp.ClientSession(connector=connector) as session:
            self._session = session
            try:
                yield
            finally:
                self._is_up.clear()
                self._session = None

    async def _messages(self) -> AsyncIterator[DesiredMessage]:
        assert self._session is not None, "called within _connected"
        timeout = aiohttp.ClientTimeout(total=None, sock_read=3 * PING_EVERY_S)
        async with self._session.get(
            "http://control/v1/desired",
            params={"hears": "coming,logs"},
            timeout=timeout,
            raise_for_status=True,
        ) as answer:
            rest = b""
            while chunk := await answer.content.readany():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MESSAGE_BYTES_MAX:
                    raise aiohttp.ClientPayloadError("a message is too long")
                for line in lines:
                    yield _DECODER.decode(line)


def _pass_on(message: DesiredMessage, on_message: Callable[[DesiredMessage], None]) -> None:
    try:
        on_message(message)
    except Exception:  # noqa: BLE001 - the ring around a message: the host and the next go on
        _log.exception("message_not_taken_in", kind=type(message).__name__)


class Outbox:
    """What one environment has to tell control: in order, each until it was taken."""

    def __init__(self, line: ControlLine) -> None:
        self._line = line
        self._waiting: deque[Report | RollLog] = deque()
        self._last_bytes = 0  # the length of the last one that waits
        self._filled = asyncio.Event()
        self._reported = asyncio.Event()
        self._sender = asyncio.get_running_loop().create_task(self._send())

    def put(self, message: Report | RollLog) -> None:
        """Add a message; one that waits already is not doubled, log lines are put together, as far
        as a message may be long.
        """
        if message in self._waiting:
            return
        last = self._waiting[-1] if self._waiting else None
        size_bytes = len(msgspec.json.encode(message))
        if (
            isinstance(last, RollLog)
            and _belongs(last, message)
            and self._last_bytes + size_bytes <= BATCH_BYTES_MAX
        ):
            self._waiting[-1] = _together(last, message)
            self._last_bytes += size_bytes
        elif (newer := _with_how_it_runs(last, message)) is not None:
            self._waiting[-1] = newer
        else:
            self._waiting.append(message)
            self._last_bytes = size_bytes
        if isinstance(message, Report):
            self._reported.set()
        self._filled.set()

    async def close(self) -> None:
        """Stop; what was not taken is lost (and said again after the next start)."""
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sender

    async def _send(self) -> None:
        while True:
            await self._filled.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._reported.wait()
            self._filled.clear()
            self._reported.clear()
            while self._waiting:
                await self._deliver(self._waiting.popleft())

    async def _deliver(self, message: Report | RollLog) -> None:
        path = "/v1/reports" if isinstance(message, Report) else "/v1/log"
        pause_s = BACK_OFF_FIRST_S
        while True:
            try:
                await self._line.post(path, message)
            except ControlUnreachableError:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, BACK_OFF_MAX_S)
            else:
                return


def _belongs(log: RollLog, more: Report | RollLog) -> bool:
    """Whether a message goes on where the lines end."""
    is_same = isinstance(more, Report) or more.attempt == log.attempt
    return is_same and more.deployment_id == log.deployment_id


def _with_how_it_runs(last: Report | RollLog | None, message: Report | RollLog) -> Report | None:
    """One report of two, if the second only says how a program runs meanwhile: it can end often
    while control is away.
    """
    if not isinstance(last, Report) or not isinstance(message, Report):
        return None
    newer = msgspec.structs.replace(last, running=message.running)
    same = msgspec.structs.replace(newer, timings={}, log=None)
    return newer if same == message else None


def _together(log: RollLog, more: Report | RollLog) -> Report | RollLog:
    """One message of two about the same deployment."""
    if isinstance(more, Report):
        return msgspec.structs.replace(more, log=log)
    return msgspec.structs.replace(log, progress=more.progress, lines=log.lines + more.lines)


class RollJournal:
    """The log of one attempt at a roll, as its job's followers read it."""

    def __init__(self, outbox: Outbox, deployment_id: str) -> None:
        self._outbox = outbox
        self._deployment_id = deployment_id
        self._attempt = secrets.token_hex(4)
        self._count = 0
        self._output_count = 0
        self._progress = 0

    def say_output(self, line: str, *, stage: str) -> None:
        """Add a line that a program said, while there is room for such."""
        self._output_count += 1
        if self._output_count <= OUTPUT_LINES_MAX:
            self.say(line, stage=stage)
        elif self._output_count == OUTPUT_LINES_MAX + 1:
            self.say("log truncated", stage=stage)

    def say(self, line: str, *, stage: str, progress: int | None = None) -> None:
        self.say_all((line,), stage=stage, progress=progress)

    def say_all(self, lines: tuple[str, ...], *, stage: str, progress: int | None = None) -> None:
        """Add lines; `progress`, 0 to 100, holds until the next that is given."""
        self._progress = progress if progress is not None else self._progress
        at = rfc3339(now_ms())
        self._outbox.put(
            RollLog(
                deployment_id=self._deployment_id,
                first=self._count,
                progress=self._progress,
                lines=tuple(RollLogLine(line=line, at=at, stage=stage) for line in lines),
                attempt=self._attempt,
            )
        )
        self._count += len(lines)
