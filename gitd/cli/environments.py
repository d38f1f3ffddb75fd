"""mf env, mf url: where a site's releases run."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, as_fields, at, text_at
from gitd.cli.client import endpoint
from gitd.cli.confirmation import confirm, yes_option
from gitd.cli.exits import StrangeAnswerError
from gitd.cli.options import (
    ListGroup,
    Place,
    expect_changes,
    idempotency_option,
    json_option,
    list_options,
    place_options,
    policy_option,
    site_option,
)
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.terminal import printable

COLUMNS = (
    Column("ENV", "slug", Kind.ID),
    Column("KIND", "kind", rank=2),
    Column("BRANCH", "branch", rank=3),
    Column("STATUS", "status", Kind.STATUS, rank=1),
    Column("RUNNING", "running.state", Kind.STATUS, rank=1),
    Column("RESTARTS", "running.restarts", rank=1),
    Column("URL", "preview_url", Kind.ID),
    Column("DOMAINS", "domains", rank=2),
    Column("ID", "id", Kind.ID, rank=4),
)


@click.group(cls=ListGroup)
def env() -> None:
    """Environments: production, staging, and a preview per branch."""


@env.command("list")
@site_option
@click.option("--branch", metavar="BRANCH", help="Only the environment of this branch.")
@list_options
@click.pass_obj
def list_environments(session: Session, site: str, branch: str | None, limit: int | None) -> None:
    """List a site's environments."""
    query = {"branch": branch} if branch else {}
    page = session.api.some(endpoint("sites", site, "environments"), limit, query)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="environments"))


@env.command("show")
@site_option
@click.argument("env")
@json_option
@click.pass_obj
def show_environment(session: Session, site: str, env: str) -> None:
    """Show one environment."""
    found = _environment(session, Place(site, env))
    session.show(found, lambda: print_fields(found))


@env.command("create")
@site_option
@click.option("--branch", required=True, metavar="BRANCH", help="The branch that it shows.")
@click.option("--kind", default="preview", show_default=True, help="The environment's kind.")
@click.option(
    "--ephemeral/--no-ephemeral",
    default=None,
    help="Whether it may be removed when it is not used. By default it may.",
)
@idempotency_option
@json_option
@click.pass_obj
def create_environment(
    session: Session,
    site: str,
    branch: str,
    kind: str,
    idempotency_key: str,
    *,
    ephemeral: bool | None,
) -> None:
    """Make a preview for a branch, before its first push."""
    body: dict[str, object] = {"kind": kind, "branch": branch}
    if ephemeral is not None:
        body["ephemeral"] = ephemeral
    path = endpoint("sites", site, "environments")
    made = as_fields(session.api.post(path, body, idempotency_key=idempotency_key), "environment")

    def for_people() -> None:
        slug, preview_url = text_at(made, "slug"), text_at(made, "preview_url")
        click.echo(printable(f"{slug or text_at(made, 'id')} is made: {preview_url}"))

    session.show(made, for_people)


@env.command("set")
@site_option
@click.argument("env")
@policy_option
@json_option
@click.pass_obj
def set_environment(session: Session, site: str, env: str, policy: Fields) -> None:
    """Change an environment's settings."""
    expect_changes(policy)
    changed = as_fields(session.api.patch(Place(site, env).endpoint(), policy), "environment")
    session.show(changed, lambda: print_fields(changed))


def _asked_for(session: Session, site: str, env: str, what: str, said: str) -> None:
    found = as_fields(session.api.post(Place(site, env).endpoint(what)), "environment")
    name = text_at(found, "slug") or env
    session.show(found, lambda: click.echo(printable(said.format(name, at(found, "expires_at")))))


@env.command("renew")
@site_option
@click.argument("env")
@json_option
@click.pass_obj
def renew_environment(session: Session, site: str, env: str) -> None:
    """Begin the time anew after which an unused preview is removed."""
    _asked_for(session, site, env, "renew", "{0} stays until {1} at least")


@env.command("suspend")
@site_option
@click.argument("env")
@json_option
@click.pass_obj
def suspend_environment(session: Session, site: str, env: str) -> None:
    """Let an environment serve nothing until it is resumed."""
    _asked_for(session, site, env, "suspend", "{0} is suspended")


@env.command("resume")
@site_option
@click.argument("env")
@json_option
@click.pass_obj
def resume_environment(session: Session, site: str, env: str) -> None:
    """Let an environment serve again what it served."""
    _asked_for(session, site, env, "resume", "{0} is active")


@env.command("delete")
@site_option
@click.argument("env")
@yes_option
@json_option
@click.pass_obj
def delete_environment(session: Session, site: str, env: str, *, yes: bool) -> None:
    """Tear a preview down."""
    found = _environment(session, Place(site, env))
    name = text_at(found, "slug") or env
    confirm(f"Tear {name} of {site} down?", yes=yes)
    deleted = session.api.delete(Place(site, text_at(found, "id") or env).endpoint())
    session.show(deleted or found, lambda: click.echo(printable(f"{name} is torn down")))


@click.command("url")
@place_options
@click.option("--browser", is_flag=True, help="Open it in a browser too.")
@json_option
@click.pass_obj
def url(session: Session, place: Place, *, browser: bool) -> None:
    """Print the address of an environment."""
    found = _environment(session, place)
    address = text_at(found, "preview_url")
    if not address:
        raise StrangeAnswerError(f"The server's answer has no address of {place.env}.")
    session.show(found, lambda: click.echo(printable(address)))
    if browser and address.startswith(("http://", "https://")):
        click.launch(address)


def _environment(session: Session, place: Place) -> Fields:
    return as_fields(session.api.get(place.endpoint()), "environment")
