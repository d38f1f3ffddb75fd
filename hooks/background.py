"""Background: tasks that nobody has to wait for, kept until they end; and loops that never do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from hooks.audit_log import asked_by

log = structlog.get_logger(__name__)


class Background:
    """The tasks of one event loop that somebody began."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin some work. What goes wrong in it is logged, whether or not somebody waits.

        Whoever asked for what was done just now asks for none of it.
        """
        with asked_by(None):
            task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_failed", exc_info=error)


async def for_ever(turn: Callable[[], Awaitable[object]], *, failed: str, pause_s: float) -> None:
    """Take one turn after the other, for ever: the ring around every loop of a server.

    Whatever goes wrong in a turn is logged as `failed`, once for as long as it stays the same, and
    the next turn comes after `pause_s` seconds. A turn that goes well rests by itself.
    """
    told = ""
    while True:
        try:
            await turn()
        except Exception as error:  # the ring: no turn's trouble takes the server down
            if repr(error) != told:
                told = repr(error)
                log.exception(failed)
            await asyncio.sleep(pause_s)
        else:
            told = ""
