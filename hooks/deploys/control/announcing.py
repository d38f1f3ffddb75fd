"""What site hosts are told: everything once, then every change, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import structlog

from hooks.deploys.control.wanted import Wanted
from hooks.deploys.wire import (
    PING_EVERY_S,
    Changed,
    Coming,
    DesiredMessage,
    Ping,
    Removed,
    Snapshot,
)
from storage.records import environments
from storage.records.db import Records

log = structlog.get_logger(__name__)

MESSAGES_COUNT_MAX = 4096  # that wait for one host


class Announcer:
    """The hosts that listen. Belongs to one event loop."""

    def __init__(self, records: Records, wanted: Wanted) -> None:
        self._records = records
        self._wanted = wanted
        self._hosts: dict[asyncio.Queue[DesiredMessage | None], Callable[[], bool]] = {}
        self._foreseeing: set[asyncio.Queue[DesiredMessage | None]] = set()  # of these
        self._loop: asyncio.AbstractEventLoop | None = None  # once there is a host
        self._told: tuple[int, str | None] = (0, None)
        self.host_connected = asyncio.Event()  # set with the first one, and for good

    @property
    def has_hosts(self) -> bool:
        """Whether one is connected: one that has gone is noticed before anything is told to it.
        Any thread may ask.
        """
        return any(not is_gone() for is_gone in list(self._hosts.values()))

    async def messages(
        self, *, hears_coming: bool, is_gone: Callable[[], bool]
    ) -> AsyncGenerator[DesiredMessage]:
        """Yield everything once, then every change, with pings between. One reader per host.

        `hears_coming`: it makes use of being told what may come. `is_gone`: whether its connection
        is closed; whoever reads hears of that when it sends the next message. For a host that is
        connected and does not read it ends, by and by: one that reads again comes back, and is told
        everything.
        """
        queue: asyncio.Queue[DesiredMessage | None] = asyncio.Queue(MESSAGES_COUNT_MAX)
        self._loop = asyncio.get_running_loop()
        self._hosts[queue] = is_gone
        if hears_coming:
            self._foreseeing.add(queue)
        self.host_connected.set()
        try:
            yield Snapshot(self._wanted.everywhere())
            while True:
                try:
                    async with asyncio.timeout(PING_EVERY_S):
                        message = await queue.get()
                except TimeoutError:
                    message = Ping()
                if message is None:
                    return
                yield message
        finally:
            self._hosts.pop(queue, None)
            self._foreseeing.discard(queue)

    def tell(self, env_id: str) -> None:
        """Tell every host what an environment should serve now."""
        if not self._hosts:
            return
        wanted = self._wanted.of(env_id)
        self._send(Removed(env_id) if wanted is None else Changed(wanted))

    def tell_what_others_made(self) -> None:
        """Tell of environments that a command beside this process made."""
        reader = self._records.reader()
        state = environments.state(reader)
        if state == self._told:
            return
        for environment in environments.newer_than(reader, self._told[1]):
            self.tell(environment.id)
        self._told = state  # not before: what could not be read is told at the next turn

    def foretell(self, env_id: str, digest: str | None = None) -> None:
        """Let the hosts make ready for a roll that is likely to come, of the artifact `digest`."""
        for queue in self._foreseeing:
            with contextlib.suppress(asyncio.QueueFull):  # nobody depends on it
                queue.put_nowait(Coming(env_id, digest))

    def foretell_from_thread(self, env_id: str, digest: str) -> None:
        """The same, from another thread than the loop's."""
        if self._loop is not None and self._foreseeing:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
                self._loop.call_soon_threadsafe(self.foretell, env_id, digest)

    def close(self) -> None:
        """Let the hosts go: the server stops. They serve on, and come back."""
        self._send(None)

    def _send(self, message: DesiredMessage | None) -> None:
        for queue in tuple(self._hosts):
            try:
                queue.put_nowait(message)
            except asyncio.QueueFull:
                log.warning("host_does_not_listen", messages=queue.qsize())
                self._let_go(queue)

    def _let_go(self, queue: asyncio.Queue[DesiredMessage | None]) -> None:
        self._hosts.pop(queue, None)
        self._foreseeing.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
