"""mf keys: API keys, made, rolled and revoked by a key that may."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import endpoint
from gitd.cli.confirmation import confirm, yes_option
from gitd.cli.exits import CliError
from gitd.cli.options import ListGroup, idempotency_option, json_option, list_options
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.durations import seconds_of
from gitd.families import FAMILIES
from gitd.terminal import printable

COLUMNS = (
    Column("ID", "id", Kind.ID),
    Column("LABEL", "label"),
    Column("SECRET", "hint", rank=2),
    Column("SCOPES", "scopes", rank=3),
    Column("UNTIL", "expires_at", Kind.TIME),
    Column("LAST USED", "last_used_at", Kind.TIME, rank=1),
)


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return seconds_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


expires_option = click.option(
    "--expires-in",
    "ttl_s",
    metavar="DURATION",
    callback=_seconds,
    help="How long it lives, such as 12h, 90d or 4w; a year at most.",
)
cidr_option = click.option(
    "--cidr", "cidrs", metavar="NETWORK", multiple=True, help="Only from this network; repeatable."
)


@click.group(cls=ListGroup)
def keys() -> None:
    """API keys: who may do what, and until when."""


@keys.command("list")
@list_options
@click.pass_obj
def list_keys(session: Session, limit: int | None) -> None:
    """List the API keys that may be seen, newest first; never a secret."""
    page = session.api.some(endpoint("api-keys"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="keys"))


@keys.command("show")
@click.argument("key")
@json_option
@click.pass_obj
def show_key(session: Session, key: str) -> None:
    """Show one API key."""
    found = as_fields(session.api.get(endpoint("api-keys", key)), "API key")
    session.show(found, lambda: print_fields(found))


@keys.command("create")
@click.option("--label", required=True, help="What it is for; releases name it as their actor.")
@click.option("--preset", help="A usual set of scopes: read-only, deploy-bot, ci-terraform.")
@click.option("--scope", "scopes", multiple=True, help="A scope such as deployments:write.")
@click.option("--family", type=click.Choice(FAMILIES), help="Whose it is; a person's by default.")
@click.option("--site", "site_id", metavar="SITE", help="Bind it to this site.")
@click.option("--env", "env_id", metavar="ENV", help="Bind it to this environment of the site.")
@cidr_option
@expires_option
@idempotency_option
@json_option
@click.pass_obj
def create_key(session: Session, /, idempotency_key: str, **asked: object) -> None:
    """Make an API key, and print its secret, once."""
    body = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asked.items()
        if value not in (None, ())
    }
    _show_secret(session, endpoint("api-keys"), body, idempotency_key)


@keys.command("roll")
@click.argument("key")
@click.option(
    "--grace",
    "grace_s",
    metavar="DURATION",
    callback=_seconds,
    help="How long the old secret works too: a day by default, `0s` for not at all.",
)
@expires_option
@idempotency_option
@json_option
@click.pass_obj
def roll_key(
    session: Session, key: str, grace_s: int | None, ttl_s: int | None, idempotency_key: str
) -> None:
    """Give an API key another secret, and print it, once."""
    asked = {"grace_s": grace_s, "ttl_s": ttl_s}
    body: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
    _show_secret(session, endpoint("api-keys", key, "roll"), body, idempotency_key)


@keys.command("set")
@click.argument("key")
@click.option("--label", help="What it is for.")
@cidr_option
@click.option("--any-network", is_flag=True, help="It works from everywhere.")
@json_option
@click.pass_obj
def set_key(
    session: Session, key: str, label: str | None, cidrs: tuple[str, ...], *, any_network: bool
) -> None:
    """Change what an API key is called, or where it works from."""
    if any_network and cidrs:
        raise click.UsageError("--any-network and --cidr exclude each other.")
    body: dict[str, object] = {} if label is None else {"label": label}
    if any_network or cidrs:
        body["cidrs"] = list(cidrs)
    if not body:
        raise click.UsageError("Say what to change: --label, --cidr or --any-network.")
    found = as_fields(session.api.patch(endpoint("api-keys", key), body), "API key")
    session.show(found, lambda: print_fields(found))


@keys.command("revoke")
@click.argument("key")
@click.option("--with-made", is_flag=True, help="The keys that it made too, and that those made.")
@yes_option
@json_option
@click.pass_obj
def revoke_key(session: Session, key: str, *, with_made: bool, yes: bool) -> None:
    """End an API key at once."""
    found = as_fields(session.api.get(endpoint("api-keys", key)), "API key")
    more = " and all that it made" if with_made else ""
    confirm(f"End {key} ({text_at(found, 'label')}){more} at once?", yes=yes)
    query = {"with_made": "true"} if with_made else {}
    deleted = session.api.delete(endpoint("api-keys", key), query)
    session.show(deleted or found, lambda: click.echo(printable(f"{key} is revoked")))


def _show_secret(session: Session, path: str, body: Fields, idempotency_key: str) -> None:
    made = as_fields(session.api.post(path, body, idempotency_key=idempotency_key), "API key")

    def for_people() -> None:
        secret, key_id = text_at(made, "secret"), text_at(made, "id")
        if not secret:
            raise CliError(
                f"the answer with the secret of {key_id} was lost on its way",
                f"`mf keys roll {key_id}` makes another.",
            )
        click.echo(printable(secret))
        until = text_at(made, "expires_at")
        click.echo(printable(f"{key_id}, until {until}. The secret is not shown again."), err=True)

    session.show(made, for_people)
