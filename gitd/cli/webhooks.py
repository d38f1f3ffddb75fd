"""mf webhooks: who is told of what happens, and what became of what they were told."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import endpoint
from gitd.cli.confirmation import confirm, yes_option
from gitd.cli.exits import CliError
from gitd.cli.options import ListGroup, idempotency_option, json_option, list_options
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.terminal import printable

EVENTS = (
    "site.deployed",
    "deployment.failed",
    "build.succeeded",
    "build.failed",
    "job.succeeded",
    "job.failed",
)
COLUMNS = (
    Column("ID", "id", Kind.ID),
    Column("URL", "url"),
    Column("EVENTS", "events", rank=2),
    Column("SITE", "site_id", rank=3),
    Column("ENABLED", "enabled", rank=1),
)
DELIVERY_COLUMNS = (
    Column("ID", "id", Kind.ID),
    Column("EVENT", "event_type"),
    Column("STATUS", "status", Kind.STATUS),
    Column("TRIES", "attempts", rank=2),
    Column("ANSWER", "response_status", rank=1),
    Column("ERROR", "error", rank=3),
    Column("CREATED", "created_at", Kind.TIME),
)
events_option = click.option(
    "--event",
    "events",
    multiple=True,
    type=click.Choice(EVENTS),
    help="What it is told of; repeatable.",
)


@click.group(cls=ListGroup)
def webhooks() -> None:
    """Webhooks: who is told of what happens."""


@webhooks.command("list")
@list_options
@click.pass_obj
def list_webhooks(session: Session, limit: int | None) -> None:
    """List the webhooks, newest first."""
    page = session.api.some(endpoint("webhooks"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="webhooks"))


@webhooks.command("show")
@click.argument("webhook")
@json_option
@click.pass_obj
def show_webhook(session: Session, webhook: str) -> None:
    """Show one webhook."""
    found = as_fields(session.api.get(endpoint("webhooks", webhook)), "webhook")
    session.show(found, lambda: print_fields(found))


@webhooks.command("create")
@click.argument("url")
@events_option
@click.option("--site", "site_id", metavar="SITE", help="Only of this site; of all else.")
@idempotency_option
@json_option
@click.pass_obj
def create_webhook(
    session: Session,
    url: str,
    events: tuple[str, ...],
    site_id: str | None,
    idempotency_key: str,
) -> None:
    """Tell a URL what happens; print the secret that signs it, once."""
    body: dict[str, object] = {"url": url}
    if events:
        body["events"] = list(events)
    if site_id is not None:
        body["site_id"] = site_id
    _show_secret(session, endpoint("webhooks"), body, idempotency_key)


@webhooks.command("set")
@click.argument("webhook")
@click.option("--url", help="Where it leads.")
@events_option
@click.option("--enabled/--disabled", default=None, help="Whether it is told anything.")
@json_option
@click.pass_obj
def set_webhook(
    session: Session,
    webhook: str,
    url: str | None,
    events: tuple[str, ...],
    *,
    enabled: bool | None,
) -> None:
    """Change where a webhook leads, or what it is told of."""
    asked = {"url": url, "events": list(events) or None, "enabled": enabled}
    body: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
    if not body:
        raise click.UsageError("Say what to change: --url, --event, --enabled or --disabled.")
    found = as_fields(session.api.patch(endpoint("webhooks", webhook), body), "webhook")
    session.show(found, lambda: print_fields(found))


@webhooks.command("roll")
@click.argument("webhook")
@idempotency_option
@json_option
@click.pass_obj
def roll_webhook(session: Session, webhook: str, idempotency_key: str) -> None:
    """Give a webhook another secret, and print it, once."""
    _show_secret(session, endpoint("webhooks", webhook, "roll"), None, idempotency_key)


@webhooks.command("delete")
@click.argument("webhook")
@yes_option
@json_option
@click.pass_obj
def delete_webhook(session: Session, webhook: str, *, yes: bool) -> None:
    """Tell a webhook nothing more, and forget it."""
    found = as_fields(session.api.get(endpoint("webhooks", webhook)), "webhook")
    confirm(f"Delete {webhook} ({text_at(found, 'url')})?", yes=yes)
    deleted = session.api.delete(endpoint("webhooks", webhook))
    session.show(deleted or found, lambda: click.echo(printable(f"{webhook} is deleted")))


@webhooks.command("deliveries")
@click.argument("webhook")
@list_options
@click.pass_obj
def list_deliveries(session: Session, webhook: str, limit: int | None) -> None:
    """List what a webhook was told, newest first, and what became of it."""
    page = session.api.some(endpoint("webhooks", webhook, "deliveries"), limit)
    session.show(page.items, lambda: print_page(page, DELIVERY_COLUMNS, what="deliveries"))


@webhooks.command("redeliver")
@click.argument("webhook")
@click.argument("delivery")
@idempotency_option
@json_option
@click.pass_obj
def redeliver(session: Session, webhook: str, delivery: str, idempotency_key: str) -> None:
    """Send once more what was sent."""
    path = endpoint("webhooks", webhook, "deliveries", delivery, "redeliver")
    made = as_fields(session.api.post(path, idempotency_key=idempotency_key), "delivery")
    session.show(made, lambda: click.echo(printable(f"{text_at(made, 'id')} is on its way")))


def _show_secret(session: Session, path: str, body: Fields | None, idempotency_key: str) -> None:
    made = as_fields(session.api.post(path, body, idempotency_key=idempotency_key), "webhook")

    def for_people() -> None:
        secret, webhook_id = text_at(made, "secret"), text_at(made, "id")
        if not secret:
            raise CliError(
                f"the answer with the secret of {webhook_id} was lost on its way",
                f"`mf webhooks roll {webhook_id}` makes another.",
            )
        click.echo(printable(secret))
        click.echo(printable(f"{webhook_id}. The secret is not shown again."), err=True)

    session.show(made, for_people)
