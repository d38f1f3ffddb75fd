"""Client addresses: who is at the other end, past the proxies that we trust."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

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

    def client_ip(self, peer: str | None, forwarded_for: str | None) -> str | None:
        """Return the address of the client.

        `peer` is the other end of the connection. A trusted peer's list is read from its end:
        every entry of it was added by whoever stands behind it, and the first one that is no
        trusted proxy is the client. What stands before that, anybody may have written.
        """
        if not self._networks or not forwarded_for or peer is None:
            return peer
        client = peer
        for hop in reversed(forwarded_for.split(",")):
            address = parse_address(client)
            if address is None or not is_within(address, self._networks):
                break
            client = hop.strip()
        address = parse_address(client)
        return str(address) if address else peer
