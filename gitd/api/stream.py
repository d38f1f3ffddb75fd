"""A job's stream: its states and log lines, past and to come, as Server-Sent Events or as text.

Every event's id is its entry's place in the job's log: whoever gives it back goes on behind it.

Source: contract §3; HTML Standard §9.2 "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from gitd.api import answers
from gitd.api.envelope import ENCODER
from gitd.errors import RequestError
from hooks.jobs import Jobs, QueuePlace, as_of
from storage.joblog import LogLine, Positioned, StateChange
from storage.model import Job

HEARTBEAT_S = 15.0
OVER_S = 0.1  # how long a job that is over is given to log that it is
END_MARK = ".end"  # behind the id of the `end` event: after it there is nothing
POSITION_DIGITS_MAX = 15
EVENT_STREAM = "text/event-stream"
PLAIN_TEXT = "text/plain; charset=utf-8"


class OpenEnds:
    """Answers that go on until something happens. A stop of the server ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends, the client goes away, or `close`."""
        if self._is_closing:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        try:
            with suppress(ConnectionError):
                await task
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
        finally:
            self._tasks.discard(task)

    async def close(self) -> None:
        """End them all now, and at once those that come later."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()


class JobStreams:
    """The streams of all jobs."""

    def __init__(
        self, jobs: Jobs, open_ends: OpenEnds, *, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._jobs = jobs
        self._open_ends = open_ends
        self._heartbeat_s = heartbeat_s

    async def events(
        self, request: web.Request, job: Job, *, after: str | None, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer with the job's events behind the id `after`; 204 when there will be none.

        Raises:
            RequestError: `after` cannot be an id.
            JobLogPositionError: `after` is none of this job's.
        """
        if after is not None and after.endswith(END_MARK):
            _position(after.removesuffix(END_MARK))
            return web.Response(status=204, headers=headers)  # tells EventSource to stay away
        start = _position(after)
        self._jobs.joblogs.read(job.id, start)
        response = web.StreamResponse(
            headers={**headers, "Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        if request.method != "HEAD":
            await self._open_ends.run(self._send_events(response, job, start))
        return response

    async def text(
        self, request: web.Request, job: Job, *, follow: bool, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer with the job's log lines; go on until the job is over when `follow`."""
        response = web.StreamResponse(headers={**headers, "Content-Type": PLAIN_TEXT})
        await response.prepare(request)
        if request.method != "HEAD":
            await self._open_ends.run(self._send_text(request, response, job, follow=follow))
        return response

    async def _send_events(self, response: web.StreamResponse, job: Job, after: int) -> None:
        told = -1
        async for batch in self._batches(job, after):
            if isinstance(batch, QueuePlace):
                if batch.before == told:
                    continue
                told = batch.before
                # It is not in the log: its id is that of the entry before, to go on behind.
                waiting = self._jobs.get(job.id) or job
                await response.write(_job_event(after, waiting, batch))
            elif batch:
                await response.write(b"".join(_event(job, item) for item in batch))
                after = batch[-1].id
            else:
                await response.write(b": still here\n\n")
        await response.write(f"id: {after}{END_MARK}\nevent: end\ndata: {{}}\n\n".encode())

    async def _send_text(
        self, request: web.Request, response: web.StreamResponse, job: Job, *, follow: bool
    ) -> None:
        async for batch in self._batches(job, 0) if follow else self._backlog(job.id, 0):
            if isinstance(batch, QueuePlace):
                continue
            lines = [item.entry.line for item in batch if isinstance(item.entry, LogLine)]
            if lines:
                text = "\n".join(lines) + "\n"
                await response.write(text.encode("utf-8", "replace"))
            elif request.transport is None:
                return

    async def _backlog(self, job_id: str, after: int) -> AsyncIterator[list[Positioned]]:
        """Yield what the log has behind `after`, up to the final state."""
        while entries := self._jobs.joblogs.read(job_id, after):
            end = next((n for n, item in enumerate(entries) if _is_final(item)), None)
            if end is not None:
                yield entries[: end + 1]
                return
            yield entries
            after = entries[-1].id

    async def _batches(self, job: Job, after: int) -> AsyncIterator[list[Positioned] | QueuePlace]:
        """Yield what is behind `after`, past and to come, up to the final state.

        What is there comes in large pieces; what is to come, one by one. An empty one stands for
        a silence. A place in the queue comes whenever it is another one.
        """
        async for batch in self._backlog(job.id, after):
            yield batch
            after = batch[-1].id
            if _is_final(batch[-1]):
                return
        # A client that saw the final state and not the end finds nothing more, and no change will
        # come either.
        heartbeat_s = OVER_S if self._is_over(job.id) else self._heartbeat_s
        async for item in self._jobs.follow_with_places(
            job.id, after=after, heartbeat_s=heartbeat_s
        ):
            if isinstance(item, QueuePlace):
                yield item
            elif item is not None:
                yield [item]
            elif self._is_over(job.id):
                return
            else:
                yield []

    def _is_over(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is None or job.status.is_final


def _is_final(item: Positioned) -> bool:
    return isinstance(item.entry, StateChange) and item.entry.status.is_final


def _event(job: Job, item: Positioned) -> bytes:
    if isinstance(item.entry, StateChange):
        return _job_event(item.id, as_of(job, item.entry))
    line = item.entry
    told = answers.LogLine(line.line, line.at, line.stage, line.mark, line.seconds)
    data = ENCODER.encode(told)
    return b"id: %d\nevent: log\ndata: %b\n\n" % (item.id, data)


def _job_event(event_id: int, job: Job, place: QueuePlace | None = None) -> bytes:
    data = ENCODER.encode(answers.job(job, place))
    return b"id: %d\nevent: job\ndata: %b\n\n" % (event_id, data)


def _position(text: str | None) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= POSITION_DIGITS_MAX):
        raise RequestError("stream.position_invalid", "This is no id of an event of this stream.")
    return int(text)
