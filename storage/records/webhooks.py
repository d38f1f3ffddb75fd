"""Webhooks: who is told of what, the events that are to be told, and their deliveries.

An event is written in the transaction that makes it so, and turned into deliveries afterwards: what
happened is told, whatever crashes in between.
"""

from __future__ import annotations

import sqlite3

from storage.ids import new_id
from storage.model import Delivery, DeliveryStatus, Job, JobStatus, Webhook, WebhookEvent
from storage.records.statements import (
    Page,
    Value,
    insert,
    newest_first,
    texts_of,
    to_text,
    update,
)


def add(db: sqlite3.Connection, webhook: Webhook) -> None:
    insert(db, "webhook", {"id": webhook.id, **_columns(webhook)})


def change(db: sqlite3.Connection, webhook: Webhook) -> None:
    update(db, "webhook", webhook.id, _columns(webhook))


def get(db: sqlite3.Connection, webhook_id: str) -> Webhook | None:
    row = db.execute("SELECT * FROM webhook WHERE id = ?", (webhook_id,)).fetchone()
    return None if row is None else _webhook(row)


def delete(db: sqlite3.Connection, webhook_id: str) -> None:
    db.execute("DELETE FROM webhook WHERE id = ?", (webhook_id,))


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COUNT(*) FROM webhook").fetchone()[0])


def page(
    db: sqlite3.Connection, *, site_id: str | None, before: str | None, limit_count: int
) -> Page[Webhook]:
    """Newest first: all, or those of one site."""
    where: dict[str, Value] = {} if site_id is None else {"site_id": site_id}
    rows, has_more = newest_first(db, "webhook", where, before=before, limit_count=limit_count)
    return Page(tuple(map(_webhook, rows)), has_more)


def listening(db: sqlite3.Connection, site_id: str) -> list[Webhook]:
    """Those that are told of what happens to a site."""
    rows = db.execute(
        "SELECT * FROM webhook WHERE enabled = 1 AND (site_id IS NULL OR site_id = ?) ORDER BY id",
        (site_id,),
    )
    return [_webhook(row) for row in rows]


# -- events ----------------------------------------------------------------------------------------


def note_end(db: sqlite3.Connection, job: Job, at: int, request_id: str | None) -> None:
    """Note that a job succeeded or failed, in the transaction that ends it, if anybody listens."""
    if job.status is JobStatus.CANCELED:
        return
    if db.execute("SELECT 1 FROM webhook WHERE enabled = 1 LIMIT 1").fetchone() is None:
        return
    insert(
        db,
        "webhook_event",
        {"id": new_id("evt"), "job_id": job.id, "created_at": at, "request_id": request_id},
    )


def events(db: sqlite3.Connection, limit_count: int) -> list[WebhookEvent]:
    """Those that no deliveries were made of yet, oldest first."""
    rows = db.execute("SELECT * FROM webhook_event ORDER BY id LIMIT ?", (limit_count,))
    return [
        WebhookEvent(row["id"], row["job_id"], row["created_at"], row["request_id"]) for row in rows
    ]


def forget_event(db: sqlite3.Connection, event_id: str) -> None:
    db.execute("DELETE FROM webhook_event WHERE id = ?", (event_id,))


# -- deliveries ------------------------------------------------------------------------------------


def add_delivery(db: sqlite3.Connection, delivery: Delivery) -> None:
    insert(db, "webhook_delivery", _delivery_columns(delivery))


def get_delivery(db: sqlite3.Connection, delivery_id: str) -> Delivery | None:
    row = db.execute("SELECT * FROM webhook_delivery WHERE id = ?", (delivery_id,)).fetchone()
    return None if row is None else _delivery(row)


def deliveries(
    db: sqlite3.Connection, webhook_id: str, *, before: str | None, limit_count: int
) -> Page[Delivery]:
    rows, has_more = newest_first(
        db, "webhook_delivery", {"webhook_id": webhook_id}, before=before, limit_count=limit_count
    )
    return Page(tuple(map(_delivery, rows)), has_more)


def due(db: sqlite3.Connection, now: int, until: int) -> list[str]:
    """The webhooks that have deliveries whose time has come.

    Nothing is put off beyond `until`: what seems to be was, before the clock was set back.
    """
    rows = db.execute(
        "SELECT DISTINCT webhook_id FROM webhook_delivery"
        " WHERE next_at IS NOT NULL AND (next_at <= ? OR next_at > ?)",  # as its index has them
        (now, until),
    )
    return [row["webhook_id"] for row in rows]


def next_of(db: sqlite3.Connection, webhook_id: str, now: int, until: int) -> Delivery | None:
    """The delivery to a webhook whose time has come first; `until`: see `due`."""
    row = db.execute(
        "SELECT * FROM webhook_delivery WHERE webhook_id = ? AND (next_at <= ? OR next_at > ?)"
        " ORDER BY next_at, id LIMIT 1",
        (webhook_id, now, until),
    ).fetchone()
    return None if row is None else _delivery(row)


def next_due(db: sqlite3.Connection, after: int) -> int | None:
    """When the next delivery is due, of those that are not yet."""
    row = db.execute(
        "SELECT MIN(next_at) FROM webhook_delivery WHERE next_at > ?", (after,)
    ).fetchone()
    return None if row[0] is None else int(row[0])


def note_attempt(db: sqlite3.Connection, delivery: Delivery) -> None:
    """Write how an attempt went; nothing, when its webhook is gone or was turned off meanwhile."""
    now = get_delivery(db, delivery.id)
    if now is not None and (now.next_at is not None or delivery.next_at is None):
        update(db, "webhook_delivery", delivery.id, _delivery_columns(delivery))


def give_up(db: sqlite3.Connection, webhook_id: str, reason: str) -> None:
    """Try none of a webhook's deliveries any more."""
    db.execute(
        "UPDATE webhook_delivery SET next_at = NULL, status = ?, error = ?"
        " WHERE webhook_id = ? AND next_at IS NOT NULL",
        (DeliveryStatus.FAILED.value, reason, webhook_id),
    )


def silence(db: sqlite3.Connection, reason: str) -> list[Webhook]:
    """Turn all webhooks off, and tell nothing of what was to be told; return which were on.

    The database may be older than webhooks.
    """
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'webhook'").fetchone() is None:
        return []
    db.execute("DELETE FROM webhook_event")
    db.execute(
        "UPDATE webhook_delivery SET next_at = NULL, status = ?, error = ?"
        " WHERE next_at IS NOT NULL",
        (DeliveryStatus.FAILED.value, reason),
    )
    were_on = db.execute("SELECT * FROM webhook WHERE enabled = 1 ORDER BY id").fetchall()
    db.execute("UPDATE webhook SET enabled = 0 WHERE enabled = 1")
    return [_webhook(row) for row in were_on]


def forget_deliveries(db: sqlite3.Connection, before: int) -> int:
    """Remove those that were made before that time, and return how many.

    Also what waits still, as behind a receiver that hangs: that is far behind all that is told.
    """
    return db.execute("DELETE FROM webhook_delivery WHERE created_at < ?", (before,)).rowcount


def _columns(webhook: Webhook) -> dict[str, Value]:
    return {
        "url": webhook.url,
        "events": to_text(webhook.events),
        "site_id": webhook.site_id,
        "enabled": int(webhook.is_enabled),
        "sealed": webhook.sealed,
        "created_at": webhook.created_at,
    }


def _webhook(row: sqlite3.Row) -> Webhook:
    return Webhook(
        id=row["id"],
        url=row["url"],
        events=texts_of(row["events"]),
        site_id=row["site_id"],
        is_enabled=bool(row["enabled"]),
        sealed=row["sealed"],
        created_at=row["created_at"],
    )


def _delivery_columns(delivery: Delivery) -> dict[str, Value]:
    return {
        "id": delivery.id,
        "webhook_id": delivery.webhook_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "body": delivery.body,
        "status": delivery.status.value,
        "attempts": delivery.attempts,
        "next_at": delivery.next_at,
        "http_status": delivery.http_status,
        "error": delivery.error,
        "created_at": delivery.created_at,
        "attempted_at": delivery.attempted_at,
    }


def _delivery(row: sqlite3.Row) -> Delivery:
    return Delivery(
        id=row["id"],
        webhook_id=row["webhook_id"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        body=row["body"],
        status=DeliveryStatus(row["status"]),
        attempts=row["attempts"],
        next_at=row["next_at"],
        http_status=row["http_status"],
        error=row["error"],
        created_at=row["created_at"],
        attempted_at=row["attempted_at"],
    )
