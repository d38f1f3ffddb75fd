"""Waiting: a started job followed to its end, and the exit code that its end means."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import click

from gitd.cli.answers import Fields, Job, LogLine, as_fields, at, text_at
from gitd.cli.client import Api, endpoint
from gitd.cli.exits import CliError, ExitCode
from gitd.cli.options import Following, Place
from gitd.cli.progress import Display, display, state_of
from gitd.cli.releases import current_release
from gitd.cli.session import Session
from gitd.cli.stream import JobStream
from gitd.cli.tables import COMMIT_CHARS
from gitd.terminal import printable, printable_lines

LINES_REMEMBERED = 50  # of the log: what the end of a command need not say again


def started(session: Session, job: Job, *, wait: bool, following: Following) -> ExitCode:
    """End a command that started a job: say where it is, or follow it."""
    if wait:
        return follow(session, job, following)
    session.show(job.fields, lambda: _say_started(job))
    return ExitCode.OK


def follow(session: Session, job: Job, following: Following) -> ExitCode:
    """Follow a job, and the deployment that a build goes on to. The last of them decides."""
    newest = job
    said: deque[str] = deque(maxlen=0 if following.is_quiet else LINES_REMEMBERED)
    try:
        with display(quiet=following.is_quiet) as shown:
            newest = _to_its_end(session.api, newest, shown, said, following)
            rolls = next_job(session.api, newest)
            if rolls is not None:
                newest = rolls
                newest = _to_its_end(session.api, newest, shown, said, following)
    except KeyboardInterrupt:
        _say_detached(newest)
        return ExitCode.INTERRUPTED
    session.show(newest.fields, lambda: _say_outcome(session.api, newest, said))
    return ExitCode.OK if newest.has_succeeded else ExitCode.FAILED


def _to_its_end(api: Api, job: Job, shown: Display, said: deque[str], following: Following) -> Job:
    stream = JobStream(api, job, patience_s=following.patience_s)
    for batch in stream.batches():
        shown.show(batch)
        said.extend(printable(item.line) for item in batch if isinstance(item, LogLine))
    return stream.job


def next_job(api: Api, job: Job) -> Job | None:
    """The job of the deployment that a finished build went on to, if any."""
    deployment_id = job.result("deployment_id")
    if not job.has_succeeded or job.type != "build.run" or not deployment_id:
        return None
    job_id = job.result("deployment_job_id")
    if not job_id:  # the build ended before the server said so
        path = environment_endpoint(job, "deployments", deployment_id)
        job_id = text_at(as_fields(api.get(path), "deployment"), "job_id")
    return Job.of(api.get(endpoint("jobs", job_id))) if job_id else None


def environment_endpoint(job: Job, *names: str) -> str:
    """A path below the environment that the job works for."""
    site, env = job.resource("site_id"), job.resource("env_id")
    return endpoint("sites", site, "environments", env, *names)


def _say_started(job: Job) -> None:
    resource = job.resource("id")
    click.echo(printable(f"{resource or job.id} {state_of(job)} as {job.id}"))
    click.echo(printable(f"Follow it: mf jobs wait {job.id}"), err=True)


def _say_detached(job: Job) -> None:
    click.echo(
        printable(f"Left alone: {job.id} goes on without this command.")
        + "\n"
        + printable(f"Follow it again: mf jobs wait {job.id}")
        + "\n"
        + printable(f"End it:          mf jobs cancel {job.id}"),
        err=True,
    )


def _say_outcome(api: Api, job: Job, said: Collection[str]) -> None:
    if job.has_succeeded:
        click.echo(printable(_success(api, job)))
        return
    click.echo("\n".join(failure_of(job, said)))
    for line in _after_failure(api, job):
        click.echo(printable(line), err=True)


def failure_of(job: Job, said: Collection[str] = ()) -> list[str]:
    """How a job that did not succeed ended, line by line, the first by itself.

    `said`: lines that its log has shown, and that are not said again.
    """
    first, *more = printable_lines(_why(job)) or [""]
    rest = [line for line in more if line not in said]
    if len(rest) < len(more) and rest and rest[-1].endswith(":"):
        rest.pop()  # what it announces was said
    head = f"{job.resource('id') or job.id} {job.status}"
    return [printable(f"{head}: {first}" if first else head), *rest]


def _success(api: Api, job: Job) -> str:
    if job.type == "build.run":
        return f"{job.resource('id')} made {job.result('artifact_id')}"
    if job.type == "deployment.roll":
        environment = _environment(api, job)
        slug, url = text_at(environment, "slug"), text_at(environment, "preview_url")
        where = f"{slug or job.resource('env_id')}{f': {url}' if url else ''}"
        return f"{job.result('release_id') or job.resource('id')} is live on {where}"
    return f"{job.id} {job.status}"


def _environment(api: Api, job: Job) -> Fields:
    """The job's environment. It only adds to what is said: without it the roll went well too."""
    try:
        return as_fields(api.get(environment_endpoint(job)), "environment")
    except (CliError, click.UsageError):
        return {}


def _why(job: Job) -> str:
    message = text_at(job.fields, "error.message")
    code = text_at(job.fields, "error.code")
    exit_status = at(job.fields, "error.exit_status")
    first, line_end, rest = message.partition("\n")
    if isinstance(exit_status, int) and f"status {exit_status}" not in first:
        first = f"{first} (exit status {exit_status})".lstrip()
    said = ": ".join(part for part in (code, first) if part)
    return f"{said}{line_end}{rest}"


def _after_failure(api: Api, job: Job) -> list[str]:
    lines = [f"Its log: mf logs {job.id}"]
    if job.status == "failed" and job.type == "deployment.roll":
        lines.insert(0, _what_serves(api, job))
    return lines


def _what_serves(api: Api, job: Job) -> str:
    """What a failed roll left its environment with. Where that cannot be seen, it is so too."""
    place = Place(job.resource("site_id"), job.resource("env_id"))
    try:
        release = current_release(api, place)
    except (CliError, click.UsageError):
        return "The environment goes on serving what it served before."
    environment = _environment(api, job)
    slug, url = text_at(environment, "slug") or place.env, text_at(environment, "preview_url")
    if release is not None and text_at(environment, "status") == "suspended":
        resume = f"mf env resume {slug} --site {place.site}"
        return f"{slug} is suspended and serves nothing ({resume})"
    if release is None:
        return f"Nothing ran on {slug} before, and nothing does now."
    commit = text_at(release, "commit")[:COMMIT_CHARS]
    what = f"{text_at(release, 'id')}{f' ({commit})' if commit else ''}"
    return f"{slug} still serves {what}{f': {url}' if url else ''}"
