"""A build's log: what a program writes, as bounded lines, sent on in batches and in order."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from hooks.builds.logs.masking import Masker
from hooks.builds.logs.npm_engines import EngineFilter
from hooks.builds.logs.npm_usage import UsageFilter
from hooks.builds.logs.reasons import Found
from hooks.builds.wire import BatchLine, LogBatch
from hooks.clock import now_ms, rfc3339
from hooks.stages import begin_text, end_text
from storage.counted import counted

LINE_CHARS_MAX = 4096  # what is longer is cut into lines of this length
LOG_CHARS_MAX = 4 << 20  # unless the settings say otherwise
LOG_LINES_MAX = 50_000
TAIL_LINES = 20  # kept even when the log is full: the last words tell why it failed
BATCH_EVERY_S = 0.05
BATCH_LINES_MAX = 1_000
BATCH_CHARS_MAX = 256 << 10

Send = Callable[[int, Sequence[BatchLine]], Awaitable[None]]


class BuildLog:
    """Lines in order. `run` sends them while they come; `flush` waits until all are sent, or but
    for the last ones, which `rest` gives.

    What `masker` knows is in none of them. It is set before anything runs that knows a secret.
    `engine`: which package was the first to ask for another Node, None where none did.
    """

    def __init__(self, *, chars_max: int = LOG_CHARS_MAX) -> None:
        self.chars_max = chars_max
        self.masker = Masker()
        self.engine: str | None = None
        self._waiting: deque[BatchLine] = deque()
        self._sent_count = 0
        self._lines = 0
        self._chars = 0
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def line(self, stage: str, text: str) -> None:
        """Add a line of ours."""
        at = rfc3339(now_ms())
        for part in self.masker.masked(text).split("\n"):
            self._add(BatchLine(part[:LINE_CHARS_MAX], at, stage))

    def begin(self, stage: str) -> None:
        """Mark where a stage begins."""
        self._add(BatchLine(begin_text(stage), rfc3339(now_ms()), stage, "begin"))

    def end(self, stage: str, seconds: float) -> None:
        """Mark where a stage ends, and how long it took."""
        text = end_text(stage, seconds)
        self._add(BatchLine(text, rfc3339(now_ms()), stage, "end", round(seconds, 6)))

    def output(self, stage: str) -> OutputLines:
        """Return what takes a program's output and makes lines of it."""
        return OutputLines(self, stage)

    def take(self, stage: str, lines: Sequence[str]) -> int:
        """Add as many lines of a program as there is room for, and return how many that was."""
        at = rfc3339(now_ms())
        for count, text in enumerate(lines):
            if self._lines >= LOG_LINES_MAX or self._chars + len(text) > self.chars_max:
                return count
            self._lines += 1
            self._chars += len(text)
            self._add(BatchLine(text, at, stage))
        return len(lines)

    async def run(self, send: Send) -> None:
        """Send lines by `send(index of the first, lines)`, one batch at a time, until canceled."""
        while True:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), BATCH_EVERY_S)
            while batch := self._next_batch():
                await send(self._sent_count, batch)
                self._sent_count += len(batch)
                for _ in batch:
                    self._waiting.popleft()
            self._news.clear()
            self._idle.set()

    async def flush(self, *, but_for_a_batch: bool = False) -> None:
        """Return when every line so far was sent. `run` must be running.

        `but_for_a_batch`: what is left may be no more than one batch takes.
        """
        if but_for_a_batch and len(self._next_batch()) == len(self._waiting):
            return
        self._hurry.set()
        try:
            await self._idle.wait()
        finally:
            self._hurry.clear()

    def rest(self) -> LogBatch | None:
        """Return what was not sent, or perhaps was, once `run` has ended; None without any."""
        return LogBatch(self._sent_count, tuple(self._waiting)) if self._waiting else None

    def _add(self, line: BatchLine) -> None:
        self._waiting.append(line)
        self._idle.clear()
        self._news.set()

    def _next_batch(self) -> list[BatchLine]:
        batch: list[BatchLine] = []
        chars = 0
        for line in self._waiting:
            chars += len(line.line)
            if len(batch) == BATCH_LINES_MAX or (batch and chars > BATCH_CHARS_MAX):
                break
            batch.append(line)
        return batch


class OutputLines:
    """A program's output: cut into lines, decoded, and bounded.

    A line is what a terminal would show of it after the last carriage return: progress bars take
    one line. Colours are kept; bytes that are not UTF-8 become U+FFFD. When the log is full one
    line says so, and the last lines are added by `end`. `reason`: why it failed, if it says so.
    """

    def __init__(self, log: BuildLog, stage: str) -> None:
        self._log = log
        self._stage = stage
        self._masked = log.masker.stream()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._left_out = 0
        self._usage = UsageFilter()
        self._engines = EngineFilter()
        self.reason = Found()

    @property
    def tail(self) -> list[str]:
        """The last lines, whether or not the log had room for them."""
        return list(self._tail)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the output."""
        self._take(self._masked.feed(chunk))

    def _take(self, chunk: bytes) -> None:
        text = self._decoder.decode(chunk)
        if self._left_out and text.count("\n") > 2 * TAIL_LINES:
            text = self._without_middle(text)
        *lines, partial = (self._partial + text).split("\n")
        done = [piece for line in lines for piece in _pieces(_shown(line))]
        self._partial = _unfinished(partial)
        if len(self._partial) > LINE_CHARS_MAX:
            *more, self._partial = _pieces(self._partial)
            done += more
        self._keep(done)

    def end(self) -> None:
        """Take the output as ended: what has no line end yet is a line too."""
        self._take(self._masked.end())
        rest = self._partial + self._decoder.decode(b"", final=True)
        if rest:
            self._partial = ""
            self._keep(list(_pieces(_shown(rest))))
        self._add(self._engines.end())
        if self._left_out:
            shown = self.tail[-self._left_out :]
            hidden = self._left_out - len(shown)
            self._log.line(self._stage, f"... {counted(hidden, 'line')} left out; the last ones:")
            for line in shown:
                self._log.line(self._stage, line)

    def _keep(self, lines: list[str]) -> None:
        self._add(self._engines.rest(self._usage.rest(lines)))
        self._log.engine = self._log.engine or self._engines.first

    def _add(self, lines: list[str]) -> None:
        self._tail.extend(lines)
        self.reason.look(lines)
        taken = 0 if self._left_out else self._log.take(self._stage, lines)
        if taken < len(lines) and not self._left_out:
            self._log.line(
                self._stage,
                f"... log truncated: it has {LOG_LINES_MAX:,} lines, or {self._log.chars_max:,}"
                " characters (builders.log_chars_max), already",
            )
        self._left_out += len(lines) - taken

    def _without_middle(self, text: str) -> str:
        """Drop the lines that neither end the line begun nor can be among the last ones."""
        first, _, rest = text.partition("\n")
        last = rest.rsplit("\n", TAIL_LINES + 1)[1:]
        self._left_out += rest.count("\n") - (len(last) - 1)
        return "\n".join([first, *last])


def _shown(line: str) -> str:
    line = line.removesuffix("\r")
    return line.rpartition("\r")[2].replace("\0", "\ufffd")


def _unfinished(line: str) -> str:
    """Drop what a carriage return has overwritten; one at the end may belong to the line's end."""
    ending = "\r" if line.endswith("\r") else ""
    return _shown(line) + ending


def _pieces(line: str) -> list[str]:
    if len(line) <= LINE_CHARS_MAX:
        return [line]
    return [line[i : i + LINE_CHARS_MAX] for i in range(0, len(line), LINE_CHARS_MAX)]
