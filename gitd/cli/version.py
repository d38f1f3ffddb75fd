"""mf version."""

from __future__ import annotations

import click

from gitd.cli.client import VERSION
from gitd.cli.options import json_option
from gitd.cli.session import Session


@click.command("version")
@json_option
@click.pass_obj
def version(session: Session) -> None:
    """Print the version of mf and of the API that it speaks."""
    from importlib.metadata import version as version_of

    release = version_of("gitd")
    session.show(
        {"mf": release, "api": VERSION},
        lambda: click.echo(f"mf {release}, API {VERSION}"),
    )
