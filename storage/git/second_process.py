"""A copy of this process that does one piece of work beside it: Python uses one core at a time."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import msgspec

_INHERITED_MAX = 256  # descriptors that a worker may have open

T = TypeVar("T")


def has_second_core() -> bool:
    """Say whether two processes can run at once."""
    return len(os.sched_getaffinity(0)) > 1


class SecondProcess(Generic[T]):
    """Begins at once. Only for a process without threads; leave it by `result` or `stop`.

    Args:
        work: runs in the copy, where nothing that it changes is seen here.
        kind: type of what it returns; must be one that MessagePack can carry.
    """

    def __init__(self, work: Callable[[], T], kind: type[T]) -> None:
        self._kind = kind
        self._out, into = os.pipe()
        gc.freeze()
        try:
            self._child = os.fork()
        finally:
            gc.unfreeze()
        if not self._child:
            _do(work, into)
        os.close(into)
        self._is_over = False

    def result(self) -> T | None:
        """Wait for what the work returns; None when it failed, in whatever way."""
        try:
            with open(self._out, "rb", closefd=False) as pipe:
                data = pipe.read()
        except BaseException:
            self.stop()
            raise
        return msgspec.msgpack.decode(data, type=self._kind) if self._end() == 0 else None

    def stop(self) -> None:
        """Break it off; a second call is fine."""
        if not self._is_over:
            os.kill(self._child, signal.SIGKILL)
            self._end()

    def _end(self) -> int:
        self._is_over = True
        os.close(self._out)
        return os.waitpid(self._child, 0)[1]


def _do(work: Callable[[], T], into: int) -> NoReturn:
    """Work, write the result, and end. Never returns, never raises."""
    try:
        os.closerange(0, into)
        os.closerange(into + 1, _INHERITED_MAX)
        data = msgspec.msgpack.encode(work())
        with open(into, "wb") as pipe:
            pipe.write(data)
        os._exit(0)
    finally:
        os._exit(1)
