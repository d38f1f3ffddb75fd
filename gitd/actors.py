"""Actors: who makes a request, and how far it may go.

Source: contract §2 "Scopes", "404 before 403".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from gitd.addresses import Network
from gitd.errors import (
    BeyondKeyError,
    KeyBoundError,
    ScopeInsufficientError,
    SecretRolledError,
)
from hooks.clock import rfc3339
from storage.model import ActorRef, ApiKey, Environment, Job


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a request, and how far it may go.

    Attributes:
        ref: The actor as records keep it.
        granted: Every scope that it has, those that are implied too.
        site_id: The one site that it may know of, or None for all.
        env_id: The one environment that it may know of, or None for all of its sites.
        networks: Where it may come from; everywhere when empty.
        ends_at: When it ends; None for never.
        is_rolled: Whether its secret is the one from before a roll.
    """

    ref: ActorRef
    granted: frozenset[str]
    site_id: str | None = None
    env_id: str | None = None
    networks: tuple[Network, ...] = ()
    ends_at: int | None = None
    is_rolled: bool = False

    def may(self, scope: str) -> bool:
        return scope in self.granted

    def require(self, scope: str) -> None:
        """Raises ScopeInsufficientError when the key lacks `scope`."""
        if scope not in self.granted:
            raise ScopeInsufficientError(scope)

    def require_all(self, scopes: frozenset[str]) -> None:
        """Raises ScopeInsufficientError when the key lacks one of `scopes`, which it names."""
        for scope in sorted(scopes - self.granted):
            raise ScopeInsufficientError(scope)

    def require_unbound(self) -> None:
        """Raises KeyBoundError for a key that is bound to a site or an environment."""
        if self.site_id is not None:
            raise KeyBoundError(self.env_id or self.site_id)

    def require_whole_site(self) -> None:
        """Raises KeyBoundError for a key that is bound to one environment of its site."""
        if self.env_id is not None:
            raise KeyBoundError(self.env_id)

    def require_newest_secret(self) -> None:
        """Raises SecretRolledError for the secret that a key had before it was rolled."""
        if self.is_rolled:
            raise SecretRolledError

    def require_end(self, ends_at: int) -> None:
        """Raises BeyondKeyError when it ends before that."""
        if self.ends_at is not None and ends_at > self.ends_at:
            raise BeyondKeyError(f"it ends at {rfc3339(self.ends_at)} itself")

    def require_networks(self, cidrs: Iterable[str]) -> None:
        """Raises BeyondKeyError when it may not come from all of these networks; from all if none.

        One network of its own has to contain the whole of each.
        """
        if not self.networks:
            return
        asked = [ip_network(text) for text in cidrs]
        if not asked or not all(_is_part(network, self.networks) for network in asked):
            named = ", ".join(str(network) for network in self.networks)
            raise BeyondKeyError(f"it works from {named} alone")

    def sees_site(self, site_id: str) -> bool:
        return self.site_id is None or self.site_id == site_id

    def sees_environment(self, environment: Environment) -> bool:
        return self._sees(environment.site_id, environment.id)

    def sees_job(self, job: Job) -> bool:
        return self._sees(job.site_id, job.env_id)

    def sees_key(self, key: ApiKey) -> bool:
        return self.site_id in (None, key.site_id) and self.env_id in (None, key.env_id)

    def _sees(self, site_id: str, env_id: str) -> bool:
        return self.sees_site(site_id) and self.env_id in (None, env_id)


def _is_part(network: Network, of: Iterable[Network]) -> bool:
    return any(
        network.version == whole.version
        and network.network_address in whole
        and network.broadcast_address in whole
        for whole in of
    )
