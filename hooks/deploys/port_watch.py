"""Whether web processes still have their ports to themselves.

Sites share the machine's ports. A program that shares its port on purpose (SO_REUSEPORT), or stops
listening while it runs on, lets another site listen there too. Then nobody can say whom a visitor
reaches: the process gets no more of them, and is started again on another port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from hooks.deploys.listeners import listeners

LOOK_EVERY_S: Final = 1.0
_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Watched:
    is_own: Callable[[Collection[int]], bool]
    on_stranger: Callable[[], None]
    own: set[int] = field(default_factory=set)


class PortWatch:
    """The ports of one host's web processes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._trouble = ""

    def watch(
        self,
        port: int,
        *,
        is_own: Callable[[Collection[int]], bool],
        on_stranger: Callable[[], None],
    ) -> None:
        """Look at `port` from now on. `on_stranger` is called once, and that is the end of it.

        `is_own` says whether the sockets of these inodes are all the process's own; it may block.
        """
        self._watched[port] = _Watched(is_own, on_stranger)

    def forget(self, port: int) -> None:
        """Look at it no more."""
        self._watched.pop(port, None)

    async def keep(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._watched:
                await self.look()

    async def look(self) -> None:
        """Look at all ports once."""
        watched = dict(self._watched)
        try:
            taken = await asyncio.to_thread(_taken, watched)
        except OSError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error("ports_not_watched", reason=str(error))
            return
        self._trouble = ""
        for port in taken:
            if self._watched.get(port) is watched[port]:
                self.forget(port)
                watched[port].on_stranger()


def _taken(watched: Mapping[int, _Watched]) -> list[int]:
    """The ports that others listen on. Blocking.

    Whose a socket is costs more to find out than that it is there: it is found out once.
    """
    found = listeners()
    return [port for port, each in watched.items() if _has_stranger(port, each, found)]


def _has_stranger(port: int, watched: _Watched, found: Mapping[int, set[int]]) -> bool:
    now = found.get(port, set())
    while not now <= watched.own:
        if watched.is_own(now):
            watched.own = set(now)
            break
        # One that has just been closed is nobody's.
        before, now = now, listeners().get(port, set())
        if before == now:
            return True
    return False
