"""Sites behind the git endpoint: who may fetch and push, and what a push sets off.

Source: contract §6; "404 before 403" in contract §2.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import structlog
from aiohttp import web

from gitd.actors import Actor
from gitd.addresses import TrustedProxies
from gitd.auth import Authenticator, Grant
from gitd.errors import AddressRefusedError, AuthenticationError, RateLimitedError
from gitd.git.access import Opened, Service
from gitd.git.errors import (
    NoRoomError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    PushRefusedError,
    TooManyRequestsError,
)
from gitd.git.push import CURRENT_REFUSED, SHALLOW_REFUSED, Push, RefOutcome, Remote
from gitd.log import ACTOR, REQUEST_ID
from gitd.rate_limits import RATE_HEADERS, Kind, RateLimits
from hooks import branches
from hooks.audit_log import Asker, asked_by
from hooks.follow import PushNarrator
from hooks.housekeeping import Housekeeping
from hooks.push import CLEAN, Building, Effect, PushHooks
from storage.errors import StorageError, StorageFullError
from storage.git.ref_refusals import STALE
from storage.model import BranchRoute, Environment, PushRecord, RefMove, Site
from storage.records import environments, sites
from storage.records.db import Records
from storage.repos import Repositories

log = structlog.get_logger(__name__)

CHALLENGE = 'Basic realm="gitd: any user name, an API key as the password", charset="UTF-8"'
NO_WAIT = "nowait"
_OPTIONS = CLEAN | {NO_WAIT}
_UNKNOWN_SHOWN_MAX = 3
_UNKNOWN_CHARS_MAX = 40
SHALLOW_ADVICE = (
    "This clone is shallow: it ends where this repository's history does not go on.",
    "Fetch the rest from where it was cloned, then push again: git fetch --unshallow",
)
RACE_ADVICE = "Somebody else pushed there meanwhile: git pull, and push again"
DEFAULT_ADVICE = "Another default branch first: mf sites set {} --default-branch BRANCH"
_SCOPES = {
    Service.RECEIVE_PACK: "deployments:write",
    Service.UPLOAD_PACK: "deployments:read",
}


@dataclass(frozen=True, slots=True)
class Reach:
    """The branches that deploy to an environment, as the routes of its site are now."""

    environment: Environment | None
    routes: Sequence[BranchRoute]

    @classmethod
    def of(cls, records: Records, site: Site, env_id: str) -> Reach:
        reader = records.reader()
        return cls(environments.get(reader, env_id), sites.routes(reader, site.id))

    def has(self, ref: str) -> bool:
        bound = self.environment
        return bound is not None and branches.reaches(self.routes, ref, bound)


@dataclass(frozen=True, slots=True)
class SiteActor:
    """Who pushes, to which site, from where.

    Attributes:
        is_good: whether the key is, at this moment.
        count_push: counts a push of the key; raises PushRefusedError for one too many.
        warning: what whoever pushes should hear of the key.
    """

    actor: Actor
    site: Site
    asker: Asker
    is_good: Callable[[], bool]
    count_push: Callable[[], None]
    warning: str | None = None


class SiteAccess:
    """Finds the repository of a site for those who hold a key to it.

    With `rate_limits` each request of a key counts as one that reads, and each push as one that
    writes: it is counted once it is here, and refused before where it would be one too many.
    """

    def __init__(
        self,
        records: Records,
        repositories: Repositories,
        authenticator: Authenticator,
        proxies: TrustedProxies,
        *,
        housekeeping: Housekeeping,
        rate_limits: RateLimits | None = None,
    ) -> None:
        self._records = records
        self._repositories = repositories
        self._authenticator = authenticator
        self._proxies = proxies
        self._housekeeping = housekeeping
        self._rate_limits = rate_limits

    async def open(self, request: web.Request, path: str, service: Service) -> Opened:
        """See `gitd.git.access.GitAccess`."""
        grant, actor = self._authenticate(request)
        request[ACTOR] = actor.ref.id
        self._count(request, grant, service)
        name = path.removesuffix(".git")
        site = sites.find(self._records.reader(), name)
        if site is None or not actor.sees_site(site.id):
            raise NotFoundError(_no_site(name, actor))
        if not actor.may(_SCOPES[service]):
            raise NotAllowedError(self._lacks(actor, site, _SCOPES[service]))
        if service is Service.UPLOAD_PACK and actor.env_id is not None:
            raise NotAllowedError(
                "This key is bound to an environment, and a fetch reaches the whole repository: "
                "use one that is bound to the site.\n"
            )
        if service is Service.RECEIVE_PACK:
            await self._expect_room()
        return Opened(
            self._repositories.path(site.id),
            SiteActor(
                actor,
                site,
                self._asker(request, actor),
                is_good=partial(self._is_good, request),
                count_push=partial(self._count_push, grant.counted_as),
                warning=self._authenticator.warning(grant),
            ),
            remote_user=actor.ref.label,
            path=f"{site.name}.git",
            shows=None if actor.env_id is None else self._reaching(site, actor.env_id),
            is_ours=True,
        )

    def _reaching(self, site: Site, env_id: str) -> Callable[[bytes], bool]:
        """What a key is not bound to does not exist for it: no branch of another environment."""
        reach = Reach.of(self._records, site, env_id)
        return lambda name: reach.has(os.fsdecode(name))

    def _lacks(self, actor: Actor, site: Site, scope: str) -> str:
        """Advise a key that may do this here and nothing else."""
        where = f"--site {site.name}"
        if actor.env_id is not None and scope == _SCOPES[Service.RECEIVE_PACK]:
            bound_to = environments.get(self._records.reader(), actor.env_id)
            where += f" --env {bound_to.slug if bound_to is not None else actor.env_id}"
        return (
            f"This key lacks the scope {scope}: use one that has it. Made on the server with:\n"
            f"gitd key create --label NAME {where} --scope {scope}\n"
        )

    def _asker(self, request: web.Request, actor: Actor) -> Asker:
        return Asker(actor.ref, self._proxies.client_of(request), request.get(REQUEST_ID))

    async def _expect_room(self) -> None:
        """A push that the disk has no room for is refused before it sends anything."""
        if self._housekeeping.lack():
            await self._housekeeping.made_room()
        if lack := self._housekeeping.lack():
            raise NoRoomError(
                f"The server has no room for pushes: {lack}.\n"
                "What is live goes on, and can be promoted and rolled back.\n"
            )

    def _count(self, request: web.Request, grant: Grant, service: Service) -> None:
        """A push that is too many is refused before it sends anything."""
        limits = self._rate_limits
        if limits is None:
            return
        try:
            if service is Service.RECEIVE_PACK:
                limits.expect(grant.counted_as, Kind.WRITE)
            request[RATE_HEADERS] = limits.take(grant.counted_as, Kind.READ).headers()
        except RateLimitedError as error:
            raise TooManyRequestsError(f"{error}\n", error.headers) from error

    def _count_push(self, key_id: str) -> None:
        if self._rate_limits is None:
            return
        try:
            self._rate_limits.take(key_id, Kind.WRITE)
        except RateLimitedError as error:
            again = f"try again in {error.retry_after_s} s"
            raise PushRefusedError(f"too many pushes by this key: {again}") from error

    def _is_good(self, request: web.Request) -> bool:
        try:
            self._authenticate(request)
        except (NotAuthenticatedError, NotAllowedError):
            return False
        return True

    def _authenticate(self, request: web.Request) -> tuple[Grant, Actor]:
        secret = _presented_secret(request.headers.get("Authorization", ""))
        if secret is None:
            raise NotAuthenticatedError(
                "Log in with any user name and an API key as the password.\n",
                challenges=(CHALLENGE,),
            )
        try:
            grant = self._authenticator.grant(secret)
            return grant, self._authenticator.confirm(grant, self._proxies.client_of(request))
        except AuthenticationError as error:
            raise NotAuthenticatedError(f"{error}\n", challenges=(CHALLENGE,)) from error
        except AddressRefusedError as error:
            raise NotAllowedError(f"{error}\n") from error


class SiteReceiver:
    """Records pushes before their refs move, and follows what they set off."""

    def __init__(self, records: Records, push_hooks: PushHooks, narrator: PushNarrator) -> None:
        self._records = records
        self._push_hooks = push_hooks
        self._narrator = narrator
        # Whatever a push ends of, what is known of it goes with it.
        self._begun: WeakKeyDictionary[Push, PushRecord] = WeakKeyDictionary()
        self._landing: WeakKeyDictionary[Push, asyncio.Future[list[Effect]]] = WeakKeyDictionary()

    async def accept(self, push: Push) -> Mapping[str, str]:
        """See `gitd.git.push.PushReceiver`."""
        who = _who(push)
        if not who.is_good():  # the client sends a push for as long as it likes
            raise PushRefusedError("this key is not good any more")
        who.count_push()
        refused = {**_not_in_text(push), **self._beyond_its_environment(who, push)}
        moves = [
            RefMove(update.name, update.old, update.new)
            for update in push.updates
            if update.name not in refused
        ]
        if moves:
            self._begun[push] = await self._begin(who, moves, push.options)
        return refused

    async def _begin(
        self, who: SiteActor, moves: Sequence[RefMove], options: Sequence[str]
    ) -> PushRecord:
        try:
            with asked_by(who.asker):
                return await self._push_hooks.begin(who.site.id, who.actor.ref, moves, options)
        except StorageFullError as error:
            raise PushRefusedError("the server's disk is full") from error
        except StorageError as error:
            log.exception("push_not_recorded", site=who.site.name)
            raise PushRefusedError("the server could not record the push") from error

    async def broken_off(self, push: Push) -> None:
        """See `gitd.git.push.PushReceiver`. Left open, it would be done again at the next start."""
        record = self._begun.pop(push, None)
        if record is None:
            return
        try:
            await self._push_hooks.land(record, ())
        except StorageError:
            log.exception("push_not_ended", push_id=record.id)

    def moved(self, push: Push, outcomes: Sequence[RefOutcome]) -> None:
        """See `gitd.git.push.PushReceiver`. Builds are queued in the order in which refs moved."""
        record = self._begun.get(push)
        if record is None:
            return
        # `landed` meets a failure again, and can say so.
        with contextlib.suppress(StorageError), asked_by(_who(push).asker):
            landing = self._push_hooks.land(record, _moves(outcomes))
            self._landing[push] = asyncio.ensure_future(landing)

    async def landed(self, push: Push, outcomes: Sequence[RefOutcome], remote: Remote) -> None:
        """See `gitd.git.push.PushReceiver`."""
        if any(outcome.reason == SHALLOW_REFUSED for outcome in outcomes):
            await remote.say(*SHALLOW_ADVICE)
        if any(outcome.reason == STALE for outcome in outcomes):
            await remote.say(RACE_ADVICE)
        if any(outcome.reason == CURRENT_REFUSED for outcome in outcomes):
            await remote.say(DEFAULT_ADVICE.format(_who(push).site.name))
        record = self._begun.pop(push, None)
        landing = self._landing.pop(push, None)
        if record is None:
            return
        try:
            with asked_by(_who(push).asker):
                effects = await (landing or self._push_hooks.land(record, _moves(outcomes)))
        except StorageError:
            await remote.say("The refs are kept, but gitd could not queue what they ask for.")
            await remote.say("It does so at its next start; its log says what failed.")
            raise
        for option in sorted({*push.options} - _OPTIONS)[:_UNKNOWN_SHOWN_MAX]:
            known = ", ".join(sorted(_OPTIONS))
            await remote.say(f"push option {option[:_UNKNOWN_CHARS_MAX]!a}: unknown here ({known})")
        for effect in effects:
            await self._narrator.announce(effect, remote)
        # git asks for quiet with --quiet, and also when nobody watches its progress.
        was_asked = NO_WAIT in push.options
        listener = _KeyHolder(remote, _who(push).is_good)
        has_several = sum(isinstance(effect, Building) for effect in effects) > 1
        if has_several:
            await listener.say("")
        for effect in effects:
            if has_several:
                await self._narrator.begin(effect, listener)
            if was_asked or push.is_quiet:
                await self._narrator.tell_how_to_follow(effect, remote, was_asked=was_asked)
            elif not listener.is_gone:
                await self._narrator.follow(effect, listener)
        warning = _who(push).warning
        if warning is not None and not listener.is_gone:
            await remote.say(warning)
        if listener.has_no_key:
            await remote.say("  this key is not good any more: the work goes on, and is not shown")

    def _beyond_its_environment(self, who: SiteActor, push: Push) -> dict[str, str]:
        """A key bound to an environment moves the branches that deploy there, and no other ref."""
        bound_to = who.actor.env_id
        if bound_to is None:
            return {}
        reach = Reach.of(self._records, who.site, bound_to)
        name = reach.environment.slug if reach.environment is not None else bound_to
        return {
            update.name: f"this key is bound to {name}"
            for update in push.updates
            if not reach.has(update.name)
        }


class _KeyHolder:
    """The client of a push, as long as its key is good: from then on it counts as gone."""

    def __init__(self, remote: Remote, is_good: Callable[[], bool]) -> None:
        self._remote = remote
        self._is_good = is_good
        self.has_no_key = False

    @property
    def is_gone(self) -> bool:
        if not self.has_no_key and not self._is_good():
            self.has_no_key = True
        return self.has_no_key or self._remote.is_gone

    async def say(self, *lines: str) -> None:
        if not self.is_gone:
            await self._remote.say(*lines)


def _no_site(name: str, actor: Actor) -> str:
    """Advise only what this key may do."""
    lines = [f"There is no site {name!r} here, or this key may not know of it."]
    if actor.may("sites:read"):
        lines.append("List the sites that it knows with: mf sites list")
    if branches.site_name_fault(name) is None:
        makes = f"gitd site create {name}    (on the server: this key may not)"
        if actor.may("sites:write") and actor.site_id is None:
            makes = f"mf sites create {name}"
        lines.append(f"Make this one with:                {makes}")
    return "".join(f"{line}\n" for line in lines)


def _moves(outcomes: Sequence[RefOutcome]) -> list[RefMove]:
    return [
        RefMove(outcome.update.name, outcome.update.old, outcome.update.new)
        for outcome in outcomes
        if outcome.has_moved
    ]


def _not_in_text(push: Push) -> dict[str, str]:
    """Records are text: a name that is not cannot be recorded, nor shown to anybody."""
    return {
        update.name: "the name is not UTF-8"
        for update in push.updates
        if any("\ud800" <= character <= "\udfff" for character in update.name)
    }


def _who(push: Push) -> SiteActor:
    assert isinstance(push.actor, SiteActor), "SiteAccess gave it"
    return push.actor


def _presented_secret(header: str) -> str | None:
    """The secret of a Basic or Bearer header. Source: RFC 7617 §2, RFC 6750 §2.1."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() != "basic":
        return None
    try:
        user_and_password = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user_and_password.partition(":")[2] or None
