"""The sweeper of a slot: it removes what builds left, while the next ones run."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import structlog

from hooks.builds.sandbox.disk import shortage_beside_build
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sources.tree import remove_tree

log = structlog.get_logger(__name__)


class Sweeper:
    """Removes folders of `scratch`, one after the other: a large tree takes its time.

    Belongs to one event loop.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._left: list[Path] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._is_less = asyncio.Event()
        self._limits: Limits | None = None

    def sweep(self, folder: Path, limits: Limits) -> None:
        """Remove a folder, if it is there, when those before it are gone.

        `limits`: what its build could take, as the next one can.
        """
        self._limits = limits
        self._left.append(folder)
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

    async def room(self) -> None:
        """Return when the disk has as much as a build may take, of bytes and of files, or nothing
        is left to remove.
        """
        while self._left and self._is_short():
            self._is_less.clear()
            await self._is_less.wait()

    async def aclose(self) -> None:
        """Return when nothing is left that it was given."""
        if self._sweeping is not None:
            await self._sweeping

    async def _sweep(self) -> None:
        while self._left:
            try:
                await asyncio.to_thread(remove_tree, self._left[0])
            except (OSError, subprocess.SubprocessError) as error:  # the next start tries again
                log.warning("folder_not_removed", reason=str(error))
            del self._left[0]
            self._is_less.set()
        self._sweeping = None

    def _is_short(self) -> bool:
        assert self._limits is not None, "something was swept"
        return shortage_beside_build(self._scratch, self._limits) is not None
