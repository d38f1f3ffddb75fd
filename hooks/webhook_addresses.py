"""Where webhooks may lead: their names are resolved here, and private addresses refused.

The addresses that were looked at are those that are connected to: a name that resolves otherwise a
moment later gains nothing.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

URL_CHARS_MAX: Final = 2048


class PrivateAddressError(OSError):
    """The webhook leads to an address of this machine or of its own network."""


def url_fault(url: str) -> str | None:
    """Why `url` cannot be a webhook's, or None when it can."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        return "A webhook's url is an address such as https://example.com/hook"
    is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_good
    if not is_whole or not url.isascii() or not url.isprintable() or " " in url:
        return "A webhook's url is an address such as https://example.com/hook"
    if parts.username is not None or parts.password is not None:
        return "A webhook's url holds no user and no password: its receiver checks the signature"
    if len(url) > URL_CHARS_MAX:
        return f"A webhook's url has at most {URL_CHARS_MAX} characters"
    return None


def is_public(text: str) -> bool:
    """Say whether an address is one of the public internet."""
    address = ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_global and not address.is_multicast


def check_literal(url: str) -> None:
    """Raises PrivateAddressError when the url names a private address itself: no name is resolved
    then.
    """
    host = urlsplit(url).hostname or ""
    try:
        public = is_public(host)
    except ValueError:
        return  # a name
    if not public:
        raise PrivateAddressError(f"{host} is no public address")


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`. Raises PrivateAddressError when none of them is public."""
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise PrivateAddressError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()
