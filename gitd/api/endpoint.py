"""An endpoint: a row of the API's table, and what passes through it.

A request becomes a `Call`: who asks, about which site and environment, with which query and body,
all of it checked. A handler makes a `Reply` of it. Both know HTTP only where they must.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from gitd.actors import Actor
from gitd.api import answers
from gitd.api.idempotency import REPLAYED
from gitd.api.reading import NoBody, NoQuery
from hooks.idempotency import Made
from hooks.jobs import QueuePlace
from storage.model import Environment, Job, Site
from storage.records.idempotency import Claim

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)


class Call(msgspec.Struct, Generic[Q, B], frozen=True):
    """A request that may be answered.

    `confirm` raises AuthenticationError or AddressRefusedError when its key is not good any more:
    for answers that take their time.
    """

    request: web.Request
    request_id: str
    version: str
    actor: Actor
    db: sqlite3.Connection
    found_site: Site | None
    found_environment: Environment | None
    query: Q
    body: B
    claim: Claim | None
    confirm: Callable[[], None]

    @property
    def site(self) -> Site:
        assert self.found_site is not None, "the path has {site}"
        return self.found_site

    @property
    def environment(self) -> Environment:
        assert self.found_environment is not None, "the path has {env}"
        return self.found_environment

    def named(self, field: str) -> str:
        """A part of the path, decoded."""
        return self.request.match_info[field]


class Reply(msgspec.Struct, frozen=True):
    """What a handler answers with: one object."""

    data: object
    status: int = 200
    headers: Mapping[str, str] = {}


class ListReply(msgspec.Struct, frozen=True):
    """What a handler answers with: a page of a list."""

    items: Sequence[object] | msgspec.Raw
    next_cursor: str | None


Answered = Reply | ListReply | web.StreamResponse


def accepted(made: Made[Job], place: QueuePlace | None = None) -> Reply:
    """202 and the job, with its place in the queue. Source: contract §3."""
    headers = {"Location": answers.job_path(made.value.id), **(REPLAYED if made.replayed else {})}
    return Reply(answers.job(made.value, place), 202, headers)


def created(data: object, location: str, *, replayed: bool) -> Reply:
    """201 and the object."""
    return Reply(data, 201, {"Location": location, **(REPLAYED if replayed else {})})


class Form(Enum):
    """The form of an answer."""

    ONE = auto()
    LIST = auto()
    RAW = auto()


class Reach(Enum):
    """How far a request reaches, and so which keys it is closed to."""

    PART = auto()
    WHOLE_SITE = auto()
    SERVER = auto()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table: the router and the OpenAPI document are both made from it.

    Attributes:
        scope: What a key needs. None: the handler decides (and `is_public` says if keys count).
        answer: The type of `data`, or of its items; None for a raw answer.
        media_type: Of a raw answer.
        is_creating: It takes an `Idempotency-Key`.
        admit: Raises what keeps a key from what the path names, where no scope says it all: before
            the body and the query are looked at.
        is_live: Its answers follow from more than the records: the queue, what runs.
        errors: The codes that it has of its own, beside those that all have.
    """

    method: str
    path: str
    handler: Callable[[Call[Any, Any]], Awaitable[Answered]]
    summary: str
    scope: str | None = None
    scope_note: str = ""
    answer: type[msgspec.Struct] | None = None
    form: Form = Form.ONE
    status: int = 200
    media_type: str = "application/json"
    body: type[msgspec.Struct] = NoBody
    query: type[msgspec.Struct] = NoQuery
    reach: Reach = Reach.PART
    is_creating: bool = False
    is_public: bool = False
    is_live: bool = False
    admit: Callable[[web.Request, Actor], None] | None = None
    errors: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether its answers follow from the records, the path and the key alone."""
        is_read = self.method == "GET" and self.form is not Form.RAW
        return is_read and self.scope is not None and not self.is_live
