"""mf routes: which branches of a site go where."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, Page, as_fields
from gitd.cli.client import endpoint
from gitd.cli.exits import StrangeAnswerError
from gitd.cli.options import json_option, site_option
from gitd.cli.session import Session
from gitd.cli.tables import Column, print_page

COLUMNS = (Column("PATTERN", "pattern"), Column("TARGET", "target"))


@click.group("routes")
def routes() -> None:
    """Branch routes: the environment that each branch goes to, first match first."""


@routes.command("show")
@site_option
@json_option
@click.pass_obj
def show_routes(session: Session, site: str) -> None:
    """Show a site's branch routes."""
    _show(session, session.api.get(endpoint("sites", site, "branch-routes")))


class RouteType(click.ParamType[dict[str, str]]):
    """`PATTERN=TARGET`; the pattern may hold an equals sign."""

    name = "route"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        pattern, equals, target = value.rpartition("=")
        if not equals or not pattern or not target:
            self.fail(f"{value!r} is no PATTERN=TARGET, such as 'release/*=staging'.", param, ctx)
        return {"pattern": pattern, "target": target}


@routes.command("set")
@site_option
@click.argument("wanted", nargs=-1, required=True, metavar="PATTERN=TARGET...", type=RouteType())
@json_option
@click.pass_obj
def set_routes(session: Session, site: str, wanted: tuple[dict[str, str], ...]) -> None:
    """Replace a site's branch routes. The first that matches a branch wins.

    A pattern is a branch or a glob such as `release/*`; a target is `live`, `staging`, `preview` or
    `ignore`.
    """
    body = {"routes": list(wanted)}
    _show(session, session.api.put(endpoint("sites", site, "branch-routes"), body))


def _show(session: Session, data: object) -> None:
    page = Page(_items(data), has_more=False)
    session.show(data, lambda: print_page(page, COLUMNS, what="routes"))


def _items(data: object) -> list[Fields]:
    items = data.get("routes") if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise StrangeAnswerError("The server's answer has no branch routes.")
    return [as_fields(item, "route") for item in items]
