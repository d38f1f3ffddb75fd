"""mf deploy, promote, rollback, restart and deployments: artifacts onto environments."""

from __future__ import annotations

import click

from gitd.cli.answers import Fields, Job, as_fields, text_at
from gitd.cli.client import Api
from gitd.cli.exits import CliError, ExitCode, RefusedError
from gitd.cli.options import (
    Following,
    ListGroup,
    Place,
    json_option,
    list_options,
    place_options,
    starting_options,
)
from gitd.cli.releases import current_release
from gitd.cli.session import Session
from gitd.cli.tables import COMMIT_CHARS, Column, Kind, print_fields, print_page
from gitd.cli.waiting import started
from gitd.terminal import printable

COLUMNS = (
    Column("DEPLOYMENT", "id", Kind.ID),
    Column("STATUS", "status", Kind.STATUS),
    Column("TRIGGER", "trigger"),
    Column("ARTIFACT", "artifact_id", Kind.ID, rank=4),
    Column("BY", "actor.label", rank=2),
    Column("CREATED", "created_at", Kind.TIME, rank=1),
)


@click.command("deploy")
@click.argument("artifact")
@place_options
@starting_options
@click.pass_obj
def deploy(
    session: Session,
    artifact: str,
    place: Place,
    following: Following,
    idempotency_key: str,
    *,
    wait: bool,
) -> ExitCode:
    """Roll an artifact onto an environment, without a build."""
    path = place.endpoint("deployments")
    body = {"artifact_id": artifact}
    job = Job.of(session.api.post(path, body, idempotency_key=idempotency_key))
    return started(session, job, wait=wait, following=following)


@click.command("promote")
@place_options
@click.option("--to", "to_env", required=True, metavar="ENV", help="A slug, an id, or a kind.")
@starting_options
@click.pass_obj
def promote(
    session: Session,
    place: Place,
    following: Following,
    to_env: str,
    idempotency_key: str,
    *,
    wait: bool,
) -> ExitCode:
    """Roll what runs on one environment onto another, without a build."""
    path = place.endpoint("promote")
    body = {"to_env": to_env}
    job = Job.of(session.api.post(path, body, idempotency_key=idempotency_key))
    return started(session, job, wait=wait, following=following)


@click.command("rollback")
@click.argument("back_from", required=False, metavar="[DEPLOYMENT|RELEASE]")
@place_options
@click.option(
    "--config",
    type=click.Choice(["then", "now"]),
    default="then",
    show_default=True,
    help="The variables and secrets that its programs are given: as then, or as set now.",
)
@starting_options
@click.pass_obj
def rollback(
    session: Session,
    back_from: str | None,
    place: Place,
    following: Following,
    config: str,
    idempotency_key: str,
    *,
    wait: bool,
) -> ExitCode:
    """Go back to an earlier release, without a build.

    Without an id, back to the release before the one that runs now. With a deployment's id, back to
    the release before that deployment. With a release's id, back to that very release.
    """
    before = _running(session, place, is_needed=back_from is None)
    named = back_from or _deployment_of(session.api, place, before)
    path = place.endpoint("deployments", named, "rollback")
    body = {"config": config} if config != "then" else None
    job = Job.of(session.api.post(path, body, idempotency_key=idempotency_key))
    code = started(session, job, wait=wait, following=following)
    if code is ExitCode.OK and not session.as_json:
        for line in _what_comes_back(session.api, place, job, before):
            click.echo(printable(line), err=True)
    return code


@click.command("restart")
@place_options
@starting_options
@click.pass_obj
def restart(
    session: Session, place: Place, following: Following, idempotency_key: str, *, wait: bool
) -> ExitCode:
    """Roll what runs on an environment once more, so that its program begins anew, with no gap."""
    path = place.endpoint("restart")
    job = Job.of(session.api.post(path, idempotency_key=idempotency_key))
    return started(session, job, wait=wait, following=following)


def _running(session: Session, place: Place, *, is_needed: bool) -> Fields | None:
    """The release that runs now, if any. Where it only adds to what is said, it may be missing."""
    if session.as_json and not is_needed:
        return None
    try:
        return current_release(session.api, place)
    except CliError:
        if is_needed:
            raise
        return None


def _what_comes_back(api: Api, place: Place, job: Job, before: Fields | None) -> list[str]:
    """Name the commit, and warn where it ran already: what is wrong with it is wrong still."""
    try:
        path = place.endpoint("deployments", job.resource("id"))
        deployment = as_fields(api.get(path), "deployment")
    except (CliError, click.UsageError):
        return []  # it only adds to what is said
    artifact, commit = text_at(deployment, "artifact_id"), text_at(deployment, "commit")
    lines = [f"Back to {f'commit {commit[:COMMIT_CHARS]}, ' if commit else ''}{artifact}"]
    is_replayed = before is not None and text_at(before, "deployment_id") == deployment.get("id")
    if before is not None and text_at(before, "artifact_id") == artifact and not is_replayed:
        here = f"--site {place.site} --env {place.env}"
        lines += [
            f"Warning: {text_at(before, 'id')} ran that very artifact: no file differs.",
            f"What else ran:   mf releases {here}",
            f"Back to that:    mf rollback RELEASE {here}",
        ]
    return lines


def _deployment_of(api: Api, place: Place, release: Fields | None) -> str:
    """The deployment that made the current release."""
    if release is None:
        raise _nothing_runs(api, place)
    named = text_at(release, "deployment_id")
    if named:
        return named
    path = place.endpoint("deployments")
    for page in api.pages(path):
        for deployment in page.items:
            if text_at(deployment, "release_id") == text_at(release, "id"):
                return text_at(deployment, "id")
    raise api.refusal(
        409, "release.no_previous", f"No deployment of {text_at(release, 'id')} is to be seen."
    )


def _nothing_runs(api: Api, place: Place) -> RefusedError:
    return api.refusal(409, "environment.nothing_running", f"Nothing runs on {place.env} yet.")


@click.group(cls=ListGroup)
def deployments() -> None:
    """Deployments: requests to roll an artifact onto an environment."""


@deployments.command("list")
@place_options
@list_options
@click.pass_obj
def list_deployments(session: Session, place: Place, limit: int | None) -> None:
    """List deployments, newest first."""
    page = session.api.some(place.endpoint("deployments"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="deployments"))


@deployments.command("show")
@place_options
@click.argument("deployment")
@json_option
@click.pass_obj
def show_deployment(session: Session, place: Place, deployment: str) -> None:
    """Show one deployment."""
    path = place.endpoint("deployments", deployment)
    found = as_fields(session.api.get(path), "deployment")
    session.show(found, lambda: print_fields(found))
