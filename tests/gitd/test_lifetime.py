"""How a server ends: in peace, or so that it is started again."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from gitd.errors import LoopFailedError
from gitd.lifetime import Lifetime


async def test_loop_that_fails_ends_the_server_with_an_error() -> None:
    lifetime = Lifetime()

    async def fail() -> None:
        raise ValueError

    async with lifetime.running(asyncio.sleep(60), fail()):
        with pytest.raises(LoopFailedError):
            await asyncio.wait_for(lifetime.over(), 20)


async def test_loop_that_returns_has_failed_too() -> None:
    lifetime = Lifetime()
    async with lifetime.running(asyncio.sleep(0)):
        with pytest.raises(LoopFailedError):
            await asyncio.wait_for(lifetime.over(), 20)


async def test_signal_ends_the_server_without_an_error() -> None:
    lifetime = Lifetime()
    lifetime.end_on(signal.SIGUSR1)
    async with lifetime.running(asyncio.sleep(60)):
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(lifetime.over(), 20)
