"""mf status: what runs where of a site, on one screen."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, Page, at, text_at
from gitd.cli.client import Api, endpoint
from gitd.cli.options import Place, list_options, site_option
from gitd.cli.releases import current_release
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_page
from gitd.terminal import printable, printable_lines

COLUMNS = (
    Column("ENV", "environment.slug", Kind.ID),
    Column("STATUS", "environment.status", Kind.STATUS),
    Column("RUNNING", "environment.running.state", Kind.STATUS, rank=3),
    Column("RELEASE", "release.id", Kind.ID, rank=2),
    Column("REF", "release.ref", Kind.REF, rank=3),
    Column("COMMIT", "release.commit", Kind.COMMIT),
    Column("SINCE", "release.deployed_at", Kind.TIME),
    Column("BY", "release.actor.label", rank=4),
    Column("FAILED SINCE", "failed.id", Kind.ID, rank=1),
    Column("URL", "environment.preview_url", Kind.ID),
)
_KINDS = {"production": 0, "staging": 1}
_WORK = ("builds", "deployments")


@click.command("status")
@site_option
@list_options
@click.pass_obj
def status(session: Session, site: str, limit: int | None) -> None:
    """Show what runs on each environment of a site, and what failed there since."""
    api = session.api
    found = api.some(endpoint("sites", site, "environments"), None).items
    shown = sorted(found, key=lambda each: _KINDS.get(text_at(each, "kind"), len(_KINDS)))[:limit]
    rows: list[Fields] = [_row(api, site, environment) for environment in shown]
    page = Page(rows, has_more=len(shown) < len(found))
    session.show(rows, lambda: print_page(page, COLUMNS, what="environments"))
    if session.as_json:
        return
    for row in rows:
        if why := text_at(row, "failed.error.message"):
            head = f"{text_at(row, 'environment.slug')}: {text_at(row, 'failed.id')} failed: "
            click.echo("\n".join(printable_lines(head + why)), err=True)
            if job_id := text_at(row, "failed.job_id"):
                click.echo(printable(f"Its log: mf logs {job_id}"), err=True)


def _row(api: Api, site: str, environment: Fields) -> Fields:
    place = Place(site, text_at(environment, "id"))
    release = current_release(api, place)
    return {
        "environment": environment,
        "release": release,
        "failed": _failed_since(api, place, text_at(release or {}, "deployed_at")),
    }


def _failed_since(api: Api, place: Place, since: str) -> Fields | None:
    """The newest work on the environment, where that failed behind what runs there."""
    newest = [
        item
        for kind in _WORK
        for item in api.some(place.endpoint(kind), 1).items
        if text_at(item, "created_at") > since
    ]
    last = max(newest, key=lambda item: text_at(item, "created_at"), default=None)
    return last if last is not None and at(last, "status") == "failed" else None
