"""Builds of an environment. Source: contract §4."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, accepted
from gitd.api.envelope import answer_headers
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from gitd.api.stream import PLAIN_TEXT, JobStreams
from hooks.errors import NotFoundError
from hooks.jobs import Jobs
from hooks.pipeline import Pipeline
from storage.model import Build
from storage.records import builds
from storage.records import jobs as job_rows

Ref = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=1024,
        description="A branch, a tag, a full name or a commit; without it the mapped branch.",
    ),
]


class BuildBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`clean` skips the build cache; `deploy` rolls the artifact onto the environment too."""

    ref: Ref | None = None
    clean: bool = False
    deploy: bool = False


Offset = Annotated[
    int, msgspec.Meta(ge=0, description="How many bytes of the log's text to leave out.")
]


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    follow: bool = False
    offset: Offset = 0


class Builds:
    def __init__(self, jobs: Jobs, pipeline: Pipeline, streams: JobStreams) -> None:
        self._jobs = jobs
        self._pipeline = pipeline
        self._streams = streams

    async def start(self, call: Call[NoQuery, BuildBody]) -> Reply:
        body = call.body
        made = await self._pipeline.start_build(
            call.environment,
            call.actor.ref,
            ref=body.ref,
            clean=body.clean,
            deploy=body.deploy,
            only_env=call.actor.env_id,
            claim=call.claim,
        )
        return accepted(made, self._jobs.place(made.value.id))

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("builds", call.environment.id)
        (before,) = read_cursor(call.query.cursor, name)
        page = builds.page(
            call.db, call.environment.id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        items = [answers.build(call.site, call.environment, build) for build in page.items]
        return ListReply(items, cursor)

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        return Reply(answers.build(call.site, call.environment, _named(call)))

    async def log(self, call: Call[LogQuery, NoBody]) -> web.StreamResponse:
        build = _named(call)
        job = job_rows.get(call.db, build.job_id)
        assert job is not None, "a build has its job"
        headers = answer_headers(call.request_id, version=call.version, content_type=PLAIN_TEXT)
        query = call.query
        return await self._streams.text(
            call.request,
            job,
            follow=query.follow,
            offset=query.offset,
            headers=headers,
            confirm=call.confirm,
        )


def _named(call: Call[NoQuery, NoBody] | Call[LogQuery, NoBody]) -> Build:
    build = builds.get(call.db, call.named("build"))
    if build is None or build.env_id != call.environment.id:
        raise NotFoundError("build", call.named("build"))
    return build
