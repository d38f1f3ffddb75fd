"""Addresses as this machine knows them: those of a name, and which are its own."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
AddressInfo = tuple[int, int, int, str, SocketAddress]
"""Family, kind, protocol, name and address, as `socket.getaddrinfo` gives them."""
LookUp = Callable[[str, int], list[AddressInfo]]

_NOBODYS = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # kept for documents
_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_OUT_OF_REACH = {*_NOT_HERE, errno.ENETUNREACH, errno.EHOSTUNREACH}


def look_up(host: str, port: int) -> list[AddressInfo]:
    """Ask this machine for the addresses of a host. Blocking."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]


def is_own(address: SocketAddress) -> bool:
    """Say whether an address is this machine's: behind it is what no firewall keeps apart.

    The kernel lets a socket have it then. Nothing is sent. What cannot be found out, for want of
    descriptors or whatever it is, counts as its own.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        if not _binds(family, _NOBODYS[family]):
            return _binds(family, address[0])
        # net.ipv4.ip_nonlocal_bind lets one have any. Then it goes to its own from that very one.
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect(address)
            return bool(asking.getsockname()[0] == address[0])
    except OSError as error:
        return error.errno not in _OUT_OF_REACH


def _binds(family: int, host: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.bind((host, 0))
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True
