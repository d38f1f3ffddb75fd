"""A health check: whether a web process is ready for traffic."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from hooks.deploys.processes.elsewhere import ThoseHeld, addresses, in_words
from hooks.deploys.processes.listeners import listeners

TIMEOUT_S: Final = 30.0
FIRST_PAUSES_S: Final = (0.01,) * 50
"""Most programs listen within half a second: a short pause there is a short roll."""
NEXT_PAUSES_S: Final = (0.05,) * 600
PAUSE_S: Final = 0.5
TRY_TIMEOUT_S: Final = 5.0
LOOK_AFTER_S: Final = 0.5
"""So often, and not before, it is looked where else the process listens."""
FIRST_ANSWER_TIMEOUT_S: Final = 1.0
GIVES_UP_AFTER: Final = 3
"""Within this part of its time: programs may open another port first, and their own later."""
_STATUS: Final = re.compile(rb"[0-9]{3}")  # Source: RFC 9112, 4


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to ask. Without a `path` it is enough that the port accepts a connection.

    With one, `GET path` has to be answered with a status of 200 to 399. `host` is sent as `Host`,
    because applications may know which names are theirs.
    """

    path: str | None
    host: str


async def wait_until_healthy(
    port: int,
    check: HealthCheck,
    *,
    timeout_s: float,
    is_own: Callable[[Collection[int]], bool],
    those_held: ThoseHeld = frozenset,
    gives_up: bool = False,
) -> str | None:
    """Ask again and again. None once it is healthy; otherwise, after `timeout_s`, why not: what was
    wrong the last time, and with the last answer where there is none any more.

    `is_own` says whether listening sockets, by their inodes, are those of the process that was
    started: every site can listen on every port of the machine. Where nobody can be seen to listen,
    who answered is not known, and it is asked again.

    `those_held` finds the process's own sockets among those of the machine. With `gives_up` one
    that listened for a third of the time, always elsewhere, is not waited for any longer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pauses = iter(FIRST_PAUSES_S + NEXT_PAUSES_S)
    trouble, answered = "", ""
    elsewhere = _Elsewhere(port, those_held, patience_s=timeout_s / GIVES_UP_AFTER)
    while (left_s := deadline - loop.time()) > 0:
        one = _Try(port, check)
        try:
            async with asyncio.timeout(min(TRY_TIMEOUT_S, left_s)):
                trouble = await one.ask()
                if not trouble:
                    trouble = await asyncio.to_thread(_strangers, port, is_own)
            if trouble != _not_listening(port):
                answered = trouble
        except TimeoutError:
            is_cut_short = left_s < TRY_TIMEOUT_S  # by the deadline: that is no silence
            listens_by_now = one.is_connected and not answered
            if not is_cut_short or listens_by_now or not trouble:
                trouble = _silence(check, answered)
        if not trouble:
            return None
        if trouble == _not_listening(port) and math.isfinite(timeout_s):  # nobody hears of it else
            await elsewhere.look()
            if gives_up and elsewhere.is_certain:
                break
        await asyncio.sleep(next(pauses, PAUSE_S))
    if trouble == _not_listening(port) and elsewhere.said:
        return elsewhere.said
    return trouble or "it was never asked"


class _Elsewhere:
    """Whether a process listens, but not where it should."""

    def __init__(self, port: int, those_held: ThoseHeld, *, patience_s: float) -> None:
        self.said = ""
        self._port = port
        self._those_held = those_held
        self._patience_s = patience_s
        self._since = self._next_at = time.monotonic() + LOOK_AFTER_S

    @property
    def is_certain(self) -> bool:
        """It listened on the same addresses for long."""
        return bool(self.said) and time.monotonic() - self._since > self._patience_s

    async def look(self) -> None:
        """Look, but not too often."""
        if time.monotonic() < self._next_at:
            return
        listening = await asyncio.to_thread(addresses, self._those_held)
        said = in_words(listening, self._port)
        now = time.monotonic()
        if said != self.said:
            self.said, self._since = said, now
        self._next_at = now + LOOK_AFTER_S


def _not_listening(port: int) -> str:
    return f"nothing listens on port {port} ($PORT)"


def _silence(check: HealthCheck, answered: str) -> str:
    """Say that it listens and does not answer, and what was wrong when it last did."""
    asked = f" GET {check.path}" if check.path is not None else ""
    before = f"; before that, {answered}" if answered else ""
    return f"it did not answer{asked} in time{before}"


def _strangers(port: int, is_own: Callable[[Collection[int]], bool]) -> str:
    """Say what is wrong with who listens on `port`, or nothing. Blocking."""
    try:
        found = listeners({port}).get(port, set())
    except OSError as error:
        return f"who listens on port {port} ($PORT) cannot be found out: {error}"
    if not found:
        return f"what answered on port {port} ($PORT) does not listen there any more"
    if not is_own(found):
        return f"another program of this machine listens on port {port} ($PORT)"
    return ""


async def first_answer(port: int, check: HealthCheck) -> int | None:
    """The status with which a healthy process answers `GET /`; None when it does not so soon, or
    not in HTTP.
    """
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(FIRST_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            return _status_of(await _get("/", check.host, reader, writer))
    return None


@dataclass(slots=True)
class _Try:
    """One question, and whether it reached anybody."""

    port: int
    check: HealthCheck
    is_connected: bool = False

    async def ask(self) -> str:
        """Ask once; return what is wrong, or nothing."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return _not_listening(self.port)
        self.is_connected = True
        path = self.check.path
        if path is None:
            await _close(writer)
            return ""
        try:
            status_line = await _get(path, self.check.host, reader, writer)
        except (OSError, ValueError):
            return f"it broke off the answer to GET {path}"
        return _judge(status_line, path)


async def _get(
    path: str, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    """Return the first line of the answer, and close the connection."""
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\n"
            "User-Agent: gitd-health\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        return await reader.readline()
    finally:
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _judge(status_line: bytes, path: str) -> str:
    status = _status_of(status_line)
    if status is None:
        return f"it did not answer GET {path} in HTTP"
    return "" if 200 <= status < 400 else f"it answered GET {path} with status {status}"


def _status_of(status_line: bytes) -> int | None:
    parts = status_line.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):
        return None
    return int(parts[1]) if _STATUS.fullmatch(parts[1]) else None
