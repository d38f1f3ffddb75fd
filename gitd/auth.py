"""Authentication: who presents an API key, and whether it may be used now, from there.

Source: contract §2 "Authentication".
"""

from __future__ import annotations

import sqlite3
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_network

import structlog

from gitd.actors import Actor
from gitd.addresses import Network, is_within, parse_address
from gitd.api_keys import DAY_MS, is_well_formed, sha256_of
from gitd.errors import AddressRefusedError, AuthenticationError
from gitd.families import Family
from gitd.scopes import granted_by
from hooks.clock import Clock, now_ms, rfc3339
from storage.model import ActorRef, ApiKey
from storage.records import api_keys
from storage.records.db import Records
from storage.records.recall import Freshness, Recall

log = structlog.get_logger(__name__)

USE_NOTED_EVERY_MS = 60_000
ENDING_MS = 7 * DAY_MS  # before its end somebody should hear of it
LONG_LIVED_MS = 28 * DAY_MS  # what is made for less is meant to end


@dataclass(frozen=True, slots=True)
class Grant:
    """A key that somebody presented, and what follows from it.

    `ends_at`: until when the secret that was presented is good. `counted_as`: the key whose limits
    its requests count towards, so that nobody has more of them by making keys.
    """

    key: ApiKey
    actor: Actor
    networks: tuple[Network, ...]
    ends_at: int
    counted_as: str

    @classmethod
    def find(cls, db: sqlite3.Connection, secret: str, sha256: bytes) -> Grant | None:
        key = api_keys.by_secret(db, sha256) if is_well_formed(secret) else None
        if key is None:
            return None
        kind = "service_key" if key.family == Family.SERVICE else "api_key"
        ref = ActorRef(kind, key.id, key.label)
        ends_at, is_rolled = key.expires_at, key.secret_sha256 != sha256
        if is_rolled and key.previous_until is not None:
            ends_at = min(ends_at, key.previous_until)
        networks = tuple(ip_network(text) for text in key.cidrs)
        actor = Actor(
            ref,
            granted_by(key.scopes),
            key.site_id,
            key.env_id,
            networks=networks,
            ends_at=key.expires_at,
            is_rolled=is_rolled,
        )
        return cls(key, actor, networks, ends_at, api_keys.first_maker(db, key))

    def ends_soon(self, now: int) -> bool:
        """Say whether somebody should be told that it ends: whoever uses it may not know."""
        is_meant = self.key.expires_at - self.key.created_at < LONG_LIVED_MS
        return self.ends_at - now <= ENDING_MS and (self.actor.is_rolled or not is_meant)


def may_fetch(records: Records, ref: ActorRef, site_id: str, *, now: int) -> bool:
    """Say whether an actor who began something may fetch from a site by now. From any thread.

    Where it may be used from counted when it began.
    """
    key = api_keys.get(records.reader(), ref.id)
    if key is None or key.revoked_at is not None or key.expires_at <= now:
        return False
    if key.env_id is not None:  # a repository is more than an environment
        return False
    return "deployments:read" in granted_by(key.scopes) and key.site_id in (None, site_id)


class Authenticator:
    """Knows actors by their secrets. Belongs to one event loop: a look-up is one point read.

    What is kept of answers that a key got must look at the same `freshness`: with another one, it
    could hear of a commit, and then keep what this one still lets in.
    """

    def __init__(self, records: Records, clock: Clock = now_ms) -> None:
        self.freshness = Freshness(records)
        self._records = records
        self._recall = Recall(records, freshness=self.freshness)
        self._clock = clock
        self._noted: dict[str, int] = {}

    def grant(self, secret: str) -> Grant:
        """Return whose secret this is, whenever and from wherever it may be used.

        Raises:
            AuthenticationError: The secret is unknown or revoked.
        """
        sha256 = sha256_of(secret)
        grant = self._recall.get(sha256, lambda db: Grant.find(db, secret, sha256))
        if grant is None or grant.key.revoked_at is not None:
            raise AuthenticationError("This is no API key of this server, or no longer one.")
        return grant

    def confirm(self, grant: Grant, remote_ip: str | None) -> Actor:
        """Return the actor of a key that is used now, from the client's address, if it has one.

        Raises:
            AuthenticationError: It is expired.
            AddressRefusedError: It may not be used from there.
        """
        key, now = grant.key, self._clock()
        if grant.ends_at <= now:
            raise AuthenticationError(f"This API key expired at {rfc3339(grant.ends_at)}.")
        if grant.networks:
            address = parse_address(remote_ip or "")
            if address is None or not is_within(address, grant.networks):
                raise AddressRefusedError(remote_ip)
        self._note_use(key, now)
        return grant.actor

    def warning(self, grant: Grant) -> str | None:
        """Say of a key that ends soon when, and what to do; None of any other."""
        if not grant.ends_soon(self._clock()):
            return None
        at = rfc3339(grant.ends_at)
        if grant.actor.is_rolled:
            return f"this key was rolled, and its old secret ends at {at}: use the new one"
        return f"this key ends at {at}: make another before that, or roll it (mf keys roll)"

    def _note_use(self, key: ApiKey, now: int) -> None:
        """Record the use, at most once a minute; nobody waits for it."""
        last = max(key.last_used_at or 0, self._noted.get(key.id, 0))
        if now - last < USE_NOTED_EVERY_MS:
            return
        self._noted[key.id] = now
        noted = self._records.submit(lambda db: api_keys.touch(db, key.id, now))
        noted.add_done_callback(_complain)


def _complain(noted: Future[None]) -> None:
    if not noted.cancelled() and (error := noted.exception()) is not None:
        log.warning("key_use_not_recorded", error=str(error))
