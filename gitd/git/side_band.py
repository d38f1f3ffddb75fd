"""The answer of a push or fetch: data on band 1, words for the user on band 2, kept alive.

Source: gitprotocol-pack(5), "Packfile Data"; git's receive.keepAlive and uploadpack.keepAlive.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

from aiohttp import ClientConnectionError, web

from gitd.git.pkt_line import FLUSH, side_band
from gitd.terminal import coloured

DATA, PROGRESS, FATAL = 1, 2, 3
WRITE_BYTES = 256 << 10  # what waits in this process for a slow reader, at most
SEND_BYTES = 240 << 10  # of data at once: in its packets it still fits into that
HELD_BYTES_MAX = 8 << 10  # what waits for what comes right behind it, to be sent as one
_ERRORS = (ConnectionError, ClientConnectionError, TimeoutError)


async def write_pieces(response: web.StreamResponse, data: bytes, *, stall_s: float) -> None:
    """Send bytes as fast as they are taken, so that no more than a piece waits in memory.

    Raises:
        ConnectionError, ClientConnectionError: the client has left.
        TimeoutError: it took nothing for `stall_s`.
    """
    for at in range(0, len(data), WRITE_BYTES):
        async with asyncio.timeout(stall_s):
            await response.write(data[at : at + WRITE_BYTES])


class StreamedAnswer(web.StreamResponse):
    """A streamed answer whose head is sent with the first bytes behind it."""

    _send_headers_immediately = False  # aiohttp's own, for answers that are whole


class SideBandAnswer:
    """A streamed answer that may have side bands.

    A few bytes wait until the event loop goes on, so that they are sent with those that come right
    behind them: each packet of the network wakes the client.

    Writing never raises for a client that left: `is_gone` turns true and the rest is dropped.

    Args:
        response: prepared on the first write.
        bytes_max: data in one packet; 0 when the client asked for no side band.
        keepalive_s: an empty packet is sent after that much silence, once `keep_alive` was called.
        stall_s: a client that takes nothing for so long is gone.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        *,
        bytes_max: int,
        keepalive_s: float,
        stall_s: float,
    ) -> None:
        self._request = request
        self._response = response
        self._bytes_max = bytes_max
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._lock = asyncio.Lock()
        self._written_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._flusher: asyncio.Handle | None = None
        self._flushes: set[asyncio.Task[None]] = set()
        self.is_gone = False

    @property
    def has_begun(self) -> bool:
        """Whether there is something to read for the client, or will be at once."""
        return self._response.prepared or bool(self._held)

    @property
    def has_bands(self) -> bool:
        return self._bytes_max > 0

    def use_bands(self, bytes_max: int) -> None:
        """From now on, data goes on bands of that packet size (version 0 begins without)."""
        self._bytes_max = bytes_max

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_keeping()
        if self._keeper is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._flush()

    # raw and bands

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_MAX:
            await self._flush()
        elif self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_soon(self._begin_flush)

    def _begin_flush(self) -> None:
        task = asyncio.create_task(self._flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _flush(self) -> None:
        async with self._lock:
            data = self._take_held()
            if self.is_gone or not data:
                return
            try:
                if not self._response.prepared:
                    async with asyncio.timeout(self._stall_s):
                        await self._response.prepare(self._request)
                await write_pieces(self._response, data, stall_s=self._stall_s)
            except _ERRORS:
                self.is_gone = True
            self._written_at = time.monotonic()

    def _take_held(self) -> bytes:
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        held, self._held, self._held_bytes = self._held, [], 0
        return held[0] if len(held) == 1 else b"".join(held)

    async def send(self, data: bytes) -> None:
        """Send data: on band 1, or raw for a client without side bands."""
        if not self.has_bands:
            await self.write(data)
            return
        for at in range(0, len(data), SEND_BYTES):
            piece = data[at : at + SEND_BYTES]
            await self.write(b"".join(side_band(DATA, piece, bytes_max=self._bytes_max)))

    async def progress(self, text: bytes) -> None:
        """Send words to the user as they are: a line ends with LF, or CR to be overwritten."""
        if self.has_bands and text:
            await self.write(b"".join(side_band(PROGRESS, text, bytes_max=self._bytes_max)))

    async def say(self, *lines: str) -> None:
        """Show lines to the user, `remote: ` before each; of other people's, text and colours."""
        text = "".join(f"{coloured(part)}\n" for line in lines for part in line.split("\n"))
        await self.progress(text.encode("utf-8", "replace"))

    async def fail(self, message: str) -> None:
        """Tell the user why this ends here (band 3); nothing may follow."""
        if self.has_bands:
            text = message.encode("utf-8", "replace")
            await self.write(b"".join(side_band(FATAL, text, bytes_max=self._bytes_max)))

    async def end(self) -> None:
        """Close the side band and the answer."""
        await self.finish(FLUSH if self.has_bands else b"")

    async def finish(self, last: bytes = b"") -> None:
        """Send a last few bytes as they are, and close the answer."""
        self._stop_keeping()
        async with self._lock:
            data = self._take_held() + last
            if self.is_gone:
                return
            try:
                if not self._response.prepared:
                    self._response.content_length = len(data)
                    await self._response.prepare(self._request)
                await self._response.write_eof(data)
            except _ERRORS:
                self.is_gone = True

    # silence

    def keep_alive(self, *, band: int = PROGRESS) -> None:
        """From now on, never be silent for long."""
        if self.has_bands and self._timer is None and self._keepalive_s > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keepalive_s, self._begin_keeping, b"0005%c" % band)

    def _begin_keeping(self, packet: bytes) -> None:
        self._keeper = asyncio.create_task(self._keep_alive(packet))

    def _stop_keeping(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()

    async def _keep_alive(self, packet: bytes) -> None:
        while not self.is_gone:
            silent_s = time.monotonic() - self._written_at
            if silent_s >= self._keepalive_s:
                await self.write(packet)
                await self._flush()
            else:
                await asyncio.sleep(self._keepalive_s - silent_s)
