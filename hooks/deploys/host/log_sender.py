"""The site host's side of program logs: it sends what its programs printed to who reads it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import structlog

from hooks.deploys.host.rollout_tools import to_the_end
from hooks.deploys.host.state import HostFolder
from hooks.deploys.processes.log_reader import LogReader
from hooks.deploys.wire import LogWanted

LOOK_EVERY_S: Final = 0.2
"""How often a followed log is looked at: what is printed arrives that much later at most."""
CONNECT_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger()


class LogSender:
    """Sends logs over connections of their own, each until nobody reads it any more."""

    def __init__(self, folder: HostFolder, socket: Path) -> None:
        self._folder = folder
        self._socket = socket
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, wanted: LogWanted) -> None:
        task = asyncio.get_running_loop().create_task(self._send(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, wanted: LogWanted) -> None:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        turn = asyncio.Lock()
        try:
            path = self._folder.environment(wanted.env_id).web_log
            async with (
                _opened(path, wanted, turn) as reader,
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post(
                    f"http://control/v1/program-logs/{wanted.id}",
                    data=_pieces(reader, wanted, turn),
                ),
            ):
                pass
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            _log.info("log_not_sent", env_id=wanted.env_id, reason=str(error))


@contextlib.asynccontextmanager
async def _opened(path: Path, wanted: LogWanted, turn: asyncio.Lock) -> AsyncIterator[LogReader]:
    """Open a log, and close it, whenever the reader leaves: its files have nobody else to do so."""
    opening = asyncio.ensure_future(
        asyncio.to_thread(LogReader, path, lines=wanted.lines, after=wanted.after)
    )
    try:
        yield await to_the_end(opening)
    finally:
        async with turn:
            if opening.exception() is None:
                opening.result().close()


async def _pieces(reader: LogReader, wanted: LogWanted, turn: asyncio.Lock) -> AsyncIterator[bytes]:
    """Yield what is read, as it is sent. What is left of this when the connection ends may stay."""
    yield b"\n"  # an empty line says nothing, and the request is on its way
    while True:
        async with turn:  # to its end, whatever comes: the files are closed behind this
            piece = await to_the_end(asyncio.to_thread(reader.next))
        if piece:
            yield msgspec.json.encode(piece) + b"\n"
        elif not wanted.follow or await asyncio.to_thread(lambda: reader.is_over):
            return
        else:
            await asyncio.sleep(LOOK_EVERY_S)
