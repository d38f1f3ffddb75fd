"""API keys: how their secrets look, what they allow, and who presents one.

Source: contract §2 "Authentication", "404 before 403".
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import zlib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from ipaddress import ip_network

import structlog

from gitd.addresses import Network, is_within, parse_address
from gitd.errors import (
    AddressRefusedError,
    AuthenticationError,
    BeyondKeyError,
    KeyBoundError,
    KeyInvalidError,
    ScopeInsufficientError,
    SecretRolledError,
)
from gitd.families import Family
from gitd.scopes import expand_scopes, granted_by
from hooks.clock import Clock, now_ms, rfc3339
from storage.ids import new_id
from storage.model import ActorRef, ApiKey, Environment, Job
from storage.records import api_keys
from storage.records.db import Records
from storage.records.recall import Freshness, Recall

log = structlog.get_logger(__name__)

DAY_MS = 24 * 60 * 60 * 1000
TTL_DEFAULT_MS = 90 * DAY_MS
TTL_MS_MAX = 365 * DAY_MS
GRACE_MS_MAX = 7 * DAY_MS
LABEL_CHARS_MAX = 100
CIDRS_COUNT_MAX = 50
USE_NOTED_EVERY_MS = 60_000

RANDOM_CHARS = 30  # 178 bits
CHECKSUM_CHARS = 6  # a CRC-32 in base 62: a mistyped secret is known without a look-up
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET = re.compile(r"(?:mfk_live|mfk_test|mfs_live)_[0-9A-Za-z]{36}")


class Secret:
    """A key's secret, shown once. It prints as `***`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"


# -- keys -----------------------------------------------------------------------------------------


def mint(
    label: str,
    scopes: Iterable[str],
    *,
    site_id: str | None = None,
    env_id: str | None = None,
    ttl_ms: int = TTL_DEFAULT_MS,
    cidrs: Iterable[str] = (),
    family: Family = Family.PERSONAL,
    now: int | None = None,
) -> tuple[Secret, ApiKey]:
    """Return a new secret and the key to keep for it (`storage.records.api_keys.add`).

    `scopes` are checked and expanded here; a preset's come from `expand_scopes`.
    `env_id` binds the key to an environment and then wants that environment's `site_id` too.
    `ttl_ms` is at most a year. `cidrs` are the networks it may be used from; all when empty.

    Raises:
        KeyInvalidError: A field cannot be so; `param` names it.
    """
    if env_id is not None and site_id is None:
        raise KeyInvalidError("A key for an environment names its site too.", param="site_id")
    created_at = now_ms() if now is None else now
    secret = _new_secret(family)
    return Secret(secret), ApiKey(
        id=new_id("key"),
        family=family.value,
        label=_checked_label(label),
        secret_sha256=_sha256(secret),
        hint=_hint(secret),
        scopes=expand_scopes(scopes),
        site_id=site_id,
        env_id=env_id,
        cidrs=_checked_cidrs(cidrs),
        created_at=created_at,
        expires_at=created_at + _checked_ttl(ttl_ms),
        revoked_at=None,
        last_used_at=None,
    )


def changed(key: ApiKey, *, label: str | None = None, cidrs: Iterable[str] | None = None) -> ApiKey:
    """Return the key with another label, or for other networks.

    Raises:
        KeyInvalidError: A field cannot be so; `param` names it.
    """
    return replace(
        key,
        label=key.label if label is None else _checked_label(label),
        cidrs=key.cidrs if cidrs is None else _checked_cidrs(cidrs),
    )


def roll(key: ApiKey, *, grace_ms: int, ttl_ms: int | None, now: int) -> tuple[Secret, ApiKey]:
    """Return a new secret and the key with it; the secret that it had is good for `grace_ms` more.

    Without `ttl_ms` the key ends when it would have.

    Raises:
        KeyInvalidError: A field cannot be so, or the key is at its end; `param` names the field.
    """
    if not 0 <= grace_ms <= GRACE_MS_MAX:
        raise KeyInvalidError("Both secrets work for at most 7 days.", param="grace_s")
    if ttl_ms is None and key.expires_at <= now:
        raise KeyInvalidError("The key is expired: say for how long it is to live.", param="ttl_s")
    secret = _new_secret(Family(key.family))
    return Secret(secret), replace(
        key,
        secret_sha256=_sha256(secret),
        hint=_hint(secret),
        expires_at=key.expires_at if ttl_ms is None else now + _checked_ttl(ttl_ms),
        previous_sha256=key.secret_sha256 if grace_ms else None,
        previous_until=min(now + grace_ms, key.expires_at) if grace_ms else None,
    )


def is_well_formed(secret: str) -> bool:
    """Say whether `secret` could be one of ours: its form and its checksum hold."""
    if not _SECRET.fullmatch(secret):
        return False
    return _checksum(secret[:-CHECKSUM_CHARS]) == secret[-CHECKSUM_CHARS:]


def _new_secret(family: Family) -> str:
    head = f"{family}_{''.join(secrets.choice(BASE62) for _ in range(RANDOM_CHARS))}"
    return head + _checksum(head)


def _checksum(head: str) -> str:
    number, digits = zlib.crc32(head.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        number, digit = divmod(number, len(BASE62))
        digits = BASE62[digit] + digits
    return digits


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _hint(secret: str) -> str:
    return f"{secret[: secret.rindex('_') + 5]}…{secret[-4:]}"


def _checked_label(label: str) -> str:
    if not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable():
        raise KeyInvalidError(
            f"A label has 1 to {LABEL_CHARS_MAX} printable characters.", param="label"
        )
    return label


def _checked_ttl(ttl_ms: int) -> int:
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise KeyInvalidError("A key lives at least a moment and at most 365 days.", param="ttl_s")
    return ttl_ms


def _checked_cidrs(cidrs: Iterable[str]) -> tuple[str, ...]:
    checked = []
    for text in cidrs:
        try:
            checked.append(str(ip_network(text)))
        except ValueError as error:
            raise KeyInvalidError(f"{error}.", param="cidrs") from error
    if len(checked) > CIDRS_COUNT_MAX:
        raise KeyInvalidError(f"At most {CIDRS_COUNT_MAX} networks.", param="cidrs")
    return tuple(checked)


# -- actors ---------------------------------------------------------------------------------------


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

    def authenticate(self, secret: str, remote_ip: str | None) -> Actor:
        """Return whose secret this is. `remote_ip` is the client's address, if it has one.

        Raises:
            AuthenticationError: The secret is unknown, revoked or expired.
            AddressRefusedError: The key may not be used from there.
        """
        return self.confirm(self.grant(secret), remote_ip)

    def grant(self, secret: str) -> Grant:
        """Return whose secret this is, whenever and from wherever it may be used.

        Raises:
            AuthenticationError: The secret is unknown or revoked.
        """
        sha256 = _sha256(secret)
        grant = self._recall.get(sha256, lambda db: Grant.find(db, secret, sha256))
        if grant is None or grant.key.revoked_at is not None:
            raise AuthenticationError("This is no API key of this server, or no longer one.")
        return grant

    def confirm(self, grant: Grant, remote_ip: str | None) -> Actor:
        """Return the actor of a key that is used now, from there.

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
