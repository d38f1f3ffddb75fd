"""A selector that goes on where the kernel has no more epoll watches for its user.

The kernel counts them for a user, in whatever sandboxes its processes are, and sites run as the
user of their host. Once one of them had them all, the host took visitors' connections and never
heard what they asked for.

Source: epoll(7), "/proc interfaces"; epoll_ctl(2), ENOSPC.
"""

from __future__ import annotations

import errno
import math
import selectors
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

WATCHES_MAX: Final = Path("/proc/sys/fs/epoll/max_user_watches")
WATCH_BYTES: Final = 200
"""What a watch takes of the kernel's memory: some 209 on x86_64, which control groups count."""
SAID_EVERY_S: Final = 60.0

_log = structlog.get_logger()


class SparingSelector(selectors.EpollSelector):
    """epoll, with poll beside it for what epoll is refused to watch."""

    def __init__(self) -> None:
        super().__init__()
        self._spare = selectors.PollSelector()
        self._spare.register(self.fileno(), selectors.EVENT_READ)
        self._said_at = -math.inf

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        try:
            return super().register(fileobj, events, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        self._say()
        return self._spare.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        if self._has_spared(fileobj):
            return self._spare.unregister(fileobj)
        return super().unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self._has_spared(fileobj):
            return self._spare.modify(fileobj, events, data)
        return super().modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._is_sparing():
            return super().select(timeout)
        found = self._spare.select(timeout)
        spared = [(key, events) for key, events in found if key.fd != self.fileno()]
        return spared if len(spared) == len(found) else spared + super().select(0)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        watched = super().get_map()
        if not self._is_sparing():
            return watched
        both: list[Any] = [watched, self._spare.get_map()]  # read only, whatever it is typed as
        return ChainMap(*both)

    def close(self) -> None:
        self._spare.close()
        super().close()

    def _say(self) -> None:
        """Now and then, for each connection that comes is refused its watch."""
        if time.monotonic() - self._said_at >= SAID_EVERY_S:
            self._said_at = time.monotonic()
            _log.error(
                "epoll_watches_used_up",
                advice="raise fs.epoll.max_user_watches: docs/hosting.md",
            )

    def _is_sparing(self) -> bool:
        return len(self._spare.get_map()) > 1

    def _has_spared(self, fileobj: Any) -> bool:
        return self._is_sparing() and fileobj in self._spare.get_map()


def warn_of_few_watches(memory_bytes: int) -> None:
    """Say at a start that one site can have them all: before it exceeds its memory.

    Nothing where the bound is not shown, as by a unit with `ProcSubset=pid`.
    """
    try:
        watches = int(WATCHES_MAX.read_text())
    except OSError:
        return
    if watches * WATCH_BYTES < memory_bytes:
        _log.warning(
            "epoll_watches_few",
            watches=watches,
            advice="a site can have them all: docs/hosting.md says what to set",
        )
