"""A health check: whether a web process is ready for traffic."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final


def _as_the_kernel_writes(packed: bytes) -> str:
    """Write an address as /proc/net does: words of four bytes in the machine's order."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


TIMEOUT_S: Final = 30.0
FIRST_PAUSES_S: Final = (0.01,) * 50
"""Most programs listen within half a second: a short pause there is a short roll."""
NEXT_PAUSES_S: Final = (0.05,) * 600
PAUSE_S: Final = 0.5
TRY_TIMEOUT_S: Final = 5.0

_LISTEN: Final = "0A"
_LOCAL: Final = frozenset(
    _as_the_kernel_writes(packed)
    for packed in (
        socket.inet_aton("127.0.0.1"),
        socket.inet_aton("0.0.0.0"),  # noqa: S104 - read, not bound
        socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1"),
        socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0"),  # not the same to the kernel as "::"
        socket.inet_pton(socket.AF_INET6, "::"),
    )
)


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


def listeners(port: int) -> set[int]:
    """The inodes of the sockets that a connection to 127.0.0.1 and `port` can reach. Blocking.

    Source: proc_net_tcp(5).

    Raises:
        OSError: The kernel's tables cannot be read.
    """
    found = set()
    for line in _sockets():
        fields = line.split()
        address, _, number = fields[1].partition(":")
        if fields[3] == _LISTEN and address in _LOCAL and int(number, 16) == port:
            found.add(int(fields[9]))
    return found


def _sockets() -> Iterator[str]:
    with Path("/proc/net/tcp").open() as lines:
        yield from lines
    with contextlib.suppress(FileNotFoundError), Path("/proc/net/tcp6").open() as lines:
        yield from lines  # it is not there where the kernel has no IPv6


def _strangers(port: int, is_own: Callable[[Collection[int]], bool]) -> str:
    """Say what is wrong with who listens on `port`, or nothing. Blocking."""
    try:
        found = listeners(port)
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
