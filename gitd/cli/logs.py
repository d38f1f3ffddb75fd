"""mf logs: what a build or a roll printed, or what the programs of an environment print."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import click

from gitd.cli.answers import Job, LogLine, text_at
from gitd.cli.exits import CliError, ExitCode
from gitd.cli.job_names import find_job, job_place
from gitd.cli.options import Place, json_option, site_or_checkouts
from gitd.cli.releases import current_release
from gitd.cli.screen import shows_colours
from gitd.cli.session import Session, print_json
from gitd.cli.stream import (
    PATIENCE_S,
    EventStream,
    Item,
    JobStream,
    Outage,
    ProgramLogStream,
)
from gitd.cli.waiting import LINES_REMEMBERED, environment_endpoint, failure_of, next_job
from gitd.terminal import colourful, printable

RUNS_ON = "production"
LINES = 100
LINES_MAX = 10_000


@click.command("logs")
@click.argument("of", metavar="[BUILD|DEPLOYMENT|JOB]", required=False)
@click.option(
    "--site",
    metavar="SITE",
    envvar="FORGE_SITE",
    show_envvar=True,
    help="The site: of what runs, or of the build or deployment. Without it, the one that the "
    "checkout is pushed to.",
)
@click.option(
    "--env",
    metavar="ENV",
    help=f"Its environment; of what runs, {RUNS_ON} without it. A build's and a deployment's is "
    "looked for when it is not given.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, LINES_MAX),
    metavar="COUNT",
    help=f"How many of the last lines of what runs; {LINES} without it.",
)
@click.option("--stages", is_flag=True, help="Begin each line of a job with its stage.")
@json_option
@click.pass_obj
def logs(
    session: Session,
    of: str | None,
    site: str | None,
    env: str | None,
    *,
    follow: bool,
    lines: int | None,
    stages: bool,
) -> ExitCode:
    """Print the log of a build, a deployment or a job; without one, what runs there prints.

    With --follow a build that goes on to deploy is followed until its release is live, and it ends
    as the job ends: 0 when it succeeded, else 1.

    With --json an array of lines, or with --follow too an object per line as it comes.
    """
    try:
        if of is None:
            if stages:
                raise click.UsageError("--stages is for the log of a job.")
            heard = site_or_checkouts(session, site)
            if heard is None:
                raise click.UsageError("Name a job, or the --site whose programs are to be heard.")
            place = Place(heard, env or RUNS_ON)
            _print_program_log(session, place, LINES if lines is None else lines, follow=follow)
            return ExitCode.OK
        if lines is not None:
            raise click.UsageError("--lines is for what runs: a job's log comes whole.")
        sought = job_place(session, site, env)
        job = find_job(session.api, of, sought)
        if follow:
            return _follow_job(session, job, stages=stages)
        if job.is_over:
            _print_job(session, job, deque(maxlen=0), follow=False, stages=stages)
        else:
            _print_so_far(session, job, stages=stages)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _follow_job(session: Session, job: Job, *, stages: bool) -> ExitCode:
    """Print a job to its end, and the deployment that a build goes on to. The last decides."""
    said: deque[str] = deque(maxlen=LINES_REMEMBERED)
    ended = _print_job(session, job, said, follow=True, stages=stages)
    rolls = next_job(session.api, ended)
    if rolls is not None:
        ended = _print_job(session, rolls, said, follow=True, stages=stages)
    if ended.has_succeeded:
        return ExitCode.OK
    _tell_hint(*failure_of(ended, said))
    return ExitCode.FAILED


def _print_job(session: Session, job: Job, said: deque[str], *, follow: bool, stages: bool) -> Job:
    """Print a job's log. `said` remembers its lines."""

    def text(line: LogLine) -> str:
        said.append(printable(line.line))
        return _text(line, stages=stages)

    stream = JobStream(session.api, job, patience_s=PATIENCE_S)
    _print_stream(session, stream, follow=follow, text=text)
    return stream.job


def _print_program_log(session: Session, place: Place, lines: int, *, follow: bool) -> None:
    if follow:
        stream = ProgramLogStream(
            session.api,
            place.endpoint("logs", "stream"),
            lines=lines,
            advice=f"Follow it again: mf logs --site {place.site} --env {place.env} --follow",
        )
        _print_stream(session, stream, follow=True, text=_timed_text)
        return
    text = session.api.content(place.endpoint("logs"), {"lines": lines}).decode("utf-8", "replace")
    said = [_line_of(line) for line in text.removesuffix("\n").split("\n") if line]
    if session.as_json:
        print_json([line.fields for line in said])
        return
    for line in said:
        _write(_timed_text(line))
    if not said:
        _tell_hint(_why_nothing(session, place))


def _why_nothing(session: Session, place: Place) -> str:
    """Say why nothing was printed. A key that may not see releases is told less."""
    with suppress(CliError):
        if current_release(session.api, place) is None:
            return f"Nothing runs on {place.env} yet."
    return f"Nothing was printed on {place.env}. A static site has no program that could."


def _line_of(text: str) -> LogLine:
    at, _, line = text.partition(" ")
    return LogLine({"line": line, "at": at, "stage": "run"})


def _print_stream(
    session: Session,
    stream: EventStream[Job | LogLine] | EventStream[LogLine],
    *,
    follow: bool,
    text: Callable[[LogLine], str],
) -> None:
    lines = _lines(stream.batches())
    if session.as_json and not follow:
        print_json([line.fields for line in lines])
        return
    for line in lines:
        _write(json.dumps(line.fields) if session.as_json else text(line))


def _lines(batches: Iterable[Sequence[Item]]) -> Iterator[LogLine]:
    for batch in batches:
        for item in batch:
            if isinstance(item, LogLine):
                yield item
            else:
                _tell(item)


def _tell(item: Item) -> None:
    if isinstance(item, Outage):
        _tell_hint(f"(connection lost: {item.message}; trying again)")


def _tell_hint(*lines: str) -> None:
    click.echo("\n".join(map(printable, lines)), err=True)


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
    return _shown(f"[{line.stage}] {line.line}" if stages and line.stage else line.line)


def _timed_text(line: LogLine) -> str:
    return _shown(f"{text_at(line.fields, 'at')} {line.line}")


def _shown(text: str) -> str:
    return f"{colourful(text)}\x1b[0m" if shows_colours(sys.stdout) else printable(text)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
