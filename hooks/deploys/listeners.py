"""Who listens on this machine: the sockets that a connection to 127.0.0.1 can reach, by port.

The kernel is asked for listening sockets alone (sock_diag(7)), which costs the same however many
connections there are; where it does not answer that, its tables are read (proc_net_tcp(5)).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Source: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h; numbers are the machine's order.
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48x")
_FOUND: Final = struct.Struct("=4xHH16s28xIIIII")
_ANSWER_BYTES_MAX: Final = 1 << 16
_STATE_LISTEN: Final = 10  # Source: net/tcp_states.h
_LISTEN_TEXT: Final = "0A"


def _packed(family: socket.AddressFamily, *addresses: str) -> frozenset[bytes]:
    return frozenset(socket.inet_pton(family, address) for address in addresses)


def _as_the_kernel_writes(packed: bytes) -> str:
    """Write an address as /proc/net does: words of four bytes in the machine's order."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


_LOCAL: Final = {
    socket.AF_INET: _packed(socket.AF_INET, "127.0.0.1", "0.0.0.0"),  # noqa: S104 - read, not bound
    # The second is not the same to the kernel as "::".
    socket.AF_INET6: _packed(socket.AF_INET6, "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::"),
}
_LOCAL_TEXT: Final = {_as_the_kernel_writes(each) for every in _LOCAL.values() for each in every}


def listeners() -> dict[int, set[int]]:
    """The inodes of the sockets that a connection to 127.0.0.1 can reach, by port. Blocking.

    Raises:
        OSError: The kernel does not say.
    """
    found: defaultdict[int, set[int]] = defaultdict(set)
    try:
        pairs = list(_asked())
    except OSError:
        pairs = list(_read())
    for port, inode in pairs:
        found[port].add(inode)
    return dict(found)


def _asked() -> Iterator[tuple[int, int]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        yield from _asked_of(kernel, socket.AF_INET)
        with contextlib.suppress(FileNotFoundError):  # the kernel has no IPv6
            yield from _asked_of(kernel, socket.AF_INET6)


def _asked_of(kernel: socket.socket, family: socket.AddressFamily) -> Iterator[tuple[int, int]]:
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
            if bytes(address[: 4 if family is socket.AF_INET else 16]) in _LOCAL[family]:
                yield socket.ntohs(port), inode
            answer = answer[(size + 3) & ~3 :]


def _read() -> Iterator[tuple[int, int]]:
    for line in _lines():
        fields = line.split()
        address, _, port = fields[1].partition(":")
        if fields[3] == _LISTEN_TEXT and address in _LOCAL_TEXT:
            yield int(port, 16), int(fields[9])


def _lines() -> Iterator[str]:
    with Path("/proc/net/tcp").open() as lines:
        yield from lines
    with contextlib.suppress(FileNotFoundError), Path("/proc/net/tcp6").open() as lines:
        yield from lines  # it is not there where the kernel has no IPv6
