"""A health check: whether a web process is ready for traffic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from hooks.deploys.listeners import listeners

TIMEOUT_S: Final = 30.0
FIRST_PAUSES_S: Final = (0.01,) * 50
"""Most programs listen within half a second: a short pause there is a short roll."""
NEXT_PAUSES_S: Final = (0.05,) * 600
PAUSE_S: Final = 0.5
TRY_TIMEOUT_S: Final = 5.0


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
) -> str | None:
    """Ask again and again. None once it is healthy; otherwise, after `timeout_s`, why not.

    `is_own` says whether listening sockets, by their inodes, are those of the process that was
    started: every site can listen on every port of the machine. Where nobody can be seen to listen,
    who answered is not known, and it is asked again.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pauses = iter(FIRST_PAUSES_S + NEXT_PAUSES_S)
    trouble = "it was never asked"
    while (left_s := deadline - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(TRY_TIMEOUT_S, left_s)):
                trouble = await _ask(port, check)
                if not trouble:
                    trouble = await asyncio.to_thread(_strangers, port, is_own)
        except TimeoutError:
            trouble = "it did not answer in time"
        if not trouble:
            return None
        await asyncio.sleep(next(pauses, PAUSE_S))
    return trouble


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


async def _ask(port: int, check: HealthCheck) -> str:
    """Ask once; return what is wrong, or nothing."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return f"nothing listens on port {port} ($PORT)"
    try:
        if check.path is None:
            return ""
        writer.write(
            f"GET {check.path} HTTP/1.1\r\nHost: {check.host}\r\n"
            "User-Agent: gitd-health\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        status_line = await reader.readline()
    except (OSError, ValueError):
        return f"it broke off the answer to GET {check.path}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return _judge(status_line, check.path)


def _judge(status_line: bytes, path: str) -> str:
    parts = status_line.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return f"it did not answer GET {path} in HTTP"
    status = int(parts[1])
    return "" if 200 <= status < 400 else f"it answered GET {path} with status {status}"
