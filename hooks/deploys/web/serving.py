"""What an environment serves right now: one release, switched between two requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from aiohttp import web

from hooks.deploys.wire import ArtifactPin, Running


class Responder(Protocol):
    """What answers for a release: a static site or a web process."""

    @property
    def running(self) -> Running | None:
        """How its program stands; None when it needs none."""

    async def respond(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Answer a request for `target`, a raw path with its query."""

    def hurry(self) -> None:
        """End what has no end of its own, such as WebSockets: the release is going."""

    async def close(self, *, grace_s: float) -> None:
        """Stop it; nothing is in flight any more, or has had its time. A process gets `grace_s`
        to end by itself.
        """


@dataclass(eq=False, slots=True)
class ServedRelease:
    """A release that can answer, and how many requests it is answering."""

    deployment_id: str
    artifact: ArtifactPin
    responder: Responder
    _in_flight: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request from its first step to its last byte."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def drain(self, *, timeout_s: float) -> bool:
        """Wait until no request is in flight; False when time ran out. Switch away first."""
        if self._in_flight == 0:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class Absence(StrEnum):
    """Why an environment serves nothing."""

    STARTING = "starting"
    NOTHING_RELEASED = "nothing_released"
    SUSPENDED = "suspended"
    REFUSED = "refused"


class Serving:
    """The release that an environment's host names lead to, or why there is none."""

    def __init__(self, absence: Absence) -> None:
        self.current: ServedRelease | None = None
        self.absence = absence
        self.code = ""
        self._decided = asyncio.Event()
        if absence is not Absence.STARTING:
            self._decided.set()

    def switch(self, release: ServedRelease) -> ServedRelease | None:
        """Let `release` answer from the next request on; return the one before."""
        before, self.current = self.current, release
        self._decided.set()
        return before

    def take_down(self, absence: Absence, *, code: str = "") -> ServedRelease | None:
        """Serve nothing from the next request on; return the release before."""
        before, self.current = self.current, None
        self.absence, self.code = absence, code
        self._decided.set()
        return before

    async def decided(self, *, timeout_s: float) -> None:
        """Wait until it is known what is served: right after a start it is not yet."""
        if not self._decided.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._decided.wait(), timeout_s)
