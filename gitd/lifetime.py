"""The lifetime of a server: until it is told to stop, or a part that goes on for ever ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine

import structlog

from gitd.errors import LoopFailedError

log = structlog.get_logger(__name__)


class Lifetime:
    """When a server ends, and why. Belongs to one event loop."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()
        self._has_failed = False

    def end_on(self, *numbers: signal.Signals) -> None:
        """End in peace at one of these signals."""
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._is_over.set)

    async def over(self) -> None:
        """Return when the server was told to stop.

        Raises:
            LoopFailedError: A loop ended by itself. Whoever starts servers is to start it afresh.
        """
        await self._is_over.wait()
        if self._has_failed:
            raise LoopFailedError

    @contextlib.asynccontextmanager
    async def running(self, *loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
        """Run loops that end only when they are canceled: afterwards."""
        tasks = [asyncio.create_task(loop) for loop in loops]
        for task in tasks:
            task.add_done_callback(self._note_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("loop_failed", exc_info=task.exception())
            self._has_failed = True
            self._is_over.set()
