"""Unpacking: the tar of a commit is unpacked while it comes, and begun anew when it broke off."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hooks.builds.sources.tree import TreeSize, remove_tree
from hooks.builds.wire import SourceHead
from hooks.pipes import PIPE_BYTES, wide_pipe

Unpack = Callable[[BinaryIO, SourceHead, Callable[[], bool]], TreeSize]


class UnpackingEndedError(Exception):
    """Nothing more of the tar is wanted: `Unpacking.end` says why."""


class Unpacking:
    """A tree in the making, in a thread of its own. Belongs to one event loop; `close` it."""

    def __init__(self, tree: Path, unpack: Unpack) -> None:
        """`unpack(stream, head, is_stopped)` makes `tree` of what comes. Once for each `begin`."""
        self._tree = tree
        self._unpack = unpack
        self._writer: int | None = None
        self._stopped = threading.Event()
        self._task: asyncio.Task[TreeSize] | None = None

    async def begin(self, head: SourceHead) -> None:
        """Begin, or begin anew: then nothing is left of what came before."""
        if self._task is not None:
            await self.close()
            await asyncio.to_thread(remove_tree, self._tree)
        reader, self._writer = wide_pipe()
        os.set_blocking(self._writer, False)
        stopped = self._stopped = threading.Event()

        def work() -> TreeSize:
            with os.fdopen(reader, "rb", buffering=PIPE_BYTES) as stream:
                return self._unpack(stream, head, stopped.is_set)

        self._task = asyncio.create_task(asyncio.to_thread(work))

    async def write(self, chunk: bytes) -> None:
        """Hand on what came. Returns when it is taken.

        Raises:
            UnpackingEndedError: It will not be.
        """
        assert self._writer is not None, "`begin` comes first"
        left = memoryview(chunk)
        while left:
            try:
                left = left[os.write(self._writer, left) :]
            except BlockingIOError:
                await _writable(self._writer)
            except BrokenPipeError:
                raise UnpackingEndedError from None

    async def end(self) -> TreeSize:
        """Return what was unpacked, once all has come. Raises what `unpack` does."""
        assert self._task is not None, "`begin` comes first"
        self._close_writer()
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Stop what goes on. The thread has ended when this returns."""
        self._stopped.set()
        self._close_writer()
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # seen: that it was told to stop is no news

    def _close_writer(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None


async def _writable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)
