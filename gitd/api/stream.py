"""A job's stream: its states and log lines, past and to come, as Server-Sent Events or as text.

Every event's id is its entry's place in the job's log: whoever gives it back goes on behind it.

Source: contract §3; HTML Standard §9.2 "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gitd.api import answers
from gitd.api.envelope import ENCODER
from gitd.errors import AddressRefusedError, AuthenticationError, RequestError
from hooks.jobs import Jobs, QueuePlace, as_of
from storage.joblog import LogLine, Positioned, StateChange
from storage.model import Job, JobStatus

HEARTBEAT_S = 15.0
OVER_S = 0.1  # how long a job that is over is given to log that it is
END_MARK = ".end"  # behind the id of the `end` event: after it there is nothing
POSITION_DIGITS_MAX = 15
EVENT_STREAM = "text/event-stream"
PLAIN_TEXT = "text/plain; charset=utf-8"

Batch = list[Positioned] | QueuePlace


class CutShortError(ConnectionError):
    """The answer ends here, and the job does not: the connection is to look broken."""


class OpenEnds:
    """Answers that go on until something happens. A stop of the server ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def run(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run `work` until it ends, the client goes away, or `close`; say whether it ended."""
        if self._is_closing:
            work.close()
            return False
        task = asyncio.create_task(work)
        self._tasks.add(task)
        has_ended = False
        try:
            with suppress(ConnectionError):
                await task
                has_ended = True
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
        finally:
            self._tasks.discard(task)
        return has_ended

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
        self,
        request: web.Request,
        job: Job,
        *,
        after: str | None,
        headers: Mapping[str, str],
        confirm: Callable[[], None],
    ) -> web.StreamResponse:
        """Answer with the job's events behind the id `after`; 204 when there will be none.

        `confirm` raises when the key is not good any more: then, as at a stop of the server, it
        ends without the event `end`, and the client that comes again hears why.

        Raises:
            RequestError: `after` cannot be an id.
            JobLogPositionError: `after` is none of this job's.
        """
        if after is not None and after.endswith(END_MARK):
            _position(after.removesuffix(END_MARK))
            return web.Response(status=204, headers=headers)  # tells EventSource to stay away
        start = _position(after)
        self._jobs.read_log(job.id, start)
        response = web.StreamResponse(
            headers={**headers, "Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        if request.method != "HEAD":
            await self._open_ends.run(self._send_events(response, job, start, confirm))
        return response

    async def text(
        self,
        request: web.Request,
        job: Job,
        *,
        follow: bool,
        offset: int,
        headers: Mapping[str, str],
        confirm: Callable[[], None],
    ) -> web.StreamResponse:
        """Answer with the job's log lines as text, from the byte `offset` of that text.

        Without `follow` the answer is what there is now, and says where the next one may begin;
        with it, it goes on until the job is over. When the server stops before, or the key ends
        (`confirm` raises), the connection is broken off: half a log must not look like the whole.

        Raises:
            RequestError: The log has not so many bytes.
            CutShortError: Not all of it was sent.
        """
        text = await asyncio.to_thread(LogText.measured, self._jobs, job.id, offset)
        more = {"X-Log-Offset": str(offset)}
        if not follow:
            more["X-Log-Next-Offset"] = str(text.end)
            more["X-Log-Complete"] = "true" if text.is_complete else "false"
            more["Content-Length"] = str(text.end - offset)
        headers = {**headers, **more, "Content-Type": PLAIN_TEXT}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        batches: AsyncIterator[Batch] = (
            self._batches(job, text.after) if follow else self._backlog(job.id, text.after)
        )
        end = None if follow else text.end
        sending = self._send_text(request, response, _while_good(batches, confirm), text, end=end)
        if not await self._open_ends.run(sending):
            raise CutShortError(f"the log of {job.id} was cut short")
        return response

    async def _send_events(
        self, response: web.StreamResponse, job: Job, after: int, confirm: Callable[[], None]
    ) -> None:
        told = -1
        async for batch in _while_good(self._batches(job, after), confirm):
            if isinstance(batch, QueuePlace):
                if batch.before == told:
                    continue
                told = batch.before
                # It is not in the log: its id is that of the entry before, to go on behind.
                waiting = self._jobs.get(job.id)
                if waiting is not None and waiting.status is JobStatus.QUEUED:
                    await response.write(_job_event(after, waiting, batch))
            elif batch:
                place = self._place_behind(job.id, batch[-1])
                told = told if place is None else place.before
                events = [_event(job, item) for item in batch[:-1]]
                await response.write(b"".join([*events, _event(job, batch[-1], place)]))
                after = batch[-1].id
            else:
                await response.write(b": still here\n\n")
        await response.write(f"id: {after}{END_MARK}\nevent: end\ndata: {{}}\n\n".encode())

    async def _send_text(
        self,
        request: web.Request,
        response: web.StreamResponse,
        batches: AsyncIterator[Batch],
        text: LogText,
        *,
        end: int | None,
    ) -> None:
        """Send the text from its offset up to the byte `end`, or all that comes."""
        skipped, left = text.skipped, None if end is None else end - text.offset
        async for batch in batches:
            if isinstance(batch, QueuePlace):
                continue
            data = b"".join(map(text_of, batch))[skipped:][:left]
            skipped = 0
            if data:
                await response.write(data)
                left = None if left is None else left - len(data)
            elif not batch and request.transport is None:
                return

    async def _backlog(self, job_id: str, after: int) -> AsyncIterator[list[Positioned]]:
        """Yield what the log has behind `after`, up to the final state."""
        while entries := self._jobs.read_log(job_id, after):
            end = next((n for n, item in enumerate(entries) if item.is_final), None)
            if end is not None:
                yield entries[: end + 1]
                return
            yield entries
            after = entries[-1].id

    async def _batches(self, job: Job, after: int) -> AsyncIterator[Batch]:
        """Yield what is behind `after`, past and to come, up to the final state.

        What is there comes in large pieces; what is to come, as it comes. An empty one stands for
        a silence. A place in the queue comes whenever it is another one.

        Raises:
            CutShortError: The server stops before the job is over.
        """
        async for batch in self._backlog(job.id, after):
            yield batch
            after = batch[-1].id
            if batch[-1].is_final:
                return
        # A client that saw the final state and not the end finds nothing more, and no change will
        # come either.
        heartbeat_s = OVER_S if self._is_over(job.id) else self._heartbeat_s
        async for item in self._jobs.follow(job.id, after=after, heartbeat_s=heartbeat_s):
            if item is not None:
                yield item
            elif self._is_over(job.id):
                return
            else:
                yield []
        if not self._is_over(job.id):
            raise CutShortError("the server stops")

    def _place_behind(self, job_id: str, newest: Positioned) -> QueuePlace | None:
        """Where the job stands that waits in the queue since its log's newest entry."""
        if not isinstance(newest.entry, StateChange) or newest.entry.status is not JobStatus.QUEUED:
            return None
        now = self._jobs.get(job_id)
        is_so_still = now is not None and now.version == newest.entry.version
        return self._jobs.place(job_id) if is_so_still else None

    def _is_over(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is None or job.status.is_final


@dataclass(frozen=True, slots=True)
class LogText:
    """A job's log as text, as far as it went when it was measured. Sizes and places in bytes.

    Attributes:
        offset: where in the text a reader wants to begin.
        after: the id of the entry that the reader begins behind, to leave out `skipped` bytes.
        end: how long the text was.
        is_complete: nothing will follow.
    """

    offset: int
    after: int
    skipped: int
    end: int
    is_complete: bool

    @classmethod
    def measured(cls, jobs: Jobs, job_id: str, offset: int) -> LogText:
        """Measure the log, and find the offset in it. Blocking.

        Raises:
            RequestError: It has not so many bytes.
        """
        end, after, entry_id, skipped = 0, 0, 0, offset
        while entries := jobs.read_log(job_id, entry_id):
            for item in entries:
                entry_id = item.id
                size = len(text_of(item))
                if end + size <= offset:
                    after, skipped = entry_id, offset - end - size
                end += size
                if item.is_final:
                    return cls(_within(offset, end), after, skipped, end, is_complete=True)
        is_over = jobs.lost_end(job_id) is not None
        return cls(_within(offset, end), after, skipped, end, is_complete=is_over)


async def _while_good(
    batches: AsyncIterator[Batch], confirm: Callable[[], None]
) -> AsyncIterator[Batch]:
    """Yield the batches as long as the key is good that asked for them.

    Raises:
        CutShortError: It was revoked, or has expired.
    """
    async for batch in batches:
        try:
            confirm()
        except (AuthenticationError, AddressRefusedError) as error:
            raise CutShortError("the key is not good any more") from error
        yield batch


def text_of(item: Positioned) -> bytes:
    """What a reader of plain text sees of an entry."""
    if not isinstance(item.entry, LogLine):
        return b""
    return item.entry.line.encode("utf-8", "replace") + b"\n"


def _within(offset: int, end: int) -> int:
    if offset > end:
        raise RequestError(
            "log.offset_invalid", f"The log has {end} bytes: read it from its beginning."
        )
    return offset


def _event(job: Job, item: Positioned, place: QueuePlace | None = None) -> bytes:
    if isinstance(item.entry, StateChange):
        return _job_event(item.id, as_of(job, item.entry), place)
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
