"""mf audit: who changed what, when, and from where."""

from __future__ import annotations

import click

from gitd.cli.client import endpoint
from gitd.cli.options import list_options
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_page

COLUMNS = (
    Column("AT", "created_at", Kind.TIME),
    Column("ACTION", "action"),
    Column("TARGET", "target", Kind.ID),
    Column("BY", "actor.label"),
    Column("KEY", "actor.id", rank=2),
    Column("FROM", "address", rank=1),
    Column("REQUEST", "request_id", rank=3),
)


@click.command("audit")
@list_options
@click.pass_obj
def audit(session: Session, limit: int | None) -> None:
    """List who changed what, newest first."""
    page = session.api.some(endpoint("audit-log"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="changes"))
