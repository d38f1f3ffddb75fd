"""Confirmation: of what cannot be taken back. Nobody is asked where nobody can answer."""

from __future__ import annotations

import click

from gitd.cli.screen import may_ask
from gitd.terminal import printable

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Return when it is wanted.

    Raises:
        click.UsageError: There is no terminal to ask on, and no `--yes`.
        click.Abort: The answer is no.
    """
    if yes:
        return
    if not may_ask():
        raise click.UsageError("This cannot be taken back: give --yes to do it without a terminal.")
    click.confirm(printable(question), abort=True, err=True)
