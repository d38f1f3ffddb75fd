"""Elsewhere: where a program listens while nothing does on its $PORT, and what to do about it.

Read from the kernel's tables (proc_net_tcp(5)), which cost more the more connections there are:
only while a start goes wrong.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
SHOWN_MAX: Final = 3
_LISTEN: Final = "0A"

ThoseHeld = Callable[[Collection[int]], frozenset[int]]


class Address(NamedTuple):
    """An address that somebody listens on."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def addresses(those_held: ThoseHeld) -> list[Address]:
    """Where the program listens whose sockets `those_held` finds among all. Blocking."""
    found: dict[int, Address] = {}
    for table in TABLES:
        with contextlib.suppress(OSError), table.open() as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found[int(fields[9])] = _parsed(fields[1])
    held = those_held(found)
    return sorted({found[inode] for inode in held})


def in_words(listening: Collection[Address], port: int) -> str:
    """Say where a program listens that does not on `port`, and what to do; nothing for nowhere."""
    same = [address for address in listening if address.port == port]
    if same:
        return (
            f"your program listens on {same[0]} alone, which is not reached: "
            "let it listen on 127.0.0.1 or 0.0.0.0"
        )
    if not listening:
        return ""
    shown = " and ".join(str(address) for address in list(listening)[:SHOWN_MAX])
    return (
        f"your program listens on {shown}, not on port {port} ($PORT): "
        "let it take the port from the environment variable PORT"
    )


def _parsed(text: str) -> Address:
    """Read an address as the kernel writes it: words of four bytes in the machine's order."""
    host, _, port = text.partition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return Address(str(ipaddress.ip_address(packed)), int(port, 16))
