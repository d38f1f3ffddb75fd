"""The stream: a job's states and log lines, past and to come, over connections that may break.

It is read as Server-Sent Events. After a break it goes on behind the last event that arrived, so
that no line is missed or seen twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gitd.cli.answers import Job, LogLine
from gitd.cli.client import Api, endpoint
from gitd.cli.events import Event, EventDecoder, EventTooLargeError
from gitd.cli.exits import RefusedError, StrangeAnswerError, UnreachableError

SILENCE_S_MAX = 40.0  # the server says something every 15 s (contract section 3)
PATIENCE_S = 120.0
FIRST_PAUSE_S = 0.2
PAUSE_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Outage:
    """The connection broke, and is tried again: `message` says what is known."""

    message: str


Item = Job | LogLine | Outage


class JobStream:
    """One job, followed to its end.

    Yields batches: what arrives together comes together. `job` is its newest state.
    """

    def __init__(self, api: Api, job: Job, *, patience_s: float = PATIENCE_S) -> None:
        self.job = job
        self._api = api
        self._patience_s = patience_s
        self._last_id = ""
        self._lines_seen = 0
        self._lines_to_skip = 0
        self._saw_final = False
        self._has_ended = False
        self._failures = 0
        self._heard_at = time.monotonic()

    def batches(self) -> Iterator[list[Item]]:
        """Yield until the job is over.

        Raises:
            RefusedError: The job is not, or no longer, to be seen.
            UnreachableError: The server was away for longer than `patience_s`.
        """
        import httpx

        self._heard_at = time.monotonic()
        while not self._has_ended:
            try:
                yield from self._connection()
                trouble: Exception = ConnectionError("the server closed the stream")
            except httpx.RequestError as error:
                trouble = error
            except RefusedError as error:
                if error.status in (400, 416) and self._last_id:
                    # The log is not what it was (a power cut can cost its newest lines).
                    self._start_over()
                elif error.status != 429 and error.status < 500:
                    raise
                trouble = error
            except UnreachableError as error:
                trouble = error
            if self._has_ended or self._saw_final:
                return
            pause_s = self._pause_s()
            if time.monotonic() + pause_s - self._heard_at > self._patience_s:
                raise self._given_up(trouble) from trouble
            if self._failures > 1:
                yield [Outage(str(trouble) or type(trouble).__name__)]
            time.sleep(pause_s)

    def _connection(self) -> Iterator[list[Item]]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        path = endpoint("jobs", self.job.id, "stream")
        decoder = EventDecoder(self._last_id)
        with self._api.reading(path, headers=headers, silence_s_max=SILENCE_S_MAX) as response:
            kind = response.headers.get("Content-Type", "")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise StrangeAnswerError(f"the job's stream answers with {kind or 'no type'}")
            for piece in response.iter_bytes():
                self._heard_at = time.monotonic()
                try:
                    events = decoder.feed(piece)
                except EventTooLargeError as error:
                    raise StrangeAnswerError("the job's stream has an endless line") from error
                batch = [item for event in events for item in self._read(event)]
                if batch:
                    self._failures = 0
                    yield batch
                if any(event.type == "end" for event in events):
                    if not self._saw_final:
                        self.job = Job.of(self._api.get(endpoint("jobs", self.job.id)))
                        yield [self.job]
                    self._has_ended = self.job.is_over
                    return

    def _read(self, event: Event) -> Iterator[Item]:
        """Yield what the event says. One that makes no sense is passed over: the next may."""
        self._last_id = event.last_id
        try:
            fields = json.loads(event.data)
            job = Job.of(fields) if event.type == "job" else self.job
        except (ValueError, RecursionError, StrangeAnswerError):
            return
        if event.type == "job":
            self.job = job
            self._saw_final = job.is_over
            yield job
        elif event.type == "log" and isinstance(fields, dict):
            self._lines_seen += 1
            if self._lines_to_skip:
                self._lines_to_skip -= 1
                return
            yield LogLine(fields)

    def _pause_s(self) -> float:
        self._failures += 1
        return min(PAUSE_S_MAX, FIRST_PAUSE_S * 2.0 ** (self._failures - 1))

    def _start_over(self) -> None:
        self._last_id = ""
        self._lines_to_skip, self._lines_seen = self._lines_seen, 0

    def _given_up(self, trouble: Exception) -> UnreachableError:
        away_s = round(time.monotonic() - self._heard_at)
        return UnreachableError(
            f"{self._api.url} has not been reached for {away_s} s: {trouble}",
            f"The job goes on without this command. Follow it again: mf jobs wait {self.job.id}",
        )
