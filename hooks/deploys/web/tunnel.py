"""A tunnel: after `101 Switching Protocols` the bytes of both sides pass as they are."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from aiohttp.base_protocol import BaseProtocol

BUFFER_BYTES_MAX: Final = 256 * 1024
"""More than this unsent, and the faster side is not read until the slower one has caught up."""


class Tunnel:
    """Joins two connections that have both been upgraded, until either ends.

    It speaks no WebSocket: extensions, message sizes and close codes are between the two ends.
    """

    def __init__(self, visitor: BaseProtocol, process: BaseProtocol) -> None:
        self._ended = asyncio.Event()
        self.to_process = Flow(visitor, process, self._ended)
        self.to_visitor = Flow(process, visitor, self._ended)

    async def run(self) -> None:
        """Return when either side has ended; both are closed then."""
        try:
            await self._ended.wait()
        finally:
            self.to_process.close()
            self.to_visitor.close()

    def end(self) -> None:
        self._ended.set()


class Flow:
    """One direction. It stands where aiohttp expects the parser of an upgraded connection."""

    def __init__(self, source: BaseProtocol, sink: BaseProtocol, ended: asyncio.Event) -> None:
        self._source = source
        self._sink = sink
        self._ended = ended
        self._catching_up: asyncio.Task[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Pass bytes on; return, as a parser does, that more may come and none are left."""
        transport = self._sink.transport
        if transport is None or transport.is_closing():
            self._ended.set()
            return True, b""
        transport.write(data)
        if self._catching_up is None and transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            self._source.pause_reading()
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())
        return False, b""

    def feed_eof(self) -> None:
        self._ended.set()

    def close(self) -> None:
        if self._catching_up is not None:
            self._catching_up.cancel()
        if self._sink.transport is not None:
            self._sink.transport.close()

    async def _catch_up(self) -> None:
        # The transport says "writable" once its buffer is down to its low-water mark.
        with contextlib.suppress(ConnectionError):
            await self._sink._drain_helper()  # noqa: SLF001 - what aiohttp's own writers await
            self._catching_up = None
            self._source.resume_reading()
