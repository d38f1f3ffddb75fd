"""Which hosts a build may reach: a pure decision on names, ports and addresses.

A request is judged twice. First its host and port must be listed. Then each address that the name
resolves to is judged, and only an address that passes is connected to: whoever owns a listed name
cannot point it at this machine or at its private network.

Source: RFC 6890 (special-purpose addresses), RFC 6598 (shared ones), RFC 6052 (addresses within
addresses).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from hooks.builds.wire import AllowedHost, Reach

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HTTPS_PORT = 443
SETTING = "builders.egress_allow"
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NAT64 = IPv6Network("64:ff9b::/96")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
# Where clouds tell a machine its secrets, beyond the link-local address that most use.
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)


class Nature(IntEnum):
    """What an address is, from harmless to never needed."""

    PUBLIC = 0
    PRIVATE = 1  # of somebody's own network, or of none
    LOOPBACK = 2
    FORBIDDEN = 3  # link-local, multicast, unspecified, metadata


_NATURE_MAX = {
    "public": Nature.PUBLIC,
    "private": Nature.PRIVATE,
    "loopback": Nature.LOOPBACK,
}


def may_be(address: Address, reach: Reach, *, is_own: bool = False) -> bool:
    """Say whether an address lies within a reach.

    `is_own`: it is this machine's, which counts as its loopback does, whatever it looks like.
    """
    nature = max(nature_of(address), Nature.LOOPBACK) if is_own else nature_of(address)
    return nature <= _NATURE_MAX[reach]


def is_name(host: str) -> bool:
    """Say whether this is the name of one host: no address, and no `*.` for many."""
    return _NAME.fullmatch(host) is not None and _as_network(host) is None


def nature_of(address: Address) -> Nature:
    """Say what an address is; one that carries another one is what the inner one is."""
    address = _innermost(address)
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or (address.version == 4 and (address in _THIS_NETWORK or address.is_reserved))
    ):
        return Nature.FORBIDDEN
    if address.is_loopback:
        return Nature.LOOPBACK
    if not address.is_global or address.is_reserved or _is_site_local(address):
        return Nature.PRIVATE
    return Nature.PUBLIC


def parse(text: str, source: str = SETTING) -> AllowedHost:
    """Read an entry: `host`, `host:port`, `*.suffix`, an address or a network; port 443 if none.

    An address or network allows just these addresses, whatever their nature: to ask for one by
    its number, and for allowed names to resolve to it. IPv6 stands in brackets before a port.

    Raises:
        ValueError: It is none of these; the message says so.
    """
    host, port = split_port(text.strip(), HTTPS_PORT)
    network = _as_network(host)
    if network is not None:
        return AllowedHost(str(network), port, source)
    name = host.lower().rstrip(".")
    if not _NAME.fullmatch(name.removeprefix("*.")):
        raise ValueError(f"{text!r} is no host such as example.com, *.example.com or 10.0.0.1:8443")
    return AllowedHost(name, port, source)


def split_port(text: str, default: int | None = None) -> tuple[str, int]:
    """Split `host:port`; brackets around an IPv6 host are taken off.

    Raises:
        ValueError: There is no port and no default, or it is none.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: the brackets of an IPv6 address are not closed")
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        rest = f":{rest}"
    else:
        host, rest = text, ""
    if not rest:
        if default is None:
            raise ValueError(f"{text!r} has no port")
        return host, default
    port = rest[1:]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: {port!r} is no port")
    return host, int(port)


class Allowlist:
    """The hosts of one build."""

    def __init__(self, allowed: Iterable[AllowedHost]) -> None:
        self._names: dict[tuple[str, int], AllowedHost] = {}
        self._suffixes: list[AllowedHost] = []
        self._networks: list[tuple[Network, AllowedHost]] = []
        for entry in allowed:
            network = _as_network(entry.host) if entry.source == SETTING else None
            if network is not None:  # what somebody else says by its address is a host like others
                self._networks.append((network, entry))
            elif entry.host.startswith("*."):
                self._suffixes.append(entry)
            else:
                key = _one_spelling(entry.host), entry.port
                self._names[key] = _wider(entry, self._names.get(key))

    def reach_of(self, host: str, port: int) -> Reach | None:
        """Say how far a listed host's addresses may lie; None when it is not listed.

        `host`: lower case, without a dot at its end.
        """
        entry = self._names.get((_one_spelling(host), port))
        if entry is not None:
            return entry.reach
        for suffix in self._suffixes:
            if suffix.port == port and host.endswith(suffix.host[1:]):
                return suffix.reach
        address = _as_address(host)
        if address is not None and self._has_address(address, port):
            return "public"  # and what else it is allowed says the same entry again
        return None

    def may_connect(
        self, address: Address, port: int, reach: Reach, *, is_own: bool = False
    ) -> bool:
        """Judge an address that a listed host with this reach has resolved to, as `may_be` does."""
        return may_be(address, reach, is_own=is_own) or self._has_address(address, port)

    def ports_of(self, host: str) -> list[int]:
        """The ports that a host is listed with, for advice."""
        listed = {port for name, port in self._names if name == _one_spelling(host)}
        listed |= {entry.port for entry in self._suffixes if host.endswith(entry.host[1:])}
        return sorted(listed)

    def _has_address(self, address: Address, port: int) -> bool:
        inner = _innermost(address)
        is_forbidden = nature_of(inner) is Nature.FORBIDDEN
        return any(
            entry.port == port
            and inner in network  # never one of the other version
            # A whole network is never meant to have the address of the metadata in it.
            and (network.num_addresses == 1 or not is_forbidden)
            for network, entry in self._networks
        )


def _wider(entry: AllowedHost, other: AllowedHost | None) -> AllowedHost:
    if other is None or _NATURE_MAX[entry.reach] >= _NATURE_MAX[other.reach]:
        return entry
    return other


def _one_spelling(host: str) -> str:
    """An address has many; a name is as it is."""
    address = _as_address(host)
    return host if address is None else str(_innermost(address))


def _innermost(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        if address.scope_id is not None:
            return IPv6Address(int(address))
    return address


def _is_site_local(address: Address) -> bool:
    return isinstance(address, IPv6Address) and address.is_site_local


def _as_address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _as_network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
