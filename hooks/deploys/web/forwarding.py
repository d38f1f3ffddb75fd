"""Forwarding: which headers of a message pass a proxy, and which it adds. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from multidict import CIMultiDict, CIMultiDictProxy

from hooks.deploys.web.router import host_name

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",  # answered here
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection. Source: RFC 9110, 7.6.1."""
ORIGIN: Final = frozenset(
    {
        "forwarded",
        "x-real-ip",
    }
)
ORIGIN_PREFIX: Final = "x-forwarded-"
"""What a proxy in front says of the visitor, whatever follows (-For, -Proto, -Ssl, -Scheme, ...):
believed only from a trusted address.
"""

OF_THE_MESSAGE: Final = frozenset({"content-length", "host"})
"""What `Connection` cannot name away: without them the message is another one."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The addresses whose word on the visitor's address and scheme is taken."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(text) for text in networks]

    def __contains__(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers that go further: none that `Connection` names, none of one hop."""
    named = {
        token.strip().lower()
        for value in headers.getall("Connection", ())
        for token in value.split(",")
    } - OF_THE_MESSAGE
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (lower := name.lower()) not in HOP_BY_HOP and lower not in named
    )


def own_cookies(headers: CIMultiDict[str], host: str) -> None:
    """Leave cookies to the host that sets them, or to what is below it: above it are other sites.

    Where a cookie names another domain, that is left out: then it is for this host alone.
    Source: RFC 6265, 5.2 and 5.3.
    """
    cookies = headers.popall("Set-Cookie", ())
    own = host_name(host)
    for cookie in cookies:
        first, *attributes = cookie.split(";")
        kept = [each for each in attributes if not _names_other(each, own)]
        headers.add("Set-Cookie", ";".join([first, *kept]))


def _names_other(attribute: str, host: str | None) -> bool:
    name, _, value = attribute.partition("=")
    domain = value.strip().removeprefix(".").lower()
    return name.strip().lower() == "domain" and domain != host


def destination(target: str, host: str) -> tuple[str, str]:
    """Return the host and the raw path with query; a whole URL as target names both itself.

    Source: RFC 9112, 3.2.2.
    """
    if target.lower().startswith(("http://", "https://")):
        parts = urlsplit(target)
        path = parts.path or "/"
        return parts.netloc.rpartition("@")[2], path + (f"?{parts.query}" if parts.query else "")
    return host, target


def request_headers(
    headers: CIMultiDictProxy[str], *, host: str, peer: str, scheme: str, trusted: TrustedProxies
) -> CIMultiDict[str]:
    """Return a request's headers as the web process gets them: `Host` as the visitor meant it, and
    `X-Forwarded-For`, `-Proto` and `-Host` that can be relied on.

    An underscore in a header's name becomes a dash in many an application's eyes, so that
    `X_Forwarded_For` would pass for the header it is not: such names are dropped.
    """
    passed = end_to_end(headers)
    if "Host" in passed:
        passed["Host"] = host
    is_trusted = peer in trusted
    for name in list(passed):
        if _tells_the_origin(name) and ("_" in name or not is_trusted):
            passed.popall(name, None)
    before = ", ".join(passed.popall("X-Forwarded-For", ()))
    passed["X-Forwarded-For"] = f"{before}, {peer}" if before else peer
    passed.setdefault("X-Forwarded-Proto", scheme)
    passed.setdefault("X-Forwarded-Host", host)
    return passed


def _tells_the_origin(name: str) -> bool:
    dashed = name.lower().replace("_", "-")
    return dashed in ORIGIN or dashed.startswith(ORIGIN_PREFIX)
