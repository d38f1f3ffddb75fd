"""Idempotency: a request that is repeated with its key does its work once.

Source: contract §2 Idempotency.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hooks.errors import IdempotencyKeyReusedError, NotFoundError
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from storage.records import idempotency
from storage.records.idempotency import Claim


class Identified(Protocol):
    """What a request can make: it has an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)
Load = Callable[[sqlite3.Connection, str], T | None]


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What a request made; `replayed` when an earlier one with the same key had made it."""

    value: T
    replayed: bool


async def once(
    jobs: Jobs,
    claim: Claim | None,
    resource_type: str,
    status: int,
    make: Callable[[JobChanges], T],
    load: Load[T],
) -> Made[T]:
    """Run `make` in one transaction, unless the claim's request has run: then load what it made.

    Raises:
        IdempotencyKeyReusedError: The key was used for another request.
    """

    def change(changes: JobChanges) -> Made[T]:
        if claim and (earlier := replay(changes.db, claim, changes.now, load)):
            return earlier
        value = make(changes)
        if claim:
            outcome = idempotency.Outcome(claim.request_sha256, status, resource_type, value.id)
            idempotency.keep(changes.db, claim, outcome, changes.now)
        return Made(value, replayed=False)

    return await jobs.commit(change)


def replay(db: sqlite3.Connection, claim: Claim, now: int, load: Load[T]) -> Made[T] | None:
    """Return what the claim's request made, as it is now; None when it has not run.

    Raises:
        IdempotencyKeyReusedError: The key was used for another request.
        NotFoundError: What it made is gone.
    """
    outcome = idempotency.find(db, claim, now)
    if outcome is None:
        return None
    if outcome.request_sha256 != claim.request_sha256:
        raise IdempotencyKeyReusedError
    value = load(db, outcome.resource_id)
    if value is None:
        raise NotFoundError(outcome.resource_type, outcome.resource_id)
    return Made(value, replayed=True)
