"""The ring of a request to the API: who asks, may they, what do they say; then the answer.

The order is the contract's: what a key may not know of is 404 before anything is 403, and nothing
of a body is looked at before it is clear that its sender may send it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from gitd.actors import Actor
from gitd.addresses import TrustedProxies
from gitd.api.endpoint import Answered, Call, Endpoint, ListReply, Reach, Reply
from gitd.api.envelope import (
    VERSION,
    ErrorAnswer,
    ErrorDetail,
    Many,
    One,
    Pagination,
    json_answer,
    written,
)
from gitd.api.errors import CODES, Refusal, refusal_of
from gitd.api.idempotency import claim_of
from gitd.api.reading import BODY_TIMEOUT_S, Reader, version_of
from gitd.auth import Authenticator, Grant
from gitd.errors import AuthenticationError, RateLimitedError, RequestError
from gitd.log import ACTOR, REQUEST_ID
from gitd.rate_limits import RATE_HEADERS, Kind, RateLimits
from hooks.audit_log import Asker, asked_by
from hooks.errors import NotFoundError
from storage.model import SYSTEM, Environment, Site
from storage.records import environments, sites
from storage.records.db import Records
from storage.records.recall import Freshness, Recall

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEPT_BYTES_MAX = 64 * 1024  # of one answer
KEPT_COUNT_MAX = 1000
NOBODY = Actor(SYSTEM, frozenset())


@dataclass(frozen=True, slots=True)
class Gate:
    """Lets a request in: knows its key, and finds what its path names."""

    recall: Recall
    authenticator: Authenticator
    proxies: TrustedProxies

    def grant_of(self, request: web.Request) -> Grant:
        """Raises AuthenticationError."""
        kind, _, secret = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise AuthenticationError(
                "Send an API key: Authorization: Bearer mfk_live_... .",
                code="authentication.required",
            )
        return self.authenticator.grant(secret.strip())

    def actor_of(self, request: web.Request, grant: Grant) -> Actor:
        """Raises AuthenticationError, AddressRefusedError."""
        actor = self.authenticator.confirm(grant, self.proxies.client_of(request))
        request[ACTOR] = actor.ref.id
        return actor

    def confirm(self, request: web.Request) -> None:
        """Look again, while a request is being answered, whether its key is good still.

        Raises:
            AuthenticationError, AddressRefusedError: It is not.
        """
        self.actor_of(request, self.grant_of(request))

    def site_of(self, request: web.Request, actor: Actor) -> Site | None:
        name = request.match_info.get("site")
        if name is None:
            return None
        site = self.recall.get(("site", name), lambda db: sites.find(db, name))
        if site is None or not actor.sees_site(site.id):
            raise NotFoundError("site", name)
        return site

    def environment_of(
        self, request: web.Request, actor: Actor, site: Site | None
    ) -> Environment | None:
        name = request.match_info.get("env")
        if name is None or site is None:
            return None
        environment = self.recall.get(
            ("environment", site.id, name), lambda db: environments.find(db, site.id, name)
        )
        if environment is None or not actor.sees_environment(environment):
            raise NotFoundError("environment", name)
        return environment


@dataclass(frozen=True, slots=True)
class _Kept:
    """The answer of a read, and by which key it was asked."""

    grant: Grant
    answered: Answered


class Dispatch:
    """Makes aiohttp handlers of endpoints."""

    def __init__(
        self,
        gate: Gate,
        records: Records,
        *,
        server_url: str,
        freshness: Freshness,
        body_timeout_s: float = BODY_TIMEOUT_S,
        rate_limits: RateLimits | None = None,
    ) -> None:
        self._gate = gate
        self._records = records
        self._answers = Recall(records, entries_max=KEPT_COUNT_MAX, freshness=freshness)
        self._server_url = server_url
        self._body_timeout_s = body_timeout_s
        self._rate_limits = rate_limits

    def handler(self, endpoint: Endpoint) -> Handler:
        body, query = Reader(endpoint.body), Reader(endpoint.query)
        has_body = endpoint.method in ("POST", "PUT", "PATCH")
        kind = _kind_of(endpoint)

        async def handle(request: web.Request) -> web.StreamResponse:
            request_id, version = request[REQUEST_ID], VERSION
            kept_as = _kept_as(request) if endpoint.is_kept else None
            try:
                version = version_of(request)
                if kept_as is not None and (kept := self._answers.peek(kept_as)) is not None:
                    assert isinstance(kept, _Kept), "nothing else is kept"
                    self._gate.actor_of(request, kept.grant)
                    self._count(request, kept.grant, kind)
                    return _in_envelope(kept.answered, request_id, version)
                grant = None if endpoint.is_public else self._gate.grant_of(request)
                actor = NOBODY if grant is None else self._gate.actor_of(request, grant)
                self._count(request, grant, kind)
                site = self._gate.site_of(request, actor)
                environment = self._gate.environment_of(request, actor, site)
                _require(endpoint, actor)
                if endpoint.admit is not None:
                    endpoint.admit(request, actor)
                said: Any = None
                if has_body:
                    said = await body.body(request, timeout_s=self._body_timeout_s)
                    if grant is not None and request.body_exists:  # it came when it liked to
                        self._gate.confirm(request)
                claim = None
                if endpoint.is_creating:
                    target = _target(endpoint, request, site, environment)
                    claim = claim_of(request, actor.ref.id, target, said)
                call = Call(
                    request=request,
                    request_id=request_id,
                    version=version,
                    actor=actor,
                    db=self._records.reader(),
                    found_site=site,
                    found_environment=environment,
                    query=query.query(request),
                    body=said,
                    claim=claim,
                    confirm=partial(self._gate.confirm, request),
                )
                if endpoint.method == "GET":
                    answered = await endpoint.handler(call)
                else:
                    client = self._gate.proxies.client_of(request)
                    with asked_by(Asker(actor.ref, client, request_id)):
                        answered = await endpoint.handler(call)
            except ConnectionError:
                raise  # nobody is there to be answered
            except Exception as error:  # noqa: BLE001 - the ring of a request
                return self.refuse(request, error, version=version)
            if kept_as is not None and grant is not None:
                answered = self._keep(kept_as, grant, answered)
            return _in_envelope(answered, request_id, version)

        return handle

    def _count(self, request: web.Request, grant: Grant | None, kind: Kind) -> None:
        """Raises RateLimitedError when the key made too many requests of that kind."""
        if self._rate_limits is not None and grant is not None:
            request[RATE_HEADERS] = self._rate_limits.take(grant.counted_as, kind).headers()

    def _keep(self, key: Hashable, grant: Grant, answered: Answered) -> Answered:
        """Keep the answer of a read, as JSON, until something is committed.

        Whoever gets it then presents the same key, and that may still be used, from there: it
        would find the same, and may see the same.
        """
        if isinstance(answered, Reply):
            data = written(answered.data)
            answered = Reply(data, answered.status, answered.headers)
        elif isinstance(answered, ListReply):
            data = written(answered.items)
            answered = ListReply(data, answered.next_cursor)
        else:
            return answered
        if len(bytes(data)) <= KEPT_BYTES_MAX:
            self._answers.keep(key, _Kept(grant, answered))
        return answered

    def refuse(
        self, request: web.Request, error: Exception, *, version: str = VERSION
    ) -> web.Response:
        """Answer with what the client may know of `error`; log it when the fault is ours."""
        refusal = refusal_of(error)
        if refusal.row.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request_failed", method=request.method, path=request.path, exc_info=error)
        headers = error.headers if isinstance(error, RateLimitedError) else None
        return self.refusal(request, refusal, version=version, headers=headers)

    def refusal(
        self,
        request: web.Request,
        refusal: Refusal,
        *,
        version: str = VERSION,
        headers: dict[str, str] | None = None,
    ) -> web.Response:
        row = refusal.row
        detail = ErrorDetail(
            row.type,
            row.code,
            refusal.message,
            f"{self._server_url}/errors/{row.code}",
            refusal.param,
        )
        more = dict(headers or {})
        if row.status == HTTPStatus.UNAUTHORIZED:
            more["WWW-Authenticate"] = 'Bearer realm="gitd"'
        answer = json_answer(
            ErrorAnswer(detail, request[REQUEST_ID]),
            status=row.status,
            version=version,
            headers=more,
        )
        if row.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            answer.force_close()  # what is left of the body is not read
        return answer

    def fallback(self, endpoints: Sequence[Endpoint]) -> Handler:
        """Answer what is below /v1 and matches no endpoint: 405 or 404."""
        paths = [(_pattern(endpoint.path), endpoint.method) for endpoint in endpoints]

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                version = version_of(request)
            except RequestError as error:
                return self.refuse(request, error)
            methods = {method for pattern, method in paths if pattern.fullmatch(request.path)}
            if methods:
                allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
                message = f"{request.method} is not for {request.path[:200]}: use {allowed}."
                refusal = Refusal(CODES["request.method_not_allowed"], message)
                headers = {"Allow": allowed}
                return self.refusal(request, refusal, version=version, headers=headers)
            refusal = Refusal(CODES["route.not_found"], f"There is no path {request.path[:200]}.")
            return self.refusal(request, refusal, version=version)

        return handle


def _kept_as(request: web.Request) -> Hashable:
    """Name a read by its path, its query and who asks: by what the key hashes to, not the key."""
    presented = request.headers.get("Authorization", "")
    return request.raw_path, hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()


def _in_envelope(answered: object, request_id: str, version: str) -> web.StreamResponse:
    if isinstance(answered, Reply):
        return json_answer(
            One(answered.data, request_id),
            status=answered.status,
            version=version,
            headers=answered.headers,
        )
    if isinstance(answered, ListReply):
        pagination = Pagination(answered.next_cursor, answered.next_cursor is not None)
        return json_answer(Many(answered.items, pagination, request_id), version=version)
    assert isinstance(answered, web.StreamResponse), "there is no other kind of answer"
    return answered


def _kind_of(endpoint: Endpoint) -> Kind:
    if endpoint.method == "GET":
        return Kind.READ
    return Kind.JOB if endpoint.status == HTTPStatus.ACCEPTED else Kind.WRITE


def _require(endpoint: Endpoint, actor: Actor) -> None:
    if endpoint.scope is not None:
        actor.require(endpoint.scope)
    if endpoint.reach is Reach.SERVER:
        actor.require_unbound()
    elif endpoint.reach is Reach.WHOLE_SITE:
        actor.require_whole_site()


def _target(
    endpoint: Endpoint, request: web.Request, site: Site | None, environment: Environment | None
) -> list[str]:
    """What a request is about, however its path spells it."""
    named = {**request.match_info}
    if site is not None:
        named["site"] = site.id
    if environment is not None:
        named["env"] = environment.id
    return [endpoint.path, *(f"{name}={value}" for name, value in sorted(named.items()))]


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
