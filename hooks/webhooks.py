"""Webhooks: whoever wants to hear of what happens is sent it, signed, until it is taken.

Each event is told at least once, and each delivery is tried again with growing pauses. Source:
contract §5 "Webhooks".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import aiohttp
import structlog
from aiohttp import hdrs

from hooks.background import for_ever
from hooks.clock import Clock
from hooks.http_server import SERVER
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.webhook_addresses import PrivateAddressError, Resolver, check_literal
from storage.errors import SealBrokenError, StorageError
from storage.ids import new_id
from storage.model import (
    Delivery,
    DeliveryStatus,
    EventType,
    Job,
    JobStatus,
    JobType,
    Webhook,
    WebhookEvent,
)
from storage.records import jobs as job_rows
from storage.records import webhooks
from storage.records.db import mapped_errors
from storage.sealing import Vault

log = structlog.get_logger(__name__)

SIGNATURE_HEADER: Final = "Forge-Signature"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the head of every secret
PAUSES_S: Final = (10, 60, 300, 1800, 7200, 18_000, 36_000)
"""What is waited before each further attempt: eight in all, over 18 hours."""
TIMEOUT_S: Final = 10.0
EVENTS_AT_ONCE: Final = 100
LOOK_EVERY_S: Final = 60.0
FAILED_S: Final = 1.0
ERROR_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of an event: its id, its type, and the body of the request as it is sent."""

    event_id: str
    event_type: EventType
    body: bytes


Render = Callable[[sqlite3.Connection, WebhookEvent, Job, EventType, str], bytes | None]
"""Makes the body for an event of a job: `data` for that type, under that id of an event. None when
there is nothing to tell of it any more.
"""


def types_of(job: Job) -> tuple[EventType, ...]:
    """What a job that ended is told as."""
    is_good = job.status is JobStatus.SUCCEEDED
    is_build = job.type is JobType.BUILD_RUN
    if is_good:
        own = EventType.BUILD_SUCCEEDED if is_build else EventType.SITE_DEPLOYED
        return own, EventType.JOB_SUCCEEDED
    own = EventType.BUILD_FAILED if is_build else EventType.DEPLOYMENT_FAILED
    return own, EventType.JOB_FAILED


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The header of a delivery: `t=UNIX,v1=HEX`, an HMAC-SHA256 of the time, a dot and the body."""
    mac = hmac.new(secret.encode(), b"%d.%b" % (at_s, body), hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


def seal(vault: Vault, webhook_id: str, secret: str) -> bytes:
    return vault.seal(secret.encode(), place=_place(webhook_id))


def after(delivery: Delivery, *, now: int, http_status: int | None, error: str | None) -> Delivery:
    """The delivery after an attempt: over, when it was taken or was tried often enough."""
    attempts = delivery.attempts + 1
    is_taken = error is None
    is_over = is_taken or attempts > len(PAUSES_S)
    status = DeliveryStatus.SUCCEEDED if is_taken else DeliveryStatus.FAILED
    return replace(
        delivery,
        attempts=attempts,
        status=status if is_over else DeliveryStatus.QUEUED,
        next_at=None if is_over else now + 1000 * PAUSES_S[attempts - 1],
        http_status=http_status,
        error=None if error is None else error[:ERROR_CHARS_MAX],
        attempted_at=now,
    )


class Messenger:
    """Makes deliveries of events, and sends them: to each webhook one at a time, and to all of them
    at once. Belongs to one event loop.
    """

    def __init__(
        self, jobs: Jobs, vault: Vault, render: Render, *, may_be_private: bool = False
    ) -> None:
        """`may_be_private`: webhooks may lead to addresses of this machine and its networks."""
        self._jobs = jobs
        self._records = jobs.records
        self._vault = vault
        self._render = render
        self._may_be_private = may_be_private
        self.attempts: Counter[DeliveryStatus] = Counter()  # by what each left its delivery as
        self._is_new = asyncio.Event()
        self._busy: set[str] = set()
        self._unnoted: dict[str, Delivery] = {}  # what was tried last, by webhook
        self._tls: ssl.SSLContext | None = None
        jobs.watch(self._on_job)

    @property
    def _clock(self) -> Clock:
        return self._jobs.clock

    def hurry(self) -> None:
        """There is something to send."""
        self._is_new.set()

    async def run(self) -> None:
        """Send what is to be sent, for ever."""
        async with self._session() as session, asyncio.TaskGroup() as sending:
            turn = partial(self._turn, session, sending)
            await for_ever(turn, failed="webhooks_not_told", pause_s=FAILED_S)

    async def _turn(self, session: aiohttp.ClientSession, sending: asyncio.TaskGroup) -> None:
        """Begin what is to be sent now, and rest until there is more."""
        self._is_new.clear()
        with mapped_errors():
            await self._tell_all()
            self._begin_due(session, sending)
            pause_s = self._pause_s()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._is_new.wait()

    def _on_job(self, job: Job) -> None:
        if job.status.is_final:
            self._is_new.set()

    def _now_and_last(self) -> tuple[int, int]:
        """The time, and the last one that an attempt may be put off to."""
        now = self._clock()
        return now, now + 1000 * max(PAUSES_S)

    def _pause_s(self) -> float:
        now = self._clock()
        due_at = webhooks.next_due(self._records.reader(), now)
        return LOOK_EVERY_S if due_at is None else min(LOOK_EVERY_S, (due_at - now) / 1000)

    async def _tell_all(self) -> None:
        """Make deliveries of all events that there are."""
        while found := webhooks.events(self._records.reader(), EVENTS_AT_ONCE):

            def change(changes: JobChanges, found: Sequence[WebhookEvent] = found) -> None:
                for event in found:
                    self._tell_apart(changes, event)

            await self._jobs.commit(change)

    def _tell_apart(self, changes: JobChanges, event: WebhookEvent) -> None:
        """Tell of an event, or forget it: none is met again at each start for ever."""
        webhooks.forget_event(changes.db, event.id)
        try:
            with changes.apart():
                self._tell(changes, event)
        except StorageError:
            raise
        except Exception:  # the ring of an event
            log.exception("event_not_told", event_id=event.id, job_id=event.job_id)

    def _tell(self, changes: JobChanges, event: WebhookEvent) -> None:
        db = changes.db
        job = job_rows.get(db, event.job_id)
        if job is None:
            return
        listening = webhooks.listening(db, job.site_id)
        for number, event_type in enumerate(types_of(job)):
            wanted = [webhook for webhook in listening if event_type in webhook.events]
            event_id = event.id if number == 0 else new_id("evt")
            body = self._render(db, event, job, event_type, event_id) if wanted else None
            for webhook in wanted if body is not None else ():
                assert body is not None, "looked at just now"
                told = Told(event_id, event_type, body)
                webhooks.add_delivery(db, delivery_of(webhook.id, told, changes.now))

    def _begin_due(self, session: aiohttp.ClientSession, sending: asyncio.TaskGroup) -> None:
        """Send to each webhook that has something due, whatever keeps the others."""
        for webhook_id in webhooks.due(self._records.reader(), *self._now_and_last()):
            if webhook_id not in self._busy:
                self._busy.add(webhook_id)
                sending.create_task(self._send_to(session, webhook_id))

    async def _send_to(self, session: aiohttp.ClientSession, webhook_id: str) -> None:
        """Send a webhook what is due, one behind the other."""
        reader = self._records.reader()
        try:
            with mapped_errors():
                while delivery := webhooks.next_of(reader, webhook_id, *self._now_and_last()):
                    webhook = webhooks.get(reader, webhook_id)
                    if webhook is None:
                        return
                    tried = self._unnoted.get(webhook_id)
                    if tried is None or tried.id != delivery.id:
                        tried = await self._attempt(session, webhook, delivery)
                    # A disk that is full lets it not be noted: then that is tried again, not sent.
                    self._unnoted[webhook_id] = tried
                    await self._jobs.commit(partial(_note_attempt, tried))
                    del self._unnoted[webhook_id]
                    self.attempts[tried.status] += 1
        except Exception:  # the ring of a webhook: it ends no other's
            log.exception("webhook_not_sent", webhook_id=webhook_id)
            await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._busy.discard(webhook_id)
            self._is_new.set()

    async def _attempt(
        self, session: aiohttp.ClientSession, webhook: Webhook, delivery: Delivery
    ) -> Delivery:
        http_status, error = None, None
        try:
            http_status = await self._post(session, webhook, delivery)
            if not 200 <= http_status < 300:
                error = f"The receiver answered {http_status}."
        except SealBrokenError:
            error = "The server cannot open this webhook's secret: roll it."
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as failure:
            error = _reason(failure)
        except Exception as failure:  # the ring of a delivery
            log.exception("webhook_failed", webhook_id=webhook.id)
            error = f"The server failed: {type(failure).__name__}."
        if error is not None:
            log.info("webhook_not_taken", webhook_id=webhook.id, reason=error)
        return after(delivery, now=self._clock(), http_status=http_status, error=error)

    async def _post(
        self, session: aiohttp.ClientSession, webhook: Webhook, delivery: Delivery
    ) -> int:
        if not self._may_be_private:
            check_literal(webhook.url)
        secret = self._vault.unseal(webhook.sealed, place=_place(webhook.id)).decode()
        headers = {
            hdrs.CONTENT_TYPE: "application/json",
            hdrs.USER_AGENT: SERVER,
            SIGNATURE_HEADER: signature(secret, self._clock() // 1000, delivery.body),
        }
        is_https = webhook.url.lower().startswith("https:")
        async with session.post(
            webhook.url,
            data=delivery.body,
            headers=headers,
            allow_redirects=False,
            ssl=await self._trusted() if is_https else True,
        ) as answer:
            return answer.status

    async def _trusted(self) -> ssl.SSLContext:
        """The authorities that this machine trusts, read when they are first asked for."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(_trusted_here)
        return self._tls

    def _session(self) -> aiohttp.ClientSession:
        resolver = Resolver(may_be_private=self._may_be_private)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, force_close=True, use_dns_cache=False, resolver=resolver
            ),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )


def delivery_of(webhook_id: str, told: Told, now: int) -> Delivery:
    """A new delivery, to be sent at once."""
    return Delivery(
        id=new_id("whd"),
        webhook_id=webhook_id,
        event_id=told.event_id,
        event_type=told.event_type.value,
        body=told.body,
        status=DeliveryStatus.QUEUED,
        attempts=0,
        next_at=now,
        http_status=None,
        error=None,
        created_at=now,
        attempted_at=None,
    )


def _trusted_here() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _note_attempt(delivery: Delivery, changes: JobChanges) -> None:
    webhooks.note_attempt(changes.db, delivery)


def _place(webhook_id: str) -> str:
    return f"webhook {webhook_id}"


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return f"The receiver did not answer within {TIMEOUT_S:g} s."
    if isinstance(failure, aiohttp.ClientConnectorCertificateError):
        why = getattr(failure.certificate_error, "verify_message", "") or "it is not valid"
        return f"The receiver's certificate was refused: {why}."
    if isinstance(failure, aiohttp.ClientConnectorError):
        inner = failure.os_error
        failure = inner if isinstance(inner, PrivateAddressError) else failure
    return str(failure) or type(failure).__name__
