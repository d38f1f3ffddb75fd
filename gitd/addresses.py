"""Client addresses: who is at the other end, past the proxies that we trust."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from aiohttp import web

FORWARDED_FOR = "X-Forwarded-For"
# Some fronts name the client's port too.
_WITH_PORT = re.compile(r"\[(?P<six>[^\[\]]+)\]:[0-9]+|(?P<four>[^:]+):[0-9]+")

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def parse_address(text: str) -> Address | None:
    """Return the address that `text` is, IPv4 also when it is written as IPv6; None for neither."""
    try:
        address = ip_address(text.strip().removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == n.version and address in n for n in networks)


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed. By default nobody's is."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ip_network(text, strict=False) for text in networks)

    def client_of(self, request: web.BaseRequest) -> str | None:
        """Return the address of a request's client, or None when there is none to go by."""
        return self.client_ip(request.remote, request.headers.getall(FORWARDED_FOR, ()))

    def client_ip(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """Return the address of the client, or None when there is none to go by.

        `peer` is the other end of the connection, `forwarded_for` every line of that header: a
        proxy may add one of its own behind the client's. A trusted peer's list is read from its
        end: every entry of it was added by whoever stands behind it, and the first one that is no
        trusted proxy is the client. What stands before that, anybody may have written. An entry
        that is no address is nobody's: it never counts as the proxy's own.

        Source: RFC 9110, 5.3: several lines of one name are one list, in their order.
        """
        if not self._networks or not forwarded_for or peer is None:
            return peer
        address = parse_address(peer)
        for hop in reversed(",".join(forwarded_for).split(",")):
            if address is None or not is_within(address, self._networks):
                break
            address = _hop_address(hop)
        return str(address) if address else None


def _hop_address(text: str) -> Address | None:
    match = _WITH_PORT.fullmatch(text.strip())
    return parse_address(text if match is None else match["six"] or match["four"])
