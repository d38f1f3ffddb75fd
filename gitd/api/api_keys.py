"""API keys, over the API: nobody gives away more than they have. Source: contract §2, §5."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec

from gitd.actors import Actor
from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, created
from gitd.api.idempotency import REPLAYED
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from gitd.api_keys import TTL_DEFAULT_MS, Secret, changed, mint, roll
from gitd.errors import AuthenticationError
from gitd.families import Family
from gitd.scopes import expand_scopes, granted_by
from hooks.errors import NotFoundError, RefusedError
from hooks.idempotency import Made, once
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from storage.model import Action, ApiKey
from storage.records import api_keys, environments, sites

PATH = "/v1/api-keys"
GRACE_S_DEFAULT = 24 * 60 * 60
MADE_COUNT_MAX = 500  # by one key that was made on the server, and by those that come from it

Label = Annotated[str, msgspec.Meta(description="What it is for; releases name it as actor.")]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class ApiKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`site_id` and `env_id` bind the key: an id, or a name and a slug.

    `cidrs`: without any, those of the asking key. `ttl_s`: 90 days without it, or as long as the
    asking key lives, if that is less.
    """

    label: Label
    scopes: list[str] = []
    preset: str | None = None
    family: Literal["personal", "personal-test", "service"] = "personal"
    site_id: str | None = None
    env_id: str | None = None
    cidrs: list[str] = []
    ttl_s: Seconds | None = None


class ApiKeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent stays."""

    label: str | msgspec.UnsetType = msgspec.UNSET
    cidrs: list[str] | msgspec.UnsetType = msgspec.UNSET


class DeleteQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    with_made: Annotated[
        bool,
        msgspec.Meta(description="Whether the keys that it made end too, and that those made."),
    ] = False


class RollBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`grace_s`: how long the old secret works too. `ttl_s`: the key's new end; null keeps it."""

    grace_s: Seconds = GRACE_S_DEFAULT
    ttl_s: Seconds | None = None


class ApiKeys:
    """Makes, shows, changes, rolls and revokes keys.

    A key that is revoked is gone, as far as this goes: the records keep it for those who ask later
    who did something.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        actor = call.actor
        name = list_name("api-keys", actor.site_id, actor.env_id)
        (before,) = read_cursor(call.query.cursor, name)
        page = api_keys.page(
            call.db,
            site_id=actor.site_id,
            env_id=actor.env_id,
            before=before,
            limit_count=call.query.limit,
        )
        cursor = next_cursor(name, page)
        return ListReply([answers.api_key(key) for key in page.items], cursor)

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        return Reply(answers.api_key(_found(call.db, call)))

    async def create(self, call: Call[NoQuery, ApiKeyBody]) -> Reply:
        """Make a key. Its secret is in this answer, and in no other: not in a replay either."""
        body, maker = call.body, call.actor
        scopes = expand_scopes(body.scopes, preset=body.preset)
        maker.require_all(granted_by(scopes))
        shown: list[Secret] = []

        def make(changes: JobChanges) -> ApiKey:
            maker.require_newest_secret()  # not for what was made before it was rolled
            site_id, env_id = _binding(changes.db, maker, body)
            _expect_few(changes.db, maker, changes.now)
            secret, key = mint(
                body.label,
                scopes,
                site_id=site_id,
                env_id=env_id,
                ttl_ms=_ttl_ms(maker, body.ttl_s, changes.now),
                cidrs=body.cidrs or [str(network) for network in maker.networks],
                family=Family.of(body.family),
                now=changes.now,
            )
            maker.require_end(key.expires_at)
            maker.require_networks(key.cidrs)
            key = replace(key, created_by=maker.ref.id)
            api_keys.add(changes.db, key)
            _note(changes, Action.API_KEY_CREATED, key)
            shown[:] = [secret]
            return key

        made = await once(self._jobs, call.claim, "api_key", 201, make, _live)
        path = f"{PATH}/{made.value.id}"
        return created(_shown(made, shown), path, replayed=made.replayed)

    async def change(self, call: Call[NoQuery, ApiKeyChange]) -> Reply:
        body, actor = call.body, call.actor
        actor.require_newest_secret()

        def change(changes: JobChanges) -> ApiKey:
            key = changed(
                _within(changes.db, call),
                label=None if body.label is msgspec.UNSET else body.label,
                cidrs=None if body.cidrs is msgspec.UNSET else body.cidrs,
            )
            if body.cidrs is not msgspec.UNSET:
                actor.require_networks(key.cidrs)
            api_keys.change(changes.db, key)
            _note(changes, Action.API_KEY_CHANGED, key)
            return key

        return Reply(answers.api_key(await self._jobs.commit(change)))

    async def roll(self, call: Call[NoQuery, RollBody]) -> Reply:
        """Give a key another secret, which is in this answer and in no other."""
        body, actor = call.body, call.actor
        shown: list[Secret] = []

        def make(changes: JobChanges) -> ApiKey:
            # Whoever rolls their own key and does not hear of it repeats that with the old secret.
            actor.require_newest_secret()
            secret, key = roll(
                _within(changes.db, call),
                grace_ms=body.grace_s * 1000,
                ttl_ms=None if body.ttl_s is None else body.ttl_s * 1000,
                now=changes.now,
            )
            actor.require_end(key.expires_at)
            actor.require_networks(key.cidrs)
            api_keys.change(changes.db, key)
            _note(changes, Action.API_KEY_ROLLED, key)
            shown[:] = [secret]
            return key

        made = await once(self._jobs, call.claim, "api_key", 200, make, _live)
        return Reply(_shown(made, shown), headers=REPLAYED if made.replayed else {})

    async def delete(self, call: Call[DeleteQuery, NoBody]) -> Reply:
        call.actor.require_newest_secret()

        def change(changes: JobChanges) -> ApiKey:
            key = _found(changes.db, call)
            ended = [key]
            if call.query.with_made:
                ended += api_keys.made_by(changes.db, key.id)
            for each in ended:
                api_keys.revoke(changes.db, each.id, changes.now)
                _note(changes, Action.API_KEY_REVOKED, each)
            return replace(key, revoked_at=changes.now)

        return Reply(answers.Deleted((await self._jobs.commit(change)).id))


def _shown(made: Made[ApiKey], shown: list[Secret]) -> answers.NewApiKey:
    return answers.new_api_key(made.value, shown[0].reveal() if shown else None)


def _note(changes: JobChanges, action: Action, key: ApiKey) -> None:
    changes.note(action, key.id, site_id=key.site_id, env_id=key.env_id)


def _live(db: sqlite3.Connection, key_id: str) -> ApiKey | None:
    key = api_keys.get(db, key_id)
    return None if key is None or key.revoked_at is not None else key


def _found(db: sqlite3.Connection, call: Call[Any, Any]) -> ApiKey:
    """The key that the path names, if the caller may know of it."""
    key = _live(db, call.named("key"))
    if key is None or not call.actor.sees_key(key):
        raise NotFoundError("api_key", call.named("key"))
    return key


def _within(db: sqlite3.Connection, call: Call[Any, Any]) -> ApiKey:
    """The same, if it may do nothing that the caller may not, who will have its secret."""
    key = _found(db, call)
    call.actor.require_all(granted_by(key.scopes))
    return key


def _ttl_ms(maker: Actor, ttl_s: int | None, now: int) -> int:
    """How long a new key lives: as was said, or as is usual, and then no longer than its maker."""
    if ttl_s is not None:
        return ttl_s * 1000
    left = TTL_DEFAULT_MS if maker.ends_at is None else maker.ends_at - now
    return min(TTL_DEFAULT_MS, left)


def _expect_few(db: sqlite3.Connection, maker: Actor, now: int) -> None:
    """Raises RefusedError when whoever is behind this key has as many keys as they may, and
    AuthenticationError when the key was revoked since it was asked for.
    """
    key = api_keys.get(db, maker.ref.id)
    if key is None:
        return
    if key.revoked_at is not None:
        raise AuthenticationError("This API key was revoked.")
    first = api_keys.first_maker(db, key)
    if sum(made.expires_at > now for made in api_keys.made_by(db, first)) >= MADE_COUNT_MAX:
        raise RefusedError(
            "api_key.too_many",
            f"{first} and the keys that come from it made {MADE_COUNT_MAX} keys that are not "
            "revoked: revoke some first.",
        )


def _binding(
    db: sqlite3.Connection, actor: Actor, body: ApiKeyBody
) -> tuple[str | None, str | None]:
    """What a new key is bound to: what was said, and never more than its maker is."""
    # An empty name, as of a script's unset variable, names nothing: it must not bind to nothing.
    site_named = actor.site_id if body.site_id is None else body.site_id
    env_named = actor.env_id if body.env_id is None else body.env_id
    if site_named is None:
        return None, env_named
    site = sites.find(db, site_named)
    if site is None or not actor.sees_site(site.id):
        raise NotFoundError("site", site_named)
    if env_named is None:
        return site.id, None
    environment = environments.find(db, site.id, env_named)
    if environment is None or not actor.sees_environment(environment):
        raise NotFoundError("environment", env_named)
    return site.id, environment.id
