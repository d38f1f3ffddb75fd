"""Webhooks, and what became of what they were told. Source: contract §5 "Webhooks"."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, created
from gitd.api.idempotency import REPLAYED
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from gitd.errors import RequestError
from hooks.errors import NotFoundError, RefusedError
from hooks.idempotency import once
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.webhook_addresses import URL_CHARS_MAX, url_fault
from hooks.webhooks import Messenger, Told, delivery_of, new_secret, seal
from storage.ids import new_id
from storage.model import Action, Delivery, EventType, Webhook
from storage.records import sites, webhooks
from storage.sealing import Vault

PATH = "/v1/webhooks"
WEBHOOKS_COUNT_MAX = 100  # of one server

Url = Annotated[str, msgspec.Meta(max_length=URL_CHARS_MAX)]


class WebhookBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`site_id`: an id or a name; without it, all sites. Without `events`, all of them."""

    url: Url
    events: list[EventType] | None = None
    site_id: str | None = None


class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent stays."""

    url: Url | msgspec.UnsetType = msgspec.UNSET
    events: list[EventType] | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class Webhooks:
    def __init__(self, jobs: Jobs, vault: Vault, messenger: Messenger) -> None:
        self._jobs = jobs
        self._vault = vault
        self._messenger = messenger

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("webhooks", call.actor.site_id)
        (before,) = read_cursor(call.query.cursor, name)
        page = webhooks.page(
            call.db, site_id=call.actor.site_id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        return ListReply([answers.webhook(row) for row in page.items], cursor)

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        return Reply(answers.webhook(_found(call.db, call)))

    async def create(self, call: Call[NoQuery, WebhookBody]) -> Reply:
        """Make a webhook. Its secret is in this answer, and in no other."""
        body = call.body
        url = _checked_url(body.url)
        events = tuple(EventType) if body.events is None else _checked_events(body.events)
        shown: list[str] = []

        def make(changes: JobChanges) -> Webhook:
            if webhooks.count(changes.db) >= WEBHOOKS_COUNT_MAX:
                raise RefusedError(
                    "webhook.too_many", f"There are {WEBHOOKS_COUNT_MAX} webhooks already."
                )
            webhook_id, secret = new_id("whe"), new_secret()
            webhook = Webhook(
                id=webhook_id,
                url=url,
                events=tuple(event.value for event in events),
                site_id=_site_of(changes.db, call, body.site_id),
                is_enabled=True,
                sealed=seal(self._vault, webhook_id, secret),
                created_at=changes.now,
            )
            webhooks.add(changes.db, webhook)
            _note(changes, Action.WEBHOOK_CREATED, webhook)
            shown[:] = [secret]
            return webhook

        made = await once(self._jobs, call.claim, "webhook", 201, make, webhooks.get)
        answer = answers.new_webhook(made.value, shown[0] if shown else None)
        return created(answer, f"{PATH}/{made.value.id}", replayed=made.replayed)

    async def change(self, call: Call[NoQuery, WebhookChange]) -> Reply:
        body = call.body

        def change(changes: JobChanges) -> Webhook:
            webhook = _found(changes.db, call)
            if body.url is not msgspec.UNSET:
                webhook = replace(webhook, url=_checked_url(body.url))
            if body.events is not msgspec.UNSET:
                events = tuple(event.value for event in _checked_events(body.events))
                webhook = replace(webhook, events=events)
            if body.enabled is not msgspec.UNSET:
                webhook = replace(webhook, is_enabled=body.enabled)
                if not body.enabled:
                    webhooks.give_up(changes.db, webhook.id, "The webhook was turned off.")
            webhooks.change(changes.db, webhook)
            _note(changes, Action.WEBHOOK_CHANGED, webhook)
            return webhook

        return Reply(answers.webhook(await self._jobs.commit(change)))

    async def roll(self, call: Call[NoQuery, NoBody]) -> Reply:
        """Give a webhook another secret, from its next delivery on."""
        shown: list[str] = []

        def make(changes: JobChanges) -> Webhook:
            webhook, secret = _found(changes.db, call), new_secret()
            webhook = replace(webhook, sealed=seal(self._vault, webhook.id, secret))
            webhooks.change(changes.db, webhook)
            _note(changes, Action.WEBHOOK_ROLLED, webhook)
            shown[:] = [secret]
            return webhook

        made = await once(self._jobs, call.claim, "webhook", 200, make, webhooks.get)
        answer = answers.new_webhook(made.value, shown[0] if shown else None)
        return Reply(answer, headers=REPLAYED if made.replayed else {})

    async def delete(self, call: Call[NoQuery, NoBody]) -> Reply:
        def change(changes: JobChanges) -> str:
            webhook = _found(changes.db, call)
            webhooks.delete(changes.db, webhook.id)
            _note(changes, Action.WEBHOOK_DELETED, webhook)
            return webhook.id

        return Reply(answers.Deleted(await self._jobs.commit(change)))

    async def list_deliveries(self, call: Call[PageQuery, NoBody]) -> ListReply:
        webhook = _found(call.db, call)
        name = list_name("deliveries", webhook.id)
        (before,) = read_cursor(call.query.cursor, name)
        page = webhooks.deliveries(call.db, webhook.id, before=before, limit_count=call.query.limit)
        cursor = next_cursor(name, page)
        return ListReply([answers.delivery(row) for row in page.items], cursor)

    async def redeliver(self, call: Call[NoQuery, NoBody]) -> Reply:
        """Send once more what was sent, as a delivery of its own."""

        def make(changes: JobChanges) -> Delivery:
            webhook = _found(changes.db, call)
            name = call.named("delivery")
            sent = webhooks.get_delivery(changes.db, name)
            if sent is None or sent.webhook_id != webhook.id:
                raise NotFoundError("delivery", name)
            told = Told(sent.event_id, EventType(sent.event_type), sent.body)
            again = delivery_of(webhook.id, told, changes.now)
            webhooks.add_delivery(changes.db, again)
            _note(changes, Action.WEBHOOK_REDELIVERED, webhook)
            return again

        made = await once(self._jobs, call.claim, "delivery", 201, make, webhooks.get_delivery)
        self._messenger.hurry()
        path = f"{PATH}/{made.value.webhook_id}/deliveries"
        return created(answers.delivery(made.value), path, replayed=made.replayed)


def _found(db: sqlite3.Connection, call: Call[Any, Any]) -> Webhook:
    """The webhook that the path names, if the caller may know of it."""
    webhook = webhooks.get(db, call.named("webhook"))
    if webhook is None or call.actor.site_id not in (None, webhook.site_id):
        raise NotFoundError("webhook", call.named("webhook"))
    return webhook


def _site_of(db: sqlite3.Connection, call: Call[Any, Any], named: str | None) -> str | None:
    """Whose events: the site that is named, or the one that the key is bound to."""
    wanted = call.actor.site_id if named is None else named
    if wanted is None:
        return None
    site = sites.find(db, wanted)
    if site is None or not call.actor.sees_site(site.id):
        raise NotFoundError("site", wanted)
    return site.id


def _checked_url(url: str) -> str:
    if fault := url_fault(url):
        raise RequestError("request.invalid", f"{fault}.", param="url")
    return url


def _checked_events(events: list[EventType]) -> tuple[EventType, ...]:
    if not events:
        raise RequestError("request.invalid", "A webhook has an event at least.", param="events")
    return tuple(dict.fromkeys(events))


def _note(changes: JobChanges, action: Action, webhook: Webhook) -> None:
    changes.note(action, webhook.id, site_id=webhook.site_id)
