"""mf logs: what a build or a roll printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click

from gitd.cli.answers import Job, LogLine, as_fields, text_at
from gitd.cli.client import Api, endpoint
from gitd.cli.exits import ExitCode, NothingToDoError
from gitd.cli.options import Place, json_option
from gitd.cli.screen import shows_colours
from gitd.cli.session import Session, print_json
from gitd.cli.stream import PATIENCE_S, Item, JobStream, Outage
from gitd.cli.waiting import environment_endpoint
from gitd.words import colourful, printable

RESOURCE_TYPES = {"build": "build", "dep": "deployment"}
PAGES_MAX = 20


@click.command("logs")
@click.argument("of", metavar="BUILD|DEPLOYMENT|JOB")
@click.option(
    "--site", metavar="SITE", envvar="FORGE_SITE", help="The site of the build or deployment."
)
@click.option("--env", metavar="ENV", help="Its environment. Without both it is looked for.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@click.option("--stages", is_flag=True, help="Begin each line with its stage.")
@json_option
@click.pass_obj
def logs(
    session: Session, of: str, site: str | None, env: str | None, *, follow: bool, stages: bool
) -> ExitCode:
    """Print the log of a build, a deployment or a job.

    With --json an array of lines, or with --follow too an object per line as it comes.
    """
    job = find_job(session.api, of, Place(site, env) if site and env else None)
    try:
        if job.is_over or follow:
            _print_stream(session, job, follow=follow, stages=stages)
        else:
            _print_so_far(session, job, stages=stages)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def find_job(api: Api, name: str, place: Place | None) -> Job:
    """The job with this id, or the one that works for the build or deployment with it."""
    resource_type = RESOURCE_TYPES.get(name.partition("_")[0])
    if resource_type is None:
        return Job.of(api.get(endpoint("jobs", name)))
    if place is None:
        return _job_for(api, resource_type, name)
    found = as_fields(api.get(place.endpoint(f"{resource_type}s", name)), resource_type)
    return Job.of(api.get(endpoint("jobs", text_at(found, "job_id"))))


def _job_for(api: Api, resource_type: str, resource_id: str) -> Job:
    pages = api.pages(endpoint("jobs"), {"resource_type": resource_type})
    for page, _ in zip(pages, range(PAGES_MAX), strict=False):
        for fields in page.items:
            job = Job.of(fields)
            if job.resource("id") == resource_id:
                return job
    raise NothingToDoError(
        f"{resource_type}.not_found",
        f"No job of {resource_id} is to be seen: name its --site and --env, or its job.",
    )


def _print_stream(session: Session, job: Job, *, follow: bool, stages: bool) -> None:
    lines = _lines(JobStream(session.api, job, patience_s=PATIENCE_S))
    if session.as_json and not follow:
        print_json([line.fields for line in lines])
        return
    for line in lines:
        if session.as_json:
            _write(json.dumps(line.fields))
        else:
            _write(_text(line, stages=stages))


def _lines(stream: JobStream) -> Iterator[LogLine]:
    for batch in stream.batches():
        for item in batch:
            if isinstance(item, LogLine):
                yield item
            else:
                _tell(item)


def _tell(item: Item) -> None:
    if isinstance(item, Outage):
        click.echo(printable(f"(connection lost: {item.message}; trying again)"), err=True)


def _print_so_far(session: Session, job: Job, *, stages: bool) -> None:
    """Print what there is by now of a job that goes on."""
    if job.resource("type") != "build" or stages:
        raise click.UsageError(f"{job.id} is not over yet: give --follow.")
    path = environment_endpoint(job, "builds", job.resource("id"), "log")
    lines = session.api.content(path).decode("utf-8", "replace").splitlines()
    if session.as_json:
        print_json([{"line": line} for line in lines])
        return
    for line in lines:
        _write(colourful(line) if shows_colours(sys.stdout) else printable(line))


def _text(line: LogLine, *, stages: bool) -> str:
    text = f"[{line.stage}] {line.line}" if stages and line.stage else line.line
    return f"{colourful(text)}\x1b[0m" if shows_colours(sys.stdout) else printable(text)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
