"""The time of day, passed in wherever it is needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from storage import timestamps

Clock = Callable[[], int]  # milliseconds since 1970, UTC


class BelievedClock:
    """The time of day for whoever removes by age: a leap ahead counts once it has lasted.

    It is the earliest that the clock said whenever it was asked for `grace_s` seconds until now, as
    this process spent them: an asking counts for `step_s_max` at most, however long ago the last
    one was. Somebody who asks now and then has as much time to set a wrong clock right.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        grace_s: float,
        step_s_max: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._step_s_max = step_s_max
        self._monotonic = monotonic
        self._asked_at = monotonic()
        self._passed_s = 0.0
        self._said: deque[tuple[float, int]] = deque()  # after how many seconds, and what

    def now(self) -> int | None:
        """Ask it; None until it has been asked for long enough."""
        at = self._monotonic()
        self._passed_s += min(at - self._asked_at, self._step_s_max)
        self._asked_at = at
        self._said.append((self._passed_s, self._clock()))
        begin_s = self._passed_s - self._grace_s
        while len(self._said) > 1 and self._said[1][0] <= begin_s:
            self._said.popleft()
        if self._said[0][0] > begin_s:
            return None
        return min(said for _, said in self._said)


now_ms: Final = timestamps.now_ms
rfc3339: Final = timestamps.rfc3339
