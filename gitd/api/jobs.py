"""Jobs: the handle behind every 202. Source: contract §3."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from gitd.actors import Actor
from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply
from gitd.api.envelope import answer_headers, written
from gitd.api.paging import LIMIT_DEFAULT, Cursor, Limit, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from gitd.api.stream import JobStreams, OpenEnds
from gitd.errors import RequestError
from hooks.errors import NotFoundError
from hooks.jobs import Jobs as AllJobs
from hooks.jobs import QueuePlace
from hooks.pipeline import Pipeline
from storage.model import Job, JobStatus
from storage.records import builds, deployments, environments, sites
from storage.records import jobs as job_rows
from storage.records.recall import Recall

WAIT_S_MAX = 60
PAGES_COUNT_MAX = 100  # that are kept, some 300 KB each

Wait = Annotated[
    float,
    msgspec.Meta(ge=0, le=WAIT_S_MAX, description="Seconds to wait for a change of the job."),
]
NamedSite = Annotated[str, msgspec.Meta(description="Only those of the site: its id or name.")]
NamedEnvironment = Annotated[
    str, msgspec.Meta(description="Only those of that environment of `site`: its id or slug.")
]
Position = Annotated[str, msgspec.Meta(description="As the header Last-Event-ID.")]


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: JobStatus | None = None
    resource_type: Literal["build", "deployment"] | None = None
    site: NamedSite | None = None
    env: NamedEnvironment | None = None
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None


class JobQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait: Wait = 0


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    last_event_id: Position | None = None


AnyCall = Call[JobQuery, NoBody] | Call[StreamQuery, NoBody] | Call[NoQuery, NoBody]


class _Page:
    """A page of jobs as the records have them. Where they stand in the queue is not in there."""

    def __init__(self, jobs: tuple[Job, ...], next_cursor: str | None) -> None:
        self.jobs = jobs
        self.next_cursor = next_cursor
        self._written: tuple[tuple[QueuePlace | None, ...], msgspec.Raw] | None = None

    def written(self, places: tuple[QueuePlace | None, ...]) -> msgspec.Raw:
        """Return the jobs at these places as JSON: made anew when one has moved."""
        if self._written is None or self._written[0] != places:
            items = list(map(answers.job, self.jobs, places))
            self._written = places, written(items)
        return self._written[1]


def _page(db: sqlite3.Connection, query: JobsQuery, actor: Actor) -> _Page:
    site_id, env_id = _place(db, query, actor)
    name = list_name("jobs", query.status, query.resource_type, site_id, env_id)
    (before,) = read_cursor(query.cursor, name)
    page = job_rows.page(
        db,
        status=query.status,
        resource_type=query.resource_type,
        site_id=site_id,
        env_id=env_id,
        before=before,
        limit_count=query.limit,
    )
    return _Page(page.items, next_cursor(name, page))


def _place(db: sqlite3.Connection, query: JobsQuery, actor: Actor) -> tuple[str | None, str | None]:
    """The ids of the site and the environment whose jobs are asked for; None for all there are."""
    if query.site is None:
        if query.env is not None:
            message = "Name the site of the environment too."
            raise RequestError("request.invalid", message, param="env")
        return actor.site_id, actor.env_id
    site = sites.find(db, query.site)
    if site is None or not actor.sees_site(site.id):
        raise NotFoundError("site", query.site)
    if query.env is None:
        return site.id, actor.env_id
    environment = environments.find(db, site.id, query.env)
    if environment is None or not actor.sees_environment(environment):
        raise NotFoundError("environment", query.env)
    return site.id, environment.id


class Jobs:
    def __init__(
        self,
        jobs: AllJobs,
        pipeline: Pipeline,
        streams: JobStreams,
        open_ends: OpenEnds,
        recall: Recall,
        pages: Recall,
    ) -> None:
        """`pages` keeps pages of jobs, which are large: fewer than `recall` keeps."""
        self._recall = recall
        self._pages = pages
        self._jobs = jobs
        self._pipeline = pipeline
        self._streams = streams
        self._open_ends = open_ends

    async def list(self, call: Call[JobsQuery, NoBody]) -> ListReply:
        actor = call.actor
        key = ("jobs", call.query, actor.site_id, actor.env_id)
        page = self._pages.get(key, lambda db: _page(db, call.query, actor))
        places = tuple(self._place(job) for job in page.jobs)
        return ListReply(page.written(places), page.next_cursor)

    def _place(self, job: Job) -> QueuePlace | None:
        return self._jobs.place(job.id) if job.status is JobStatus.QUEUED else None

    async def show(self, call: Call[JobQuery, NoBody]) -> Reply | web.Response:
        """The job; with `wait`, once it is another than the caller's `If-None-Match`, or now."""
        job = self._visible(call.named("job"), call.actor)
        place = self._jobs.place(job.id)
        seen = call.request.headers.get("If-None-Match")
        if call.query.wait and (seen is None or _matches(seen, _tag(job, place))):
            await self._open_ends.run(self._jobs.wait_for_change(job, call.query.wait))
            call.confirm()
            job = job_rows.get(call.db, job.id) or job
            place = self._jobs.place(job.id)
        tag = _tag(job, place)
        headers = {"ETag": f"W/{tag}"}  # weak: the request's id differs from answer to answer
        if seen is not None and _matches(seen, tag):
            return web.Response(status=304, headers={**_headers(call), **headers})
        shown = self._recall.get(
            ("job shown", job.id, tag), lambda _: written(answers.job(job, place))
        )
        return Reply(shown, headers=headers)

    async def stream(self, call: Call[StreamQuery, NoBody]) -> web.StreamResponse:
        job = self._visible(call.named("job"), call.actor)
        after = call.request.headers.get("Last-Event-ID", call.query.last_event_id)
        return await self._streams.events(
            call.request, job, after=after, headers=_headers(call), confirm=call.confirm
        )

    async def cancel(self, call: Call[NoQuery, NoBody]) -> Reply:
        job = self._visible(call.named("job"), call.actor)
        return Reply(answers.job(await self._pipeline.cancel_job(job.id)))

    def admit_reader(self, request: web.Request, actor: Actor) -> None:
        """Let in a key that may read jobs, or may read deployments and made this one."""
        job = self._visible(request.match_info["job"], actor)
        if actor.may("jobs:read"):
            return
        db = self._jobs.records.reader()
        if not actor.may("deployments:read") or not _is_made_for(db, job, actor.ref.id):
            actor.require("jobs:read")

    def admit_canceler(self, request: web.Request, actor: Actor) -> None:
        self._visible(request.match_info["job"], actor)
        actor.require("deployments:write")

    def _visible(self, job_id: str, actor: Actor) -> Job:
        job = self._recall.get(("job", job_id), lambda db: job_rows.get(db, job_id))
        if job is None or not actor.sees_job(job):
            raise NotFoundError("job", job_id)
        return job


def _headers(call: AnyCall) -> Mapping[str, str]:
    headers = answer_headers(call.request_id, version=call.version)
    del headers["Content-Type"]
    return headers


def _is_made_for(db: sqlite3.Connection, job: Job, actor_id: str) -> bool:
    if job.resource_type == "build":
        return builds.is_asked_for_by(db, job.resource_id, actor_id)
    deployment = deployments.get(db, job.resource_id)
    is_own = deployment is not None and deployment.actor.id == actor_id
    return is_own or builds.is_deployment_asked_for_by(db, job.resource_id, actor_id)


def _tag(job: Job, place: QueuePlace | None) -> str:
    return f'"{job.version}"' if place is None else f'"{job.version}-{place.before + 1}"'


def _matches(if_none_match: str, tag: str) -> bool:
    """Source: RFC 9110 §13.1.2, with weak comparison."""
    tags = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return "*" in tags or tag in tags
