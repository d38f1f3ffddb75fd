"""Whether web processes still have their ports to themselves.

Sites share the machine's ports. A program that shares its port on purpose (SO_REUSEPORT), or stops
listening while it runs on, lets another site listen there too. Then nobody can say whom a visitor
reaches: the process gets no more of them, and is started again on another port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from hooks.background import for_ever
from hooks.deploys.processes.listeners import listeners

LOOK_EVERY_S: Final = 1.0
_TRIES: Final = 3
_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Watched:
    """A process's port that is looked at: what `watch` returns and `forget` takes."""

    port: int
    is_own: Callable[[Collection[int]], bool]
    on_stranger: Callable[[], None]
    own: set[int] = field(default_factory=set)


class PortWatch:
    """The ports of one host's web processes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._held: set[int] = set()
        self._trouble = ""

    @property
    def held(self) -> Container[int]:
        """The ports of processes of which something is left."""
        return self._held

    def hold(self, port: int) -> None:
        """Keep others from `port`, which nobody holds: its process may listen there at any time."""
        self._held.add(port)

    def let_go(self, port: int) -> None:
        """Nothing is left of the process whose port it was."""
        self._held.remove(port)

    def watch(
        self,
        port: int,
        *,
        is_own: Callable[[Collection[int]], bool],
        on_stranger: Callable[[], None],
    ) -> Watched:
        """Look at `port` from now on. `on_stranger` is called once, and that is the end of it.

        `is_own` says whether the sockets of these inodes are all the process's own; it may block.
        """
        watched = Watched(port, is_own, on_stranger)
        self._watched.add(watched)
        return watched

    def forget(self, watched: Watched) -> None:
        """Look no more for this one. May be called again."""
        self._watched.discard(watched)

    async def keep(self) -> None:
        """Look again and again, for ever."""
        await for_ever(self._turn, failed="ports_not_watched", pause_s=LOOK_EVERY_S)

    async def _turn(self) -> None:
        await asyncio.sleep(LOOK_EVERY_S)
        if self._watched:
            await self.look()

    async def look(self) -> None:
        """Look at all ports once."""
        try:
            taken = await asyncio.to_thread(_taken, frozenset(self._watched))
        except OSError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error("ports_not_watched", reason=str(error))
            return
        self._trouble = ""
        for each in taken:
            if each in self._watched:
                self.forget(each)
                each.on_stranger()


def _taken(watched: Collection[Watched]) -> list[Watched]:
    """Those on whose ports others listen. Blocking.

    Whose a socket is costs more to find out than that it is there: it is found out once.
    """
    found = listeners({each.port for each in watched})
    return [each for each in watched if _has_stranger(each, found)]


def _has_stranger(watched: Watched, found: Mapping[int, set[int]]) -> bool:
    """Whether a socket lasts there that is not the process's own. Others may open and close theirs
    as fast as they like: this ends.
    """
    port = watched.port
    lasting = frozenset(found.get(port, ()))
    for _ in range(_TRIES):
        if lasting <= watched.own:
            return False
        if watched.is_own(lasting):
            watched.own = set(lasting)
            return False
        lasting &= listeners({port}).get(port, set())  # one that has just been closed is nobody's
    return True
