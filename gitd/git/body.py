"""A request's body as git sends it: inflated, bounded, read by pkt-lines and then raw.

Nothing else inflates it: what is refused costs nothing. A body that ends early raises nothing:
what is read knows its own end.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from aiohttp import ClientConnectionError, web

from gitd.git.errors import (
    BodyInvalidError,
    BodyStalledError,
    BodyTooLargeError,
    UnsupportedBodyError,
)
from gitd.git.pkt_line import Marker, parse_length

_ENCODINGS = {"": None, "identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""And what zlib calls them. `deflate` has a head and a sum. Source: RFC 9110, 8.4.1.2."""
_INFLATE_BYTES = 256 << 10


class BodyReader:
    """Reads one request's body, once.

    Args:
        request: whose body it is.
        idle_s: longest time without a byte.
        bytes_max: bound on the inflated bytes; None for a body that is bounded elsewhere.

    Raises:
        UnsupportedBodyError: the body's encoding is not known here.
    """

    def __init__(self, request: web.Request, *, idle_s: float, bytes_max: int | None) -> None:
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise UnsupportedBodyError(f"Content-Encoding '{encoding}' is not supported\n")
        self._content = request.content
        window = _ENCODINGS[encoding]
        self._inflater = None if window is None else zlib.decompressobj(window)
        self._idle_s = idle_s
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._total_bytes = 0
        self._is_ended = False

    async def _fill(self) -> bool:
        """Add at least one byte to the buffer; False at the end."""
        piece = await self._next()
        self._buffer += piece
        return bool(piece)

    async def _next(self) -> bytes:
        """Return the next bytes as they come, inflated; nothing at the end."""
        while not self._is_ended:
            if self._inflater is not None and self._inflater.unconsumed_tail:
                piece = self._inflate(self._inflater.unconsumed_tail)
            else:
                piece = await self._receive()
                self._is_ended = not piece
                if self._inflater is not None and piece:
                    piece = self._inflate(piece)
            self._total_bytes += len(piece)
            if self._bytes_max is not None and self._total_bytes > self._bytes_max:
                raise BodyTooLargeError(
                    f"the request is larger than {self._bytes_max} bytes (git.request_bytes_max)"
                )
            if piece:
                return piece
        return b""

    async def _receive(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle_s):
                return await self._content.readany()
        except TimeoutError as error:
            raise BodyStalledError(
                f"the client sent nothing for too long ({self._idle_s:g} s, git.idle_s)"
            ) from error
        except web.RequestPayloadError as error:
            raise BodyInvalidError("the request's body is damaged") from error
        except (ConnectionError, ClientConnectionError) as error:
            raise BodyInvalidError("the client left in the middle of its request") from error

    def _inflate(self, raw: bytes) -> bytes:
        assert self._inflater is not None
        try:
            piece = self._inflater.decompress(raw, _INFLATE_BYTES)
        except zlib.error as error:
            raise BodyInvalidError(f"the request's body is damaged: {error}") from error
        if self._inflater.unused_data:  # it would be kept, however much it were
            raise BodyInvalidError("the request's body is damaged: it goes on behind its end")
        return piece

    async def _require(self, count: int) -> bool:
        while len(self._buffer) < count:
            if not await self._fill():
                return False
        return True

    async def pkt(self) -> bytes | Marker:
        """Read one packet; `Marker.END` at the end of the body.

        Raises:
            BodyInvalidError: what is there is no packet, or the body ends inside of one.
        """
        if not await self._require(4):
            if self._buffer:
                raise BodyInvalidError("the request ends inside a packet")
            return Marker.END
        length = parse_length(bytes(self._buffer[:4]))
        if isinstance(length, Marker):
            del self._buffer[:4]
            return length
        if not await self._require(4 + length):
            raise BodyInvalidError("the request ends inside a packet")
        data = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return data

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what is left, in pieces as they come."""
        if self._buffer:
            piece = bytes(self._buffer)
            self._buffer.clear()
            yield piece
        while piece := await self._next():
            yield piece

    async def drain(self, bytes_max: int) -> None:
        """Read on and throw away, so that the client hears the answer instead of a reset."""
        async for piece in self.rest():
            bytes_max -= len(piece)
            if bytes_max < 0:
                return
