"""mf audit: who changed what, when, and from where; and whether nobody changed what is told of it.

`verify` needs no server. The rules are the store's own (`storage.audit_chain`).
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from gitd.cli.client import endpoint
from gitd.cli.exits import CliError, ExitCode
from gitd.cli.options import ListGroup, json_option, list_options
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


class ChangedSinceError(CliError):
    """The log is not as it was written."""

    exit_code = ExitCode.FAILED

    def code(self) -> str:
        return "audit_log.changed"


@click.group(cls=ListGroup)
def audit() -> None:
    """Who changed what, when and from where."""


@audit.command("list")
@list_options
@click.pass_obj
def list_changes(session: Session, limit: int | None) -> None:
    """List who changed what, newest first."""
    page = session.api.some(endpoint("audit-log"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="changes"))


@audit.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="SEQUENCE:DIGEST",
    help="A head that was noted before, which the log must have. May be repeated.",
)
@click.option("--partial", is_flag=True, help="Lines may be missing, as for a key of one site.")
@json_option
@click.pass_obj
def verify_log(session: Session, *, file: Path, heads: tuple[str, ...], partial: bool) -> None:
    """Check an exported audit log without any server: that each line is as it was written, follows
    from the one before, and none is missing.

    FILE is what `mf audit --all --json` printed. Its last digest is the head: `gitd check` and
    `gitd backup` print it too. Note it elsewhere, and give it here later: that newest lines were
    cut off is found by that alone. Of a head from before the first line nobody can tell.
    """
    from storage.audit_chain import check_lines, in_order
    from storage.counted import counted
    from storage.errors import AuditLogInvalidError

    try:
        lines = in_order(json.loads(file.read_bytes()))
        found = check_lines(lines, is_partial=partial, noted=heads)
    except (OSError, ValueError, AuditLogInvalidError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}.") from error
    if found.fault_count:
        more = found.fault_count - len(found.faults)
        told = [*found.faults, *([f"and {more} more"] if more else [])]
        raise ChangedSinceError(f"{file} is not as it was written:", *told)
    fields = {
        "lines": found.count,
        "first": found.first,
        "last": found.last,
        "missing": found.missing,
        "head": found.noted_head,
        "notes": found.notes,
    }

    def tell() -> None:
        are = counted(found.count, "line is as it was", "lines are as they were")
        click.echo(f"{file}: {are} written.")
        if found.missing:
            are = counted(found.missing, "line between them is", "lines between them are")
            click.echo(f"{are} not in it.")
        for note in found.notes:
            click.echo(f"note: {note}")
        click.echo(f"The head is {found.noted_head}.")

    session.show(fields, tell)
