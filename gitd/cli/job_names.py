"""Which job is meant: by its own id, by what it works for, or as the newest of an environment."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import click

from gitd.cli.answers import Fields, Job, as_fields, text_at
from gitd.cli.client import Api, endpoint
from gitd.cli.options import Place, site_or_checkouts
from gitd.cli.session import Session

R = TypeVar("R")
RESOURCE_TYPES = {"build": "build", "dep": "deployment"}
PAGES_MAX = 20


def job_place_options(command: Callable[..., R]) -> Callable[..., R]:
    """`place`, from --site and --env, of a command that names a job: None without both.

    Without --site an environment is one of the checkout's site.
    """

    @wraps(command)
    def run(*args: object, site: str | None, env: str | None, **kwargs: object) -> R:
        place = job_place(click.get_current_context().find_object(Session), site, env)
        return command(*args, place=place, **kwargs)

    for option in (
        click.option("--env", metavar="ENV", help="Its environment."),
        click.option(
            "--site",
            metavar="SITE",
            envvar="FORGE_SITE",
            show_envvar=True,
            help="The site of the build or deployment. With --env alone, the one that the checkout "
            "is pushed to.",
        ),
    ):
        run = option(run)
    return run


def job_place(session: Session | None, site: str | None, env: str | None) -> Place | None:
    """Where a job is looked for, if that was named. A job alone says nothing of the checkout."""
    found = site_or_checkouts(session, site) if env else None
    return Place(found, env) if found and env else None


def find_job(api: Api, name: str, place: Place | None) -> Job:
    """The job with this id, or the one that works for the build or deployment with it."""
    resource_type = RESOURCE_TYPES.get(name.partition("_")[0])
    if resource_type is None:
        return _job(api, name)
    if place is None:
        return _job_for(api, resource_type, name)
    found = as_fields(api.get(place.endpoint(f"{resource_type}s", name)), resource_type)
    return _job(api, text_at(found, "job_id"))


def newest_job(api: Api, place: Place) -> Job:
    """The job of what was asked for last on an environment: a build, or a roll of its own."""
    newest = [
        item
        for kind in RESOURCE_TYPES.values()
        for item in api.some(place.endpoint(f"{kind}s"), 1).items
    ]
    if not newest:
        message = f"Nothing was ever built for {place.env}, or deployed onto it."
        raise api.refusal(404, "job.not_found", message)
    return _job(api, text_at(max(newest, key=_asked_at), "job_id"))


def _asked_at(item: Fields) -> str:
    return text_at(item, "created_at")


def _job(api: Api, job_id: str) -> Job:
    return Job.of(api.get(endpoint("jobs", job_id)))


def _job_for(api: Api, resource_type: str, resource_id: str) -> Job:
    pages = api.pages(endpoint("jobs"), {"resource_type": resource_type})
    for page, _ in zip(pages, range(PAGES_MAX), strict=False):
        for fields in page.items:
            job = Job.of(fields)
            if job.resource("id") == resource_id:
                return job
    raise api.refusal(
        404,
        f"{resource_type}.not_found",
        f"No job of {resource_id} is to be seen: name its --site and --env, or its job.",
    )
