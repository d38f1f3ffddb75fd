"""mf sites: the codebases, each with its repository and its environments."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import endpoint
from gitd.cli.confirmation import confirm, yes_option
from gitd.cli.options import (
    ListGroup,
    expect_changes,
    idempotency_option,
    json_option,
    list_options,
    policy_option,
)
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.terminal import printable

COLUMNS = (
    Column("NAME", "name"),
    Column("ID", "id", Kind.ID),
    Column("DEFAULT BRANCH", "default_branch", rank=1),
    Column("CREATED", "created_at", Kind.TIME, rank=2),
)


@click.group(cls=ListGroup)
def sites() -> None:
    """Sites: codebases with a repository and environments."""


@sites.command("list")
@list_options
@click.pass_obj
def list_sites(session: Session, limit: int | None) -> None:
    """List the sites that the key may see."""
    page = session.api.some(endpoint("sites"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="sites"))


@sites.command("show")
@click.argument("site")
@json_option
@click.pass_obj
def show_site(session: Session, site: str) -> None:
    """Show one site."""
    found = as_fields(session.api.get(endpoint("sites", site)), "site")
    session.show(found, lambda: print_fields(found))


@sites.command("capabilities")
@click.argument("site")
@json_option
@click.pass_obj
def show_capabilities(session: Session, site: str) -> None:
    """Show what a site can do on this server, and the key on it."""
    found = as_fields(session.api.get(endpoint("sites", site, "capabilities")), "site")
    session.show(found, lambda: print_fields(found))


@sites.command("create")
@click.argument("name")
@click.option(
    "--default-branch",
    metavar="BRANCH",
    help="The branch that goes live. Without it `main`, or `master` where that is pushed first.",
)
@idempotency_option
@json_option
@click.pass_obj
def create_site(
    session: Session, name: str, default_branch: str | None, idempotency_key: str
) -> None:
    """Make a site, with a repository to push to."""
    body = {"name": name} | ({"default_branch": default_branch} if default_branch else {})
    data = session.api.post(endpoint("sites"), body, idempotency_key=idempotency_key)
    made = as_fields(data, "site")
    session.show(made, lambda: _say_made(session.server, made))


def _say_made(server: str, site: Fields) -> None:
    name = text_at(site, "name")
    git_url = text_at(site, "git_url") or f"{server.rstrip('/')}/{name}.git"
    click.echo(printable(f"{name} is made: {text_at(site, 'id')}"))
    click.echo(printable(f"Push to it: git remote add managed {git_url}"), err=True)
    branch = text_at(site, "default_branch") or "main"
    click.echo(printable(f"            git push managed {branch}"), err=True)


@sites.command("set")
@click.argument("site")
@click.option(
    "--default-branch",
    metavar="BRANCH",
    help="The branch that goes live, and that a clone checks out. The branch route of the one "
    "before is its from then on, unless it has its own: one that does not go live is refused.",
)
@policy_option
@json_option
@click.pass_obj
def set_site(session: Session, site: str, default_branch: str | None, policy: Fields) -> None:
    """Change a site's settings."""
    changes = {**policy}
    if default_branch is not None:
        changes["default_branch"] = default_branch
    expect_changes(changes)
    changed = as_fields(session.api.patch(endpoint("sites", site), changes), "site")
    session.show(changed, lambda: print_fields(changed))


@sites.command("delete")
@click.argument("site")
@yes_option
@json_option
@click.pass_obj
def delete_site(session: Session, site: str, *, yes: bool) -> None:
    """Delete a site, its repository and all that runs on its environments."""
    api = session.api
    found = as_fields(api.get(endpoint("sites", site)), "site")
    name = text_at(found, "name") or site
    confirm(f"Delete {name}, its repository and its environments?", yes=yes)
    # By id: what was asked about is what is deleted, whatever has the name by now.
    deleted = api.delete(endpoint("sites", text_at(found, "id") or site))
    session.show(deleted or found, lambda: click.echo(printable(f"{name} is deleted")))
