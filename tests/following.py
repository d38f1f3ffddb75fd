"""A job's log as it is followed, entry by entry: without the places in the queue."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from hooks.jobs import Jobs, QueuePlace
from storage.joblog import Positioned


async def entries(
    jobs: Jobs, job_id: str, *, after: int = 0, heartbeat_s: float
) -> AsyncIterator[Positioned | None]:
    """Yield each entry up to the final state; None for `heartbeat_s` without one."""
    following = jobs.follow(job_id, after=after, heartbeat_s=heartbeat_s)
    async with contextlib.aclosing(following):
        async for item in following:
            if item is None:
                yield None
            elif not isinstance(item, QueuePlace):
                for entry in item:
                    yield entry
