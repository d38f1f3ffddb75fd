"""mf domains: host names of one's own that lead to an environment."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, as_fields, at, text_at
from gitd.cli.confirmation import confirm, yes_option
from gitd.cli.options import (
    ListGroup,
    Place,
    idempotency_option,
    json_option,
    list_options,
    place_options,
)
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.terminal import printable

COLUMNS = (
    Column("HOSTNAME", "hostname", Kind.ID),
    Column("STATUS", "status", Kind.STATUS, rank=1),
    Column("CNAME TO", "dns.cname", rank=2),
    Column("ADDED", "created_at", Kind.TIME, rank=3),
    Column("BY", "actor.label", rank=4),
    Column("ID", "id", Kind.ID, rank=5),
)


@click.group(cls=ListGroup)
def domains() -> None:
    """Custom domains: host names of your own that lead to production or staging."""


@domains.command("list")
@place_options
@list_options
@click.pass_obj
def list_domains(session: Session, place: Place, limit: int | None) -> None:
    """List the custom domains of an environment, newest first."""
    page = session.api.some(place.endpoint("domains"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="domains"))


@domains.command("show")
@click.argument("hostname")
@place_options
@json_option
@click.pass_obj
def show_domain(session: Session, hostname: str, place: Place) -> None:
    """Show one, by its host name or its id, with what to set in its DNS."""
    found = _domain(session, place, hostname)
    session.show(found, lambda: print_fields(found))


@domains.command("add")
@click.argument("hostname")
@place_options
@idempotency_option
@json_option
@click.pass_obj
def add_domain(session: Session, hostname: str, place: Place, idempotency_key: str) -> None:
    """Let a host name lead to an environment, and say what to set in its DNS."""
    data = session.api.post(
        place.endpoint("domains"), {"hostname": hostname}, idempotency_key=idempotency_key
    )
    made = as_fields(data, "domain")
    session.show(made, lambda: _say_added(place, made))


@domains.command("remove")
@click.argument("hostname")
@place_options
@yes_option
@json_option
@click.pass_obj
def remove_domain(session: Session, hostname: str, place: Place, *, yes: bool) -> None:
    """Let a host name, or the one with an id, lead there no more."""
    found = _domain(session, place, hostname)
    name = text_at(found, "hostname") or hostname
    confirm(f"Let {name} lead to {place.env} of {place.site} no more?", yes=yes)
    # By id: what was asked about is what goes, whoever has added the name anew by now.
    deleted = session.api.delete(place.endpoint("domains", text_at(found, "id") or hostname))
    said = f"{name} leads to {place.env} no more; anybody here can have it now"
    session.show(deleted or found, lambda: click.echo(printable(said)))


def _domain(session: Session, place: Place, hostname: str) -> Fields:
    return as_fields(session.api.get(place.endpoint("domains", hostname)), "domain")


def _say_added(place: Place, domain: Fields) -> None:
    name = text_at(domain, "hostname")
    click.echo(printable(f"{name} leads to {place.env} of {place.site}: {text_at(domain, 'url')}"))
    for line in _what_to_set(name, domain):
        click.echo(printable(line), err=True)


def _what_to_set(name: str, domain: Fields) -> list[str]:
    """What makes the name lead to the server, as far as that says so itself."""
    cname, addresses = text_at(domain, "dns.cname"), at(domain, "dns.addresses")
    records = [
        f"{'AAAA' if ':' in address else 'A'} {address}"
        for address in (addresses if isinstance(addresses, list) else [])
        if isinstance(address, str)
    ]
    lines = []
    if cname:
        lines.append(f"Set in its DNS: {name}. CNAME {cname}.")
    if records:
        begin = "or, where it can have no CNAME" if cname else "Set in its DNS"
        lines.append(f"{begin}: {', '.join(records)}")
    return lines or ["Its DNS has to lead to the server; ask its operator where that is."]
