"""Portions: how many bytes of a connection are read before the event loop turns to the others.

What comes is parsed in one go. A portion of an ordinary body takes less than 0.1 ms; of chunks of
one byte each, one of asyncio's 256 KiB takes 0.1 s, and there may be many such connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

BYTES_MIN: Final = 2 * 1024
BYTES_AT_FIRST: Final = 16 * 1024
BYTES_MAX: Final = 256 * 1024  # as asyncio has it
SLOW_S: Final = 0.0005
"""Of the thread's own time: a busy machine makes nothing slow."""


class Portions:
    """Of one connection: small ones while what comes takes long, larger ones while it does not."""

    __slots__ = ("_bytes", "_transport")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._set(BYTES_AT_FIRST)

    def take(self, data: bytes, receive: Callable[[bytes], None]) -> None:
        """Have `data` received, and settle how much comes next."""
        if len(data) < BYTES_MIN:
            receive(data)
            return
        began_s = time.thread_time()
        receive(data)
        took_s = time.thread_time() - began_s
        if took_s > SLOW_S:
            self._set(BYTES_MIN)
        elif took_s < SLOW_S / 4 and len(data) >= self._bytes < BYTES_MAX:
            self._set(self._bytes * 2)

    def _set(self, size_bytes: int) -> None:
        self._bytes = size_bytes
        if hasattr(self._transport, "max_size"):  # those that read sockets have it
            self._transport.max_size = size_bytes
