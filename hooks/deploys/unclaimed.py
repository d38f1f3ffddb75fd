"""Environments of this host that control does not name, and what becomes of them.

Control names all that it has. What it leaves out is gone, or newer than its records, which may have
been put back from an old copy: then its data is all that is left of it. So it is asked which of
them were there once and were removed, and only these go. The others are served on, and kept for a
time that is enough to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Final

import structlog

from hooks.deploys.control import ControlLine, ControlUnreachableError
from hooks.deploys.rollout_tools import RolloutTools
from hooks.deploys.state import HostFolder

KEPT_S: Final = 7 * 24 * 3600
"""How long an environment is kept that control does not know of: of the time in which both ran."""
LOOK_EVERY_S: Final = 3600.0

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
    ) -> None:
        self._folder = folder
        self._tools = tools
        self._line = line
        self._forget = forget
        self._is_leaving = is_leaving
        self._named: set[str] = set()
        self._looked_at: float | None = None
        self._looking: asyncio.Task[None] | None = None

    def hear_all(self, named: Collection[str]) -> None:
        """Control named all that it has."""
        self._named = set(named)
        self._look()

    def hear(self, env_id: str) -> None:
        self._named.add(env_id)

    def hear_removed(self, env_id: str) -> None:
        self._named.discard(env_id)

    def look_again(self) -> None:
        """Look again if the last time is long ago."""
        now = asyncio.get_running_loop().time()
        if self._looked_at is not None and now - self._looked_at >= LOOK_EVERY_S:
            self._look()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    def _look(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        now = asyncio.get_running_loop().time()
        more_s = now - self._looked_at if self._looked_at is not None else 0.0
        self._looked_at = now
        self._looking = asyncio.get_running_loop().create_task(self._look_at_all(more_s))

    async def _look_at_all(self, more_s: float) -> None:
        """`more_s`: since the last look."""
        try:
            named = frozenset(self._named)
            found = await self._tools.in_thread(self._folder.unclaimed, named)
            lacking = [env_id for env_id in found if not self._is_leaving(env_id)]
            gone = await self._line.gone(lacking) if lacking else frozenset()
            for env_id in lacking:
                is_over = env_id in gone or await self._is_over(env_id, more_s)
                if is_over and env_id not in self._named:  # it may have come back meanwhile
                    self._forget(env_id)
        except ControlUnreachableError:
            pass  # once it is back, it names all that it has again
        except Exception:  # noqa: BLE001 - the ring around it: what is served is served on
            _log.exception("unclaimed_not_looked_at")

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
