"""Loops that never end, whatever happens in them."""

from __future__ import annotations

import asyncio
import sqlite3

import structlog

from hooks.background import for_ever


async def test_loop_goes_on_after_any_failure_and_tells_each_once() -> None:
    failures = [ValueError("a"), ValueError("a"), sqlite3.OperationalError("b"), None, None]
    done = asyncio.Event()

    async def turn() -> None:
        if not failures:
            done.set()
            await asyncio.sleep(60)
        elif (failure := failures.pop(0)) is not None:
            raise failure

    with structlog.testing.capture_logs() as logged:
        loop = asyncio.create_task(for_ever(turn, failed="turn_failed", pause_s=0))
        await asyncio.wait_for(done.wait(), 5)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert loop.cancelled()
    assert [entry["event"] for entry in logged] == ["turn_failed", "turn_failed"]


async def test_failure_that_comes_back_after_a_good_turn_is_told_again() -> None:
    failures: list[Exception | None] = [ValueError("a"), None, ValueError("a")]
    done = asyncio.Event()

    async def turn() -> None:
        if not failures:
            done.set()
            await asyncio.sleep(60)
        elif (failure := failures.pop(0)) is not None:
            raise failure

    with structlog.testing.capture_logs() as logged:
        loop = asyncio.create_task(for_ever(turn, failed="turn_failed", pause_s=0))
        await asyncio.wait_for(done.wait(), 5)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert len(logged) == 2
