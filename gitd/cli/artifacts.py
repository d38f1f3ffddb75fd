"""mf artifacts: signed build outputs, and the proof that they are what they say."""

from __future__ import annotations

import sys

import click

from gitd.cli.answers import as_fields
from gitd.cli.options import ListGroup, Place, json_option, list_options, place_options
from gitd.cli.proofs import export_artifact, verify_artifact
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page

COLUMNS = (
    Column("ARTIFACT", "id", Kind.ID),
    Column("REF", "ref", Kind.REF),
    Column("COMMIT", "commit", Kind.COMMIT, rank=2),
    Column("FILES", "files", rank=3),
    Column("SIZE", "size", Kind.SIZE, rank=2),
    Column("PINNED", "pinned", Kind.STATUS, rank=4),
    Column("CREATED", "created_at", Kind.TIME, rank=1),
    Column("STATUS", "status", Kind.STATUS, rank=1),
)


@click.group(cls=ListGroup)
def artifacts() -> None:
    """Artifacts that can be deployed onto an environment."""


@artifacts.command("list")
@place_options
@list_options
@click.pass_obj
def list_artifacts(session: Session, place: Place, limit: int | None) -> None:
    """List artifacts, newest first."""
    page = session.api.some(place.endpoint("artifacts"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="artifacts"))


@artifacts.command("show")
@place_options
@click.argument("artifact")
@json_option
@click.pass_obj
def show_artifact(session: Session, place: Place, artifact: str) -> None:
    """Show one artifact, with its digest and signature."""
    path = place.endpoint("artifacts", artifact)
    found = as_fields(session.api.get(path), "artifact")
    session.show(found, lambda: print_fields(found))


@artifacts.command("pin")
@place_options
@click.argument("artifact")
@json_option
@click.pass_obj
def pin_artifact(session: Session, place: Place, artifact: str) -> None:
    """Keep an artifact until it is unpinned. One that has just expired is back with it."""
    answer = session.api.put(place.endpoint("artifacts", artifact, "pin"), {})
    found = as_fields(answer, "artifact")
    session.show(found, lambda: click.echo(f"{artifact} is kept until it is unpinned."))


@artifacts.command("unpin")
@place_options
@click.argument("artifact")
@json_option
@click.pass_obj
def unpin_artifact(session: Session, place: Place, artifact: str) -> None:
    """Keep an artifact only as long as releases, branches or its age do."""
    answer = session.api.delete(place.endpoint("artifacts", artifact, "pin"))
    found = as_fields(answer, "artifact")
    session.show(found, lambda: click.echo(f"{artifact} is not pinned."))


@artifacts.command("manifest")
@place_options
@click.argument("artifact")
@json_option
@click.pass_obj
def show_manifest(session: Session, place: Place, artifact: str) -> None:
    """Print the manifest of files, byte for byte: its digest is the artifact's."""
    _print_content(session, place, artifact, "manifest")


@artifacts.command("provenance")
@place_options
@click.argument("artifact")
@json_option
@click.pass_obj
def show_provenance(session: Session, place: Place, artifact: str) -> None:
    """Print the signed envelope of the artifact's provenance, byte for byte."""
    _print_content(session, place, artifact, "provenance")


artifacts.add_command(export_artifact)
artifacts.add_command(verify_artifact)


def _print_content(session: Session, place: Place, artifact: str, name: str) -> None:
    path = place.endpoint("artifacts", artifact, name)
    click.echo(session.api.content(path), nl=sys.stdout.isatty())
