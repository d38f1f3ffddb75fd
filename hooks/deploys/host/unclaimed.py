"""Environments of this host that control does not name, and what becomes of them.

Control names all that it has. What it leaves out is gone, or newer than its records, which may have
been put back from an old copy: then its data is all that is left of it. So it is asked which of
them were there once and were removed, and only these go. The others are served on, and kept for a
time that is enough to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Final

import structlog

from hooks.deploys.host.control import BACK_OFF_FIRST_S, ControlLine, ControlUnreachableError
from hooks.deploys.host.rollout_tools import RolloutTools
from hooks.deploys.host.state import HostFolder
from storage.errors import StorageError

KEPT_S: Final = 7 * 24 * 3600
"""So long an environment is kept that control does not know of: hours that both are connected."""
LOOK_EVERY_S: Final = 3600.0
BACK_OFF_MAX_S: Final = 60.0

_log = structlog.get_logger()


class Unclaimed:
    """Looks after the environments that control does not name. Belongs to one event loop.

    `forget` removes one with its data; `is_leaving` says whether that is under way.
    """

    def __init__(
        self,
        folder: HostFolder,
        *,
        tools: RolloutTools,
        line: ControlLine,
        forget: Callable[[str], None],
        is_leaving: Callable[[str], bool],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._tools = tools
        self._line = line
        self._forget = forget
        self._is_leaving = is_leaving
        self._clock_s = clock_s
        self._named: set[str] = set()
        self._due_s = 0.0
        self._counted_to_s: float | None = None
        """When the last look of this connection that came to its end counted."""
        self._lock = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    def hear_all(self, named: Collection[str]) -> None:
        """Control named all that it has: a connection begins. How long there was none counts for
        nothing: nobody heard from control that it does not know of an environment.
        """
        self._named = set(named)
        self._counted_to_s = None
        self._look()

    def hear(self, env_id: str) -> None:
        self._named.add(env_id)

    def hear_removed(self, env_id: str) -> None:
        self._named.discard(env_id)

    def look_again(self) -> None:
        """Control is still there. Look again if the last time is long ago, and over."""
        is_looking = self._looking is not None and not self._looking.done()
        if not is_looking and self._clock_s() >= self._due_s:
            self._look()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    def _look(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._due_s = self._clock_s() + LOOK_EVERY_S
        self._looking = asyncio.get_running_loop().create_task(self._look_until_done())

    async def _look_until_done(self) -> None:
        """Look, again and again while control does not answer. Where the line is down, this waits
        for it, and is canceled once control names all that it has.
        """
        pause_s = BACK_OFF_FIRST_S
        async with self._lock:  # one that was canceled may still have a thread at work
            while True:
                try:
                    await self._look_at_all()
                except ControlUnreachableError:
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, BACK_OFF_MAX_S)
                except Exception:  # noqa: BLE001 - the ring around it: what is served is served on
                    _log.exception("unclaimed_not_looked_at")
                    return
                else:
                    return

    async def _look_at_all(self) -> None:
        found = await self._tools.in_thread(self._folder.unclaimed, frozenset(self._named))
        lacking = [env_id for env_id in found if not self._is_leaving(env_id)]
        gone = await self._line.gone(lacking) if lacking else frozenset()
        now_s = self._clock_s()
        more_s = self._more_s(now_s)
        for env_id in lacking:
            if env_id in gone:
                self._forget_unless_named(env_id)
        for env_id in lacking:
            if env_id in gone:
                continue
            try:
                is_over = await self._is_over(env_id, more_s)
            except StorageError as error:  # it is kept for longer; the others are none the worse
                _log.warning("unclaimed_not_counted", env_id=env_id, reason=str(error))
                continue
            if is_over:
                self._forget_unless_named(env_id)
        self._counted_to_s = now_s

    def _forget_unless_named(self, env_id: str) -> None:
        if env_id not in self._named:  # it may have come back meanwhile
            self._forget(env_id)

    def _more_s(self, now_s: float) -> float:
        """Return the time that counts since the last look: no more than what lies between two of
        them, though this process, or its machine, stood still.
        """
        if self._counted_to_s is None:
            return 0.0
        return min(max(now_s - self._counted_to_s, 0.0), LOOK_EVERY_S)

    async def _is_over(self, env_id: str, more_s: float) -> bool:
        """Whether there is nothing to lose, or somebody had the time to notice."""
        folder = self._folder.stranger(env_id)
        kept_s = await self._tools.in_thread(folder.note_unclaimed, more_s)
        if kept_s is None or kept_s >= KEPT_S:
            return True
        _log.warning(
            "environment_unknown_to_control",
            env_id=env_id,
            path=str(folder.path),
            kept_for_h=round((KEPT_S - kept_s) / 3600),
            advice="its records are older, or were lost: restore newer ones, or copy its data away",
        )
        return False
