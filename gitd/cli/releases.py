"""mf releases: what ran on an environment, and when."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, at
from gitd.cli.client import Api
from gitd.cli.options import Place, list_options, place_options
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_page

COLUMNS = (
    Column("RELEASE", "id", Kind.ID),
    Column("NOW", "current", Kind.STATUS),
    Column("REF", "ref", Kind.REF),
    Column("COMMIT", "commit", Kind.COMMIT),
    Column("WHY", "trigger", rank=2),
    Column("CONFIG", "config_version", rank=5),
    Column("ARTIFACT", "artifact_id", Kind.ID, rank=6),
    Column("BY", "actor.label", rank=3),
    Column("KEPT", "available", Kind.FLAG, rank=4),
    Column("DEPLOYED", "deployed_at", Kind.TIME, rank=1),
)


@click.command("releases")
@place_options
@list_options
@click.pass_obj
def releases(session: Session, place: Place, limit: int | None) -> None:
    """List what ran on an environment, newest first."""
    page = session.api.some(place.endpoint("releases"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="releases"))


def current_release(api: Api, place: Place) -> Fields | None:
    """What runs on the environment now. It is the newest, so that one page finds it."""
    for page in api.pages(place.endpoint("releases"), {"limit": 5}):
        for release in page.items:
            if at(release, "current") is True:
                return release
    return None
