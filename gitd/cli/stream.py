"""Streams: a job's states and log lines, or what programs print, past and to come.

They are read as Server-Sent Events. After a break they go on behind the last event that arrived, so
that no line is missed or seen twice.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gitd.cli.answers import Job, LogLine
from gitd.cli.client import NO_QUERY, Api, Query, endpoint
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
I_co = TypeVar("I_co", covariant=True)


class EventStream(ABC, Generic[I_co]):
    """The events at a path, followed to their end over connections that may break.

    Yields batches: what arrives together comes together.
    """

    def __init__(
        self, api: Api, path: str, query: Query = NO_QUERY, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._api = api
        self._path = path
        self._query = query
        self._patience_s = patience_s
        self._last_id = ""
        self._has_ended = False
        self._failures = 0
        self._heard_at = time.monotonic()

    def batches(self) -> Iterator[list[I_co | Outage]]:
        """Yield until it is over.

        Raises:
            RefusedError: It is not, or no longer, to be seen.
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
                if not self._passes(error):
                    raise
                trouble = error
            except UnreachableError as error:
                trouble = error
            if self._is_over:
                return
            pause_s = self._pause_s()
            if time.monotonic() + pause_s - self._heard_at > self._patience_s:
                raise self._given_up(trouble) from trouble
            if self._failures > 1:
                yield [Outage(str(trouble) or type(trouble).__name__)]
            time.sleep(pause_s)

    @property
    def _is_over(self) -> bool:
        """Whether all was heard, whatever ended the last connection."""
        return self._has_ended

    @abstractmethod
    def _read(self, event: Event) -> Iterator[I_co]:
        """Yield what the event says. One that makes no sense is passed over: the next may."""

    @abstractmethod
    def _end(self) -> Iterator[I_co]:
        """Take in that the events have ended: `_has_ended` says whether that is believed."""

    @abstractmethod
    def _advice(self) -> str:
        """What to do when the server stays away."""

    def _passes(self, error: RefusedError) -> bool:
        """Whether a refusal may be another one, or none, in a moment."""
        return error.status == 429 or error.status >= 500

    def _connection(self) -> Iterator[list[I_co | Outage]]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        decoder = EventDecoder(self._last_id)
        with self._api.reading(
            self._path, headers=headers, silence_s_max=SILENCE_S_MAX, query=self._query
        ) as response:
            kind = response.headers.get("Content-Type", "")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise StrangeAnswerError(f"the stream answers with {kind or 'no type'}")
            for piece in response.iter_bytes():
                self._heard_at = time.monotonic()
                try:
                    events = decoder.feed(piece)
                except EventTooLargeError as error:
                    raise StrangeAnswerError("the stream has an endless line") from error
                batch: list[I_co | Outage] = []
                for event in events:
                    self._last_id = event.last_id
                    batch += self._read(event)
                if batch:
                    self._failures = 0
                    yield batch
                if any(event.type == "end" for event in events):
                    if last := list(self._end()):
                        yield [*last]
                    return

    def _pause_s(self) -> float:
        self._failures += 1
        return min(PAUSE_S_MAX, FIRST_PAUSE_S * 2.0 ** (self._failures - 1))

    def _given_up(self, trouble: Exception) -> UnreachableError:
        away_s = round(time.monotonic() - self._heard_at)
        return UnreachableError(
            f"{self._api.url} has not been reached for {away_s} s: {trouble}", self._advice()
        )


class JobStream(EventStream[Job | LogLine]):
    """One job, followed to its end. `job` is its newest state."""

    def __init__(self, api: Api, job: Job, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(api, endpoint("jobs", job.id, "stream"), patience_s=patience_s)
        self.job = job
        self._lines_seen = 0
        self._lines_to_skip = 0
        self._saw_final = False

    @property
    def _is_over(self) -> bool:
        return self._has_ended or self._saw_final

    def _read(self, event: Event) -> Iterator[Job | LogLine]:
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

    def _end(self) -> Iterator[Job]:
        if not self._saw_final:
            self.job = Job.of(self._api.get(endpoint("jobs", self.job.id)))
            yield self.job
        self._has_ended = self.job.is_over

    def _passes(self, error: RefusedError) -> bool:
        if error.status in (400, 416) and self._last_id:
            # The log is not what it was (a power cut can cost its newest lines).
            self._last_id = ""
            self._lines_to_skip, self._lines_seen = self._lines_seen, 0
            return True
        return super()._passes(error)

    def _advice(self) -> str:
        return f"The job goes on without this command. Follow it again: mf jobs wait {self.job.id}"


class ProgramLogStream(EventStream[LogLine]):
    """What the programs of an environment print, until it is removed."""

    def __init__(
        self, api: Api, path: str, *, lines: int, advice: str, patience_s: float = PATIENCE_S
    ) -> None:
        super().__init__(api, path, {"lines": lines}, patience_s=patience_s)
        self._said_advice = advice

    def _read(self, event: Event) -> Iterator[LogLine]:
        if event.type != "log":
            return
        try:
            fields = json.loads(event.data)
        except (ValueError, RecursionError):
            return
        if isinstance(fields, dict):
            yield LogLine(fields)

    def _end(self) -> Iterator[LogLine]:
        self._has_ended = True
        yield from ()

    def _passes(self, error: RefusedError) -> bool:
        is_back_soon = error.error_code == "host.away" and bool(self._last_id)
        return is_back_soon or super()._passes(error)

    def _advice(self) -> str:
        return self._said_advice
