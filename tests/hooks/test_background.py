"""Loops that never end, whatever happens in them."""

from __future__ import annotations

import asyncio
import sqlite3

import structlog

from hooks.background import for_ever


async def told_of(*failures: Exception | None) -> list[str]:
    """What is logged by a loop whose turns go so, one after the other; then it is cancelled."""
    turns = list(failures)
    done = asyncio.Event()

    async def turn() -> None:
        if not turns:
            done.set()
            await asyncio.sleep(60)
        elif (failure := turns.pop(0)) is not None:
            raise failure

    with structlog.testing.capture_logs() as logged:
        loop = asyncio.create_task(for_ever(turn, failed="turn_failed", pause_s=0))
        await asyncio.wait_for(done.wait(), 20)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert loop.cancelled()
    return [entry["event"] for entry in logged]


async def test_loop_goes_on_after_any_failure_and_tells_each_once() -> None:
    failures = (ValueError("a"), ValueError("a"), sqlite3.OperationalError("b"), None, None)
    assert await told_of(*failures) == ["turn_failed", "turn_failed"]


async def test_failure_that_comes_back_after_a_good_turn_is_told_again() -> None:
    told = await told_of(ValueError("a"), None, ValueError("a"))
    assert told == ["turn_failed", "turn_failed"]
