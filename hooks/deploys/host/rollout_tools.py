"""What the rollouts of all environments share: the store, threads, and turns to take."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.deploys.host.foresight import Served
from hooks.deploys.processes.health import TIMEOUT_S as HEALTH_TIMEOUT_S
from hooks.deploys.processes.port_watch import PortWatch
from hooks.deploys.processes.web_process import WEB_LIMITS
from hooks.deploys.web.forwarding import TrustedProxies
from hooks.deploys.wire import Config
from storage.reader import StoreReader
from storage.sealing import Vault

DRAIN_S: Final = 10.0
RELEASE_COMMAND_TIMEOUT_S: Final = 600.0
UNPACK_COUNT_MAX: Final = 4
"""So many environments unpack at once; the others wait their turn."""
START_COUNT_MAX: Final = 8
"""So many web processes start at once after a start of the host."""
THREADS: Final = 2 * UNPACK_COUNT_MAX

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RolloutTools:
    """What every environment's rollout works with.

    `vault` seals what is kept of configs; `config_of` asks control for a deployment's.
    """

    reader: StoreReader
    vault: Vault
    config_of: Callable[[str], Awaitable[Config | None]]
    threads: ThreadPoolExecutor
    sandboxes: Sandboxes
    unpacking: asyncio.Semaphore
    starting: asyncio.Semaphore
    trusted: TrustedProxies
    health_timeout_s: float = HEALTH_TIMEOUT_S
    release_command_timeout_s: float = RELEASE_COMMAND_TIMEOUT_S
    drain_s: float = DRAIN_S
    web_limits: Limits = WEB_LIMITS
    served: Served = field(default_factory=Served)
    ports: PortWatch = field(default_factory=PortWatch)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work to its end: a cancellation waits for it, and then counts."""
        call = functools.partial(function, *args, **kwargs)
        return await to_the_end(asyncio.get_running_loop().run_in_executor(self.threads, call))


async def to_the_end(work: asyncio.Future[T] | Coroutine[None, None, T]) -> T:
    """Await work that must not stop half way: a cancellation, or several, count once it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
