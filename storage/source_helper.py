"""A second process that reads files of a large tree on its way in: Python uses one core at a time.

It is told where files lie, and answers with their digests, or that it has none. Nobody waits for
it: what it has not answered in time is read without it. So it is of use where a core is idle, and
does no harm where none is any more, or where it ends early for whatever reason.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from storage.digest import Digest
from storage.source import WHOLE_BYTES_MAX, Place, SourceFile
from storage.source_worker import ANSWER, HEAD
from storage.worker_process import has_core, start_worker, stop_worker

GIVEN_COUNT_MAX = 64  # files that it has not answered: more than it reads until somebody looks
IDLE_COUNT_MIN = 1  # processors without work
_PASSED_COUNT = 8  # files that the caller reads before it looks again where there was no answer


class SourceHelper:
    """A process that reads files of one folder, or out of one file. End it with `stop`."""

    def __init__(self, place: Place) -> None:
        """`place`: of any of its files. Raises OSError where it cannot be started."""
        self._whole = place.whole
        self._process = start_worker("source_worker", str(place.fd), fds=(place.fd,))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        os.set_blocking(self._questions, False)
        os.set_blocking(self._replies, False)
        self._given: deque[SourceFile] = deque()
        self._answered_count = 0
        self._passed_count = 0
        self._begun = b""  # an answer that is not all here
        self._is_over = False  # it has ended, or is no program of ours

    def give(self, file: SourceFile, place: Place) -> bool:
        """Have a file read, and say whether it will be: not what lies elsewhere, nor too much at
        once. Does not wait.
        """
        if self._is_over or self.is_busy:
            return False
        if place.whole is not self._whole or file.size_bytes > WHOLE_BYTES_MAX:
            return False
        path, facts = place.path, place.facts
        head = HEAD.pack(place.offset, file.size_bytes, len(path), len(facts))
        question = head + path + facts
        if len(question) > select.PIPE_BUF:
            return False
        try:
            os.write(self._questions, question)  # whole or not at all: pipe(7), "PIPE_BUF"
        except BlockingIOError:
            return False
        except OSError:
            self._is_over = True
            return False
        self._given.append(file)
        return True

    @property
    def is_busy(self) -> bool:
        return len(self._given) >= GIVEN_COUNT_MAX

    def answers(self) -> list[tuple[SourceFile, Digest | None]]:
        """Return what was answered since: None for what the caller should read."""
        if self._passed_count > 0:
            self._passed_count -= 1
            return []
        if self._is_over:
            return []
        try:
            data = self._begun + os.read(self._replies, GIVEN_COUNT_MAX * ANSWER.size)
        except BlockingIOError:
            self._passed_count = _PASSED_COUNT
            return []
        # In the order in which they were asked. Of what was taken back an answer may come still.
        count = min(len(data) // ANSWER.size, len(self._given))
        end = count * ANSWER.size
        self._begun = data[end:]
        found: list[tuple[SourceFile, Digest | None]] = []
        for number, is_read, digest in ANSWER.iter_unpack(data[:end]):
            self._answered_count += 1
            if number != self._answered_count:
                self._is_over = True
                break
            found.append((self._given.popleft(), Digest(digest) if is_read else None))
        return found

    def rest(self) -> Iterator[tuple[SourceFile, Digest | None]]:
        """Give what was not answered before; what the caller reads meanwhile is its last ones."""
        while self._given:
            yield from self.answers()
            if self._given:
                yield self._given.pop(), None

    def stop(self) -> None:
        """Break it off. A thread of its own waits for its end: it may be long before it has a
        processor.
        """
        self._process.kill()
        with contextlib.suppress(RuntimeError):  # without one, the next start of a program does
            threading.Thread(target=stop_worker, args=(self._process,), daemon=True).start()


def source_helper(place: Place) -> SourceHelper | None:
    """Start one where a core is idle, and it can be started."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if has_core() and _running_count() + IDLE_COUNT_MIN <= (os.cpu_count() or 1):
            return SourceHelper(place)
    return None


def _running_count() -> int:
    """How many threads on this machine run just now or could: this one is among them.

    Source: proc(5), "/proc/loadavg", the fourth field.
    """
    running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
    return int(running)
