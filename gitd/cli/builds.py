"""mf build, mf builds: runs that turn a ref into an artifact."""

from __future__ import annotations

import click

from gitd.cli.answers import Job, as_fields
from gitd.cli.exits import ExitCode
from gitd.cli.options import (
    Following,
    ListGroup,
    Place,
    json_option,
    list_options,
    place_options,
    starting_options,
)
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.cli.waiting import started

COLUMNS = (
    Column("BUILD", "id", Kind.ID),
    Column("STATUS", "status", Kind.STATUS),
    Column("REF", "ref", Kind.REF),
    Column("COMMIT", "commit", Kind.COMMIT, rank=2),
    Column("ARTIFACT", "artifact_id", Kind.ID, rank=4),
    Column("CREATED", "created_at", Kind.TIME, rank=1),
)


@click.command("build")
@place_options
@click.option(
    "--ref",
    metavar="REF",
    help="A branch, tag, full ref or commit. By default the tip of the environment's branch.",
)
@click.option("--clean", is_flag=True, help="Do not use the build cache.")
@click.option("--deploy", is_flag=True, help="Go on to deploy what the build makes.")
@starting_options
@click.pass_obj
def build(
    session: Session,
    place: Place,
    following: Following,
    ref: str | None,
    idempotency_key: str,
    *,
    clean: bool,
    deploy: bool,
    wait: bool,
) -> ExitCode:
    """Build a ref into an artifact."""
    body: dict[str, object] = {"ref": ref} if ref is not None else {}
    body |= {name: True for name, wanted in (("clean", clean), ("deploy", deploy)) if wanted}
    path = place.endpoint("builds")
    job = Job.of(session.api.post(path, body, idempotency_key=idempotency_key))
    return started(session, job, wait=wait, following=following)


@click.group(cls=ListGroup)
def builds() -> None:
    """Builds of an environment."""


@builds.command("list")
@place_options
@list_options
@click.pass_obj
def list_builds(session: Session, place: Place, limit: int | None) -> None:
    """List builds, newest first."""
    page = session.api.some(place.endpoint("builds"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="builds"))


@builds.command("show")
@place_options
@click.argument("build_id", metavar="BUILD")
@json_option
@click.pass_obj
def show_build(session: Session, place: Place, build_id: str) -> None:
    """Show one build."""
    path = place.endpoint("builds", build_id)
    found = as_fields(session.api.get(path), "build")
    session.show(found, lambda: print_fields(found))
