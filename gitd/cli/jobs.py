"""mf jobs: the async handles of builds and rolls."""

from __future__ import annotations

import click

from gitd.cli.answers import Job, Page
from gitd.cli.client import endpoint
from gitd.cli.exits import ExitCode
from gitd.cli.job_names import RESOURCE_TYPES, find_job, job_place_options, newest_job
from gitd.cli.job_places import with_places
from gitd.cli.options import (
    Following,
    ListGroup,
    Place,
    following_options,
    json_option,
    list_options,
    site_or_checkouts,
)
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_fields, print_page
from gitd.cli.waiting import follow
from gitd.terminal import printable

COLUMNS = (
    Column("JOB", "id", Kind.ID),
    Column("SITE", "place.site", Kind.ID, rank=1),
    Column("ENV", "place.env", Kind.ID, rank=2),
    Column("TYPE", "type", rank=4),
    Column("STATUS", "status", Kind.STATUS),
    Column("DONE", "progress", Kind.PERCENT, rank=5),
    Column("QUEUE", "queue_position", rank=6),
    Column("FOR", "resource.id", Kind.ID, rank=7),
    Column("CREATED", "created_at", Kind.TIME, rank=3),
)


@click.group(cls=ListGroup)
def jobs() -> None:
    """Jobs: what works on builds and rolls."""


@jobs.command("list")
@click.option("--status", metavar="STATUS", help="Only those queued, running, succeeded, ...")
@click.option("--resource-type", metavar="TYPE", help="Only those of a `build` or a `deployment`.")
@click.option("--env", metavar="ENV", help="Only those of this environment.")
@click.option(
    "--site",
    metavar="SITE",
    envvar="FORGE_SITE",
    show_envvar=True,
    help="Only those of this site. With --env alone, the one that the checkout is pushed to.",
)
@list_options
@click.pass_obj
def list_jobs(
    session: Session,
    status: str | None,
    resource_type: str | None,
    site: str | None,
    env: str | None,
    limit: int | None,
) -> None:
    """List jobs, newest first: all that the key may see, or those of a site."""
    if env and (site := site_or_checkouts(session, site)) is None:
        raise click.UsageError("Name the --site of the --env too.")
    asked = {"status": status, "resource_type": resource_type, "site": site, "env": env}
    query = {name: value for name, value in asked.items() if value}
    page = session.api.some(endpoint("jobs"), limit, query)
    session.show(page.items, lambda: _print_jobs(session, page))


def _print_jobs(session: Session, page: Page) -> None:
    placed = Page(with_places(session.api, page.items), page.has_more)
    print_page(placed, COLUMNS, what="jobs")


@jobs.command("show")
@click.argument("of", metavar="JOB|BUILD|DEPLOYMENT")
@job_place_options
@json_option
@click.pass_obj
def show_job(session: Session, of: str, place: Place | None) -> None:
    """Show one job: by its id, or that of a build or a deployment."""
    job = find_job(session.api, of, place)
    session.show(job.fields, lambda: print_fields(job.fields))


@jobs.command("cancel")
@click.argument("of", metavar="JOB|BUILD|DEPLOYMENT")
@job_place_options
@json_option
@click.pass_obj
def cancel_job(session: Session, of: str, place: Place | None) -> None:
    """Cancel a queued or running job. One that is over stays as it is."""
    is_job = of.partition("_")[0] not in RESOURCE_TYPES
    job_id = of if is_job else find_job(session.api, of, place).id
    job = Job.of(session.api.post(endpoint("jobs", job_id, "cancel")))
    session.show(job.fields, lambda: click.echo(printable(f"{job.id} is {job.status}")))


@jobs.command("wait")
@click.argument("of", metavar="[JOB|BUILD|DEPLOYMENT]", required=False)
@job_place_options
@following_options
@json_option
@click.pass_obj
def wait_for_job(
    session: Session, of: str | None, place: Place | None, following: Following
) -> ExitCode:
    """Follow a job to its end, and end as it ends: 0 when it succeeded, else 1.

    Without one, the newest of the environment that --site and --env name. A build that goes on to
    deploy is followed until its release is live.
    """
    if of is None:
        if place is None:
            raise click.UsageError("Name a job, or a --site and an --env for its newest one.")
        return follow(session, newest_job(session.api, place), following)
    return follow(session, find_job(session.api, of, place), following)
