"""Where webhooks may lead: their names are resolved here, and private addresses refused.

What is private is judged as for builds (decision 0031). The addresses that were looked at are those
that are connected to: a name that resolves otherwise a moment later gains nothing.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from hooks.builds.addresses import is_own
from hooks.builds.allowlist import Nature, nature_of

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
    """Say whether an address is one of the public internet, and leads nowhere else."""
    return nature_of(ip_address(text.partition("%")[0])) is Nature.PUBLIC


def may_be_told(address: str, port: int) -> bool:
    """Say whether a webhook may lead there: this machine's own public addresses lead to itself."""
    return is_public(address) and not is_own((address, port))


def check_literal(url: str) -> None:
    """Raises PrivateAddressError when the url names a private address itself: no name is resolved
    then.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return  # a name
    if not may_be_told(host, parts.port or 0):
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
        public = [result for result in found if may_be_told(result["host"], port)]
        if not public:
            raise PrivateAddressError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()
