"""Who listens on this machine, and which sockets a connection to 127.0.0.1 can reach, by port.

The kernel is asked for listening sockets alone (sock_diag(7)), which costs the same however many
connections there are; where it does not answer that, its tables are read (proc_net_tcp(5)).

A socket on `::` takes what comes to 127.0.0.1 unless it wants IPv6 alone (IPV6_V6ONLY, ipv6(7)).
One that does can be beside another's on 127.0.0.1: it must never count, or any program could have
any other taken for one that shares its port.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final, NamedTuple

# Source: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h; numbers are the machine's order.
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48x")
_FOUND: Final = struct.Struct("=4xHH16s28xIIIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ATTRIBUTE_V6ONLY: Final = 11  # INET_DIAG_SKV6ONLY: Linux gives it unasked, since 4.3
_ANSWER_BYTES_MAX: Final = 1 << 16
_STATE_LISTEN: Final = 10  # Source: net/tcp_states.h
_LISTEN_TEXT: Final = "0A"

# "::ffff:0.0.0.0" is not the same to the kernel as "::".
_LOCAL_IPV4: Final = ("127.0.0.1", "0.0.0.0")  # noqa: S104 - read, not bound
_LOCAL_IPV6: Final = ("::ffff:127.0.0.1", "::ffff:0.0.0.0", "::")
_LOCAL: Final = frozenset(
    [socket.inet_pton(socket.AF_INET, host) for host in _LOCAL_IPV4]
    + [socket.inet_pton(socket.AF_INET6, host) for host in _LOCAL_IPV6]
)
_ANY: Final = socket.inet_pton(socket.AF_INET6, "::")


class Listener(NamedTuple):
    """A socket that listens for TCP, on an address of 4 or 16 bytes."""

    inode: int
    host: bytes
    port: int
    is_v6only: bool | None
    """None where the kernel does not say; only one of `::` can be."""


def all_listeners() -> list[Listener]:
    """Everyone who listens on this machine, wherever. Blocking.

    Raises:
        OSError: The kernel does not say.
    """
    try:
        return list(_asked())
    except OSError:
        return list(_read())


def listeners(ports: Container[int]) -> dict[int, set[int]]:
    """The inodes of the sockets that a connection to 127.0.0.1 can reach, by port. Blocking.

    Raises:
        OSError: The kernel does not say.
    """
    found: defaultdict[int, set[int]] = defaultdict(set)
    unclear: defaultdict[int, set[int]] = defaultdict(set)
    for each in all_listeners():
        if each.port in ports and each.host in _LOCAL and not each.is_v6only:
            (unclear if each.is_v6only is None else found)[each.port].add(each.inode)
    for port, inodes in unclear.items():
        # Beside a socket of an IPv4 address, the kernel gives `::` no connection to 127.0.0.1.
        if port not in found and _is_taken_everywhere(port):
            found[port] = inodes
    return dict(found)


def _is_taken_everywhere(port: int) -> bool:
    """Say whether somebody listens on all of IPv4: nobody can on one more address of it then."""
    address = ".".join(["127", *(str(1 + secrets.randbelow(254)) for _ in range(3))])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bound alone takes nothing
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


def _asked() -> Iterator[Listener]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        yield from _asked_of(kernel, socket.AF_INET)
        with contextlib.suppress(FileNotFoundError):  # the kernel has no IPv6
            yield from _asked_of(kernel, socket.AF_INET6)


def _asked_of(kernel: socket.socket, family: socket.AddressFamily) -> Iterator[Listener]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _STATE_LISTEN)
    head = (_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0)
    kernel.send(_HEADER.pack(*head) + request)
    while True:
        answer = memoryview(kernel.recv(_ANSWER_BYTES_MAX))
        while answer:
            size, kind, *_ = _HEADER.unpack_from(answer)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (negative,) = struct.unpack_from("=i", answer, _HEADER.size)
                raise OSError(-negative, "the kernel does not say who listens")
            port, _, address, *_, inode = _FOUND.unpack_from(answer, _HEADER.size)
            host = address[: 4 if family is socket.AF_INET else 16]
            attributes = answer[_HEADER.size + _FOUND.size : size]
            is_v6only = _v6only(attributes) if host == _ANY else False
            yield Listener(inode, host, socket.ntohs(port), is_v6only)
            answer = answer[(size + 3) & ~3 :]


def _v6only(attributes: memoryview) -> bool | None:
    """Whether it is for IPv6 alone; None where the kernel does not say."""
    while len(attributes) > _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _ATTRIBUTE_V6ONLY:
            return bool(attributes[_ATTRIBUTE.size])
        attributes = attributes[max(size + 3, _ATTRIBUTE.size) & ~3 :]
    return None


def _read() -> Iterator[Listener]:
    for line in _lines():
        fields = line.split()
        if fields[3] == _LISTEN_TEXT:
            text, _, port = fields[1].partition(":")
            host = _parsed(text)
            yield Listener(int(fields[9]), host, int(port, 16), None if host == _ANY else False)


def _parsed(text: str) -> bytes:
    """Read an address as /proc/net has it: words of four bytes in the machine's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return struct.pack(f"={len(words)}I", *words)


def _lines() -> Iterator[str]:
    with Path("/proc/net/tcp").open() as lines:
        yield from lines
    with contextlib.suppress(FileNotFoundError), Path("/proc/net/tcp6").open() as lines:
        yield from lines  # it is not there where the kernel has no IPv6
