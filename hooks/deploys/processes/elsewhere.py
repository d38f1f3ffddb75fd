"""Elsewhere: where a program listens while nothing does on its $PORT, and what to do about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from hooks.deploys.processes.listeners import all_listeners

SHOWN_MAX: Final = 3

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
    try:
        heard = all_listeners()
    except OSError:  # the kernel does not say
        return []
    found = {each.inode: Address(str(ipaddress.ip_address(each.host)), each.port) for each in heard}
    return sorted({found[inode] for inode in those_held(found)})


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
