"""The router: from a request's host name to the environment that answers it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

_HOST = re.compile(
    r"([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?)\.?(?::[0-9]{0,5})?", re.ASCII
)


def host_name(value: str) -> str | None:
    """Return the host name in a `Host` value: lower case, without port and final dot.

    None when there is none: an IPv6 literal, bytes no name has. Such a host has no environment.

    Source: RFC 9110, 7.2; RFC 3986, 3.2.2.
    """
    match = _HOST.fullmatch(value)  # as it came: what is no letter of ASCII may become one
    return match[1].lower() if match else None


class Router(Generic[T]):
    """Which environment has which host names. A name has one owner: the last that claimed it."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, T]] = {}
        self._names: dict[str, list[str]] = {}

    def put(self, env_id: str, hostnames: Iterable[str], environment: T) -> None:
        """Make `hostnames` the names of an environment, and no others."""
        self.remove(env_id)
        names = [name for hostname in hostnames if (name := host_name(hostname)) is not None]
        self._names[env_id] = names
        self._owners.update((name, (env_id, environment)) for name in names)

    def remove(self, env_id: str) -> None:
        for name in self._names.pop(env_id, ()):
            if name in self._owners and self._owners[name][0] == env_id:
                del self._owners[name]

    def find(self, host: str) -> T | None:
        """Return the environment for a `Host` value, or None."""
        name = host_name(host)
        owner = self._owners.get(name) if name is not None else None
        return owner[1] if owner else None
