"""The lag of the event loop: how late it comes to what it is to do."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

from hooks.background import for_ever

EVERY_S = 1.0
BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class LoopLag:
    """Looks once a second how late it is woken."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "gitd_event_loop_lag_seconds",
            "How late the event loop of git and the API comes to what is due, looked at each"
            " second.",
            buckets=BUCKETS_S,
            registry=registry,
        )

    async def keep(self) -> None:
        """Look, for ever."""
        await for_ever(self._look, failed="loop_lag_not_measured", pause_s=EVERY_S)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        self._lag.observe(max(0.0, loop.time() - due))
