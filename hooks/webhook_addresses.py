"""Where webhooks may lead: their names are resolved here, and private addresses refused.

What is private is judged as for builds (decision 0031). The addresses that were looked at are those
that are connected to: a name that resolves otherwise a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from hooks.builds.egress.addresses import AddressInfo, LookUp, is_own, look_up
from hooks.builds.egress.allowlist import Nature, nature_of

URL_CHARS_MAX: Final = 2048
HOST_CHARS_MAX: Final = 253
_EXAMPLE: Final = "such as https://example.com/hook"
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")  # networks of containers have "_"
_BRACKETED: Final = re.compile(r"\[([^\[\]]*)\](?::[0-9]*)?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # of an address, wherever it stands last
LOOK_UPS_COUNT_MAX: Final = 100


class PrivateAddressError(OSError):
    """The webhook leads to an address of this machine or of its own network."""


def url_fault(url: str) -> str | None:
    """Why `url` cannot be a webhook's, or None when it can."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        return f"A webhook's url is an address {_EXAMPLE}"
    if not url.isascii() or not url.isprintable() or " " in url:
        return (
            "A webhook's url is in ASCII and has no spaces: other letters of a host are given as "
            "xn--..., and all else as %20"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good:
        return f"A webhook's url is an address {_EXAMPLE}"
    bracketed = _bracketed(parts.netloc.rpartition("@")[2])
    if bracketed is not None and not _is_ipv6(bracketed):
        return f"{bracketed} in brackets is no IPv6 address: a name stands without, {_EXAMPLE}"
    if not _is_host(parts.hostname):
        return f"{parts.hostname} is no host: a webhook's url has a name or an address, {_EXAMPLE}"
    if parts.username is not None or parts.password is not None:
        return "A webhook's url holds no user and no password: its receiver checks the signature"
    if len(url) > URL_CHARS_MAX:
        return f"A webhook's url has at most {URL_CHARS_MAX} characters"
    return None


def _bracketed(place: str) -> str | None:
    """What stands in brackets in a host and a port; None where there are none.

    How much of it `urlsplit` refuses differs between releases of Python, and some let a name stand
    before the brackets, which others would connect to.
    """
    if "[" not in place and "]" not in place:
        return None
    found = _BRACKETED.fullmatch(place)
    return place if found is None else found[1]


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    """Say whether this can be a name or an address. `text`: in lower case, without brackets."""
    with contextlib.suppress(ValueError):
        ip_address(text)
        return True
    labels = text.removesuffix(".").split(".")
    is_name = all(_LABEL.fullmatch(label) for label in labels) and len(text) <= HOST_CHARS_MAX
    return is_name and not _NUMBER.fullmatch(labels[-1])


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


class Resolver(AbstractResolver):
    """Resolves names, each once at a time, in threads of its own that nobody waits for.

    A name whose servers are silent holds a thread for as long as the system likes: those that
    control does its work in would soon be used up, and its end would wait for them.
    """

    def __init__(self, *, may_be_private: bool = False, look_up: LookUp = look_up) -> None:
        self._may_be_private = may_be_private
        self._look_up = look_up
        self._asked: dict[tuple[str, int], asyncio.Future[list[AddressInfo] | OSError]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`. Raises PrivateAddressError when none of them is public."""
        found = await asyncio.shield(self._ask(host, port))
        if isinstance(found, OSError):
            raise OSError(found.errno, found.strerror or str(found))
        fit = [info for info in found if family in (socket.AF_UNSPEC, info[0])]
        allowed = [i for i in fit if self._may_be_private or may_be_told(str(i[4][0]), port)]
        if not allowed:
            raise PrivateAddressError(f"{host} has no public address")
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in allowed
        ]

    async def close(self) -> None:
        """Nothing: what is looked up still is of no interest any more."""

    def _ask(self, host: str, port: int) -> asyncio.Future[list[AddressInfo] | OSError]:
        asked = self._asked.get((host, port))
        if asked is None:
            if len(self._asked) >= LOOK_UPS_COUNT_MAX:
                raise OSError("too many names are being looked up")
            loop = asyncio.get_running_loop()
            asked = self._asked[host, port] = loop.create_future()
            looking = (loop, host, port)
            try:
                threading.Thread(target=self._look, args=looking, daemon=True).start()
            except RuntimeError as error:  # no thread is to be had: the next may ask again
                del self._asked[host, port]
                raise OSError("no thread to look a name up") from error
        return asked

    def _look(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        answer: list[AddressInfo] | OSError
        try:
            answer = self._look_up(host, port)
        except OSError as error:
            answer = error
        except UnicodeError:
            answer = OSError(f"{host} is no name")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._answer, host, port, answer)

    def _answer(self, host: str, port: int, answer: list[AddressInfo] | OSError) -> None:
        self._asked.pop((host, port)).set_result(answer)
