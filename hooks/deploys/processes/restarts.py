"""Restarts: how a web process stands, and how often in a row it had to be started again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from hooks.clock import now_ms, rfc3339
from hooks.deploys.wire import LastExit, Running

BACK_OFF_FIRST_S: Final = 0.1
BACK_OFF_MAX_S: Final = 30.0
STEADY_AFTER_S: Final = 60.0
"""A process that ran this long starts again at once, as if it had never failed."""
WORRYING_COUNT: Final = 3
"""From so many restarts in a row on, something is wrong with the program."""


class Restarts:
    """What is remembered of a web process from start to start.

    `on_change` is called whenever it stands otherwise.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.first_answer: int | None = None
        self._on_change = on_change
        self._is_healthy = False
        self._count = 0
        self._last_exit: LastExit | None = None
        self._pause_s = BACK_OFF_FIRST_S
        self._due_at = 0.0

    @property
    def running(self) -> Running:
        """How it stands: it serves, it never did yet, or it ended and is started again."""
        facts = (self._count, self._last_exit, self.first_answer)
        if self._is_healthy:
            return Running("serving", *facts)
        return Running("restarting" if self._count else "starting", *facts)

    @property
    def is_worrying(self) -> bool:
        return self._count >= WORRYING_COUNT

    @property
    def left_s(self) -> int:
        """Whole seconds until it is started again, at least one."""
        return max(1, math.ceil(self._due_at - time.monotonic()))

    def note_healthy(self) -> None:
        self._is_healthy = True
        self._on_change()

    def note_end(self, status: int | None, message: str) -> None:
        """It ended, or could not be started: then without a `status`."""
        self._is_healthy = False
        self._count += 1
        self._last_exit = LastExit(status, message, rfc3339(now_ms()))

    def note_steady(self) -> None:
        """It ran for long: whatever was before does not count any more."""
        self._count, self._pause_s = 0, BACK_OFF_FIRST_S
        self._on_change()

    def next_pause_s(self) -> float:
        """How long to wait before it is started again: longer from time to time."""
        pause_s = self._pause_s
        self._due_at = time.monotonic() + pause_s
        self._pause_s = min(pause_s * 2, BACK_OFF_MAX_S)
        self._on_change()
        return pause_s
