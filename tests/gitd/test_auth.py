"""Who presents a key, and what it reaches: contract §2 "Authentication", "Scopes"."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from pathlib import Path

import pytest

from gitd.api_keys import DAY_MS, mint
from gitd.auth import Authenticator, may_fetch
from gitd.errors import (
    AddressRefusedError,
    AuthenticationError,
    KeyBoundError,
    ScopeInsufficientError,
)
from gitd.families import Family
from hooks.clock import rfc3339
from storage.model import SYSTEM, ActorRef, Site
from storage.records import api_keys, sites
from storage.records.db import Records

NOW = 1_780_000_000_000


@pytest.fixture
def records(tmp_path: Path):
    opened = Records.open(tmp_path / "gitd.db")
    yield opened
    opened.close()


@pytest.fixture
def clock():
    times = [NOW]

    def now() -> int:
        return times[0]

    now.times = times
    return now


def keep(records, key) -> None:
    records.write(lambda db: api_keys.add(db, key))


def authenticated(authenticator, secret: str, address: str | None):
    return authenticator.confirm(authenticator.grant(secret), address)


def test_actor_is_known_by_its_secret(records, clock) -> None:
    secret, key = mint("the bot", ["deployments:write"], family=Family.SERVICE, now=NOW)
    keep(records, key)
    actor = authenticated(Authenticator(records, clock), secret.reveal(), "127.0.0.1")
    assert (actor.ref.type, actor.ref.id, actor.ref.label) == ("service_key", key.id, "the bot")
    actor.require("deployments:read")
    with pytest.raises(ScopeInsufficientError) as refused:
        actor.require("sites:read")
    assert refused.value.scope == "sites:read"


def test_unknown_revoked_and_malformed_secrets_read_the_same(records, clock) -> None:
    authenticator = Authenticator(records, clock)
    revoked, key = mint("ci", ["*"], now=NOW)
    keep(records, key)
    authenticated(authenticator, revoked.reveal(), None)
    records.write(lambda db: api_keys.revoke(db, key.id, NOW))
    unknown = mint("ci", ["*"], now=NOW)[0]
    said = set()
    for secret in (revoked.reveal(), unknown.reveal(), "", "mfk_live_x", "é" * 45, "\ud800"):
        with pytest.raises(AuthenticationError) as refused:
            authenticated(authenticator, secret, None)
        said.add((refused.value.code, str(refused.value)))
    assert len(said) == 1


def test_key_stops_at_the_moment_that_it_expires(records, clock) -> None:
    secret, key = mint("ci", ["*"], ttl_ms=1000, now=NOW)
    keep(records, key)
    authenticator = Authenticator(records, clock)
    clock.times[0] = NOW + 999
    authenticated(authenticator, secret.reveal(), None)
    clock.times[0] = NOW + 1000
    with pytest.raises(AuthenticationError, match="expired") as refused:
        authenticated(authenticator, secret.reveal(), None)
    assert refused.value.code == "authentication.invalid_key"


@pytest.mark.parametrize(
    ("ttl_days", "left_days", "warns"),
    [(90, 8, False), (90, 7, True), (90, 1, True), (28, 3, True), (27, 3, False), (7, 7, False)],
)
def test_key_that_was_made_for_long_is_warned_of_in_its_last_week(
    records, clock, ttl_days, left_days, warns
) -> None:
    secret, key = mint("ci", ["*"], ttl_ms=ttl_days * DAY_MS, now=NOW)
    keep(records, key)
    authenticator = Authenticator(records, clock)
    clock.times[0] = key.expires_at - left_days * DAY_MS
    warning = authenticator.warning(authenticator.grant(secret.reveal()))
    assert (warning is not None) is warns
    if warning is not None:
        assert f"this key ends at {rfc3339(key.expires_at)}" in warning


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", True),
        ("11.0.0.1", False),
        ("2001:db9::1", False),
        ("nonsense", False),
        (None, False),
    ],
)
def test_key_with_networks_works_only_from_them(records, clock, address, may) -> None:
    secret, key = mint("ci", ["*"], cidrs=["10.0.0.0/8", "2001:db8::/32"], now=NOW)
    keep(records, key)
    authenticator = Authenticator(records, clock)
    if may:
        authenticated(authenticator, secret.reveal(), address)
    else:
        with pytest.raises(AddressRefusedError):
            authenticated(authenticator, secret.reveal(), address)


def test_last_use_is_recorded_at_most_once_a_minute(records, clock) -> None:
    secret, key = mint("ci", ["*"], now=NOW)
    keep(records, key)
    authenticator = Authenticator(records, clock)
    seen = []
    for offset in (0, 1, 59_999, 60_000, 60_001):
        clock.times[0] = NOW + offset
        authenticated(authenticator, secret.reveal(), None)
        records.write(lambda db: None)  # behind what was submitted
        seen.append(api_keys.get(records.reader(), key.id).last_used_at - NOW)
    assert seen == [0, 0, 0, 60_000, 60_000]


def test_authentication_is_quick_enough_for_every_request(records, clock) -> None:
    secret, key = mint("ci", ["*"], now=NOW)
    keep(records, key)
    authenticator = Authenticator(records, clock)
    text = secret.reveal()
    authenticated(authenticator, text, "127.0.0.1")
    began = time.process_time()
    for _ in range(200):
        authenticated(authenticator, text, "127.0.0.1")
    assert (time.process_time() - began) / 200 < 0.002


def test_bound_actor_reaches_no_further_than_it_is_bound(records, clock) -> None:
    def add_site(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO site(id, name, default_branch, created_at)"
            " VALUES('site_1', 'a', 'main', 0)"
        )
        db.execute(
            "INSERT INTO environment"
            "(id, site_id, slug, kind, branch, ephemeral, status, hostname, created_at)"
            " VALUES('env_1', 'site_1', 'p', 'production', NULL, 0, 'active', 'a', 0)"
        )

    records.write(add_site)
    authenticator = Authenticator(records, clock)
    site_secret, site_key = mint("ci", ["*"], site_id="site_1", now=NOW)
    env_secret, env_key = mint("ci", ["*"], site_id="site_1", env_id="env_1", now=NOW)
    keep(records, site_key)
    keep(records, env_key)
    of_site = authenticated(authenticator, site_secret.reveal(), None)
    of_env = authenticated(authenticator, env_secret.reveal(), None)
    of_site.require_whole_site()
    for actor in (of_site, of_env):
        assert actor.sees_site("site_1")
        assert not actor.sees_site("site_2")
        with pytest.raises(KeyBoundError):
            actor.require_unbound()
    with pytest.raises(KeyBoundError):
        of_env.require_whole_site()


@pytest.mark.parametrize(
    ("scopes", "bound_to", "changes", "may"),
    [
        (["deployments:read"], None, {}, True),
        (["deployments:write"], None, {}, True),
        (["*"], "site_1", {}, True),
        (["*"], "site_2", {}, False),
        (["sites:read"], None, {}, False),
        (["*"], None, {"revoked_at": NOW}, False),
        (["*"], None, {"expires_at": NOW}, False),
    ],
)
def test_builds_fetch_only_what_the_key_that_began_them_may_still_fetch(
    records, scopes, bound_to, changes, may
) -> None:
    for site_id in ("site_1", "site_2"):
        site = Site(site_id, site_id.replace("_", "-"), "main", NOW)
        records.write(lambda db, site=site: sites.add(db, site))
    _, key = mint("ci", scopes, site_id=bound_to, now=NOW - 1)
    keep(records, dataclasses.replace(key, **changes))
    actor = ActorRef("api_key", key.id, key.label)
    assert may_fetch(records, actor, "site_1", now=NOW) == may


def test_who_is_no_key_fetches_nothing_for_builds(records) -> None:
    assert not may_fetch(records, SYSTEM, "site_1", now=NOW)
