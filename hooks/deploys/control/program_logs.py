"""Control's side of program logs: it asks the site host for what an environment's programs print.

Nothing of it is kept here. Who reads slowly slows the host's reading down, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.http_exceptions import BadHttpMessage

from hooks.deploys.wire import LogPiece, LogWanted
from hooks.errors import RefusedError

READERS_MAX: Final = 64
READERS_OF_SITE_MAX: Final = 16
READERS_OF_KEY_MAX: Final = 8
BEGIN_TIMEOUT_S: Final = 10.0
"""So long the host has to begin."""
WAITING_PIECES_MAX: Final = 4
PIECE_BYTES_MAX: Final = 1024 * 1024

Tell = Callable[[LogWanted], Awaitable[None]]


class HostAwayError(RefusedError):
    """No site host is connected that could say what its programs print."""

    def __init__(self) -> None:
        super().__init__("host.away", "The site host is not connected just now.")


class ReadersTooManyError(RefusedError):
    def __init__(self, whose: str, count: int) -> None:
        super().__init__(
            "log.readers_too_many",
            f"{count} requests {whose} read what programs print at the same time.",
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: by which key, of which site."""

    key_id: str
    site_id: str


class LogBrokenError(Exception):
    """The host went away in the middle."""


class Reading:
    """What one reader gets, from one host."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.is_left = asyncio.Event()
        self._pieces: deque[LogPiece] = deque()
        self._is_over = False
        self._is_whole = False
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()

    async def next(self) -> LogPiece | None:
        """Wait for the next piece; None at the end.

        Raises:
            LogBrokenError: The host went away before that.
        """
        while not self._pieces and not self._is_over:
            self._has_news.clear()
            await self._has_news.wait()
        if self._pieces:
            self._has_room.set()
            return self._pieces.popleft()
        if not self._is_whole:
            raise LogBrokenError
        return None

    async def take(self, content: aiohttp.StreamReader) -> None:
        """Take in what the host sends, to its end or until the reader leaves."""
        self.has_begun.set()
        taking = asyncio.create_task(self._take(content))
        leaving = asyncio.create_task(self.is_left.wait())
        try:
            await asyncio.wait({taking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            taking.cancel()
            await asyncio.wait({taking, leaving})

    async def _take(self, content: aiohttp.StreamReader) -> None:
        rest = b""
        try:
            async for chunk in content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > PIECE_BYTES_MAX:
                    return
                for line in filter(None, lines):
                    await self._put(msgspec.json.decode(line, type=LogPiece))
            self._is_whole = not rest
        except (aiohttp.ClientError, BadHttpMessage, ConnectionError, msgspec.MsgspecError):
            return
        finally:
            self._is_over = True
            self._has_news.set()

    async def _put(self, piece: LogPiece) -> None:
        while len(self._pieces) >= WAITING_PIECES_MAX:
            self._has_room.clear()
            await self._has_room.wait()
        self._pieces.append(piece)
        self._has_news.set()


class ProgramLogs:
    """The logs of what runs, asked of the hosts that run it."""

    def __init__(self) -> None:
        self._hosts: list[Tell] = []
        self._readings: dict[str, Reading] = {}
        self._readers: list[Reader] = []

    @contextlib.contextmanager
    def asked_of(self, tell: Tell) -> Iterator[None]:
        """Ask the host that is told things by `tell`, as long as this is open."""
        self._hosts.append(tell)
        try:
            yield
        finally:
            self._hosts.remove(tell)

    @contextlib.asynccontextmanager
    async def reading(
        self, env_id: str, by: Reader, *, lines: int, follow: bool, after: str | None = None
    ) -> AsyncGenerator[Reading]:
        """Read what an environment's programs print: `lines`, or from what came `after` a position.

        Raises:
            HostAwayError: Nobody can say.
            ReadersTooManyError: As many read already as may.
        """
        if not self._hosts:
            raise HostAwayError
        self._expect_place(by)
        wanted = LogWanted(secrets.token_hex(16), env_id, lines, follow, after)
        reading = self._readings[wanted.id] = Reading()
        self._readers.append(by)
        try:
            try:
                async with asyncio.timeout(BEGIN_TIMEOUT_S):
                    await self._ask(wanted, reading.has_begun)
            except TimeoutError as error:
                raise HostAwayError from error
            yield reading
        finally:
            self._readers.remove(by)
            self._readings.pop(wanted.id, None)
            reading.is_left.set()

    def _expect_place(self, by: Reader) -> None:
        """No key takes all places of its site, and no site all that there are."""
        of_key = sum(each.key_id == by.key_id for each in self._readers)
        of_site = sum(each.site_id == by.site_id for each in self._readers)
        for whose, count, most in (
            ("of this key", of_key, READERS_OF_KEY_MAX),
            ("of this site", of_site, READERS_OF_SITE_MAX),
            ("of all sites", len(self._readers), READERS_MAX),
        ):
            if count >= most:
                raise ReadersTooManyError(whose, count)

    async def _ask(self, wanted: LogWanted, has_begun: asyncio.Event) -> None:
        """Ask every host at once, until one begins. A line may be dead, or stand still, and nobody
        know it yet: it holds up no other.
        """
        asking = asyncio.gather(*(_is_told(tell, wanted) for tell in self._hosts))
        beginning = asyncio.ensure_future(has_begun.wait())
        both: set[asyncio.Future[Any]] = {asking, beginning}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not has_begun.is_set() and not any(asking.result()):
                raise HostAwayError
            await beginning
        finally:
            asking.cancel()
            beginning.cancel()
            await asyncio.wait(both)

    async def take(self, reading_id: str, content: aiohttp.StreamReader) -> bool:
        """Take in what a host sends for a reader; say whether there is one."""
        reading = self._readings.pop(reading_id, None)
        if reading is None:
            return False
        await reading.take(content)
        return True


async def _is_told(tell: Tell, wanted: LogWanted) -> bool:
    try:
        await tell(wanted)
    except ConnectionError:
        return False
    return True
