"""The scrub: everything that is stored is read again, time after time, before anybody needs it.

What was not read for longest comes first, from the medium and not from memory, slowly. When each
part was last read stands in the records, so that a restart loses a few seconds of work at most.
What is damaged goes into quarantine, and is repaired from another copy if there is one.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.copies import Source
from storage.digest import Digest
from storage.errors import StorageError
from storage.files import mapped_errors
from storage.inspector import Pace
from storage.parts import Part
from storage.records import damage, garbage, unsecured
from storage.records import scrub as rows
from storage.records.damage import Damage
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.repair import Mended, Repairer
from storage.scrub_round import Round
from storage.timestamps import now_ms

FILE_COST_BYTES = 64 << 10  # what opening a file takes of a disk, as if so much were read
TURN_S = 5.0  # of reading; then what was read is written down
TURN_COUNT = 500
MEND_EVERY_S = 3600.0
DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class ScrubLimits:
    """How the scrub goes about it.

    Attributes:
        every_ms: A part is read again when it was not read for so long.
        bytes_per_s: How fast it reads, at most. 0 for not at all.
        quarantine_ms: How long what was damaged is kept after it was mended.
    """

    every_ms: int = 30 * DAY_MS
    bytes_per_s: int = 8 << 20
    quarantine_ms: int = 30 * DAY_MS


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did.

    Attributes:
        parts: How many parts were read, with `size_bytes` of blobs.
        found: What was damaged, and not known to be before; what could not be put away is tried
            again, and found each time.
        mended: What is whole again, whenever it was found.
        trust_fault: What is wrong with the generations of trust, when they were last read.
        is_idle: There was nothing to read.
        trouble: What ended the mending before all was tried, if something did.
    """

    parts: int
    size_bytes: int
    found: tuple[Damage, ...]
    mended: tuple[Mended, ...]
    trust_fault: str | None
    is_idle: bool
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Mending:
    """What was mended, and what ended the mending before all was tried, if something did."""

    mended: tuple[Mended, ...] = ()
    trouble: str | None = None


class Scrubber:
    """The scrub of one store. One turn at a time; from any thread.

    `trust_folder`: where the store has the generations of trust.
    """

    def __init__(
        self,
        repairer: Repairer,
        records: Records,
        sources: Sequence[Source],
        trust_folder: Path,
        *,
        limits: ScrubLimits,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.limits = limits
        self._repairer = repairer
        self._records = records
        self._sources = sources
        self._clock = clock
        self._round = Round(trust_folder, records, every_ms=limits.every_ms)
        self._stopping = threading.Event()
        self._tried_at = float("-inf")  # when it last tried to mend
        self._stuck: dict[Part, float] = {}  # what could not be put away, and when that was tried

    def stop(self) -> None:
        """End the turn under way, within a moment, and let no other begin."""
        self._stopping.set()

    def turn(self) -> Turn:
        """Read some seconds' worth of what was not read for longest. Blocking.

        Raises:
            StorageError: The system or the database refused; the next turn reads the same again.
        """
        with mapped_errors("scrub the store"), mapped_record_errors():
            return self._turn()

    def progress(self) -> rows.Progress:
        """Say how far it is."""
        with mapped_record_errors():
            return rows.progress(self._records.reader(), *self._due_between())

    def examine(self, digest: Digest, envelope_sha256: str) -> tuple[list[Damage], Mending]:
        """Look at everything of one artifact now; condemn and mend. For who stumbled over it.

        Raises:
            StorageError: As `turn`.
        """
        parts = [Part.of_envelope(envelope_sha256), Part.of_tree(digest)]
        with mapped_record_errors():
            blobs = garbage.references(self._records.reader(), digest)
        parts += [Part.of_blob(key) for key in sorted(blobs)]
        found = self._repairer.condemn(parts)
        with mapped_record_errors():
            if count := sum(one.found_at is not None for one in found):
                self._write_down((), (), 0, found=count)
            return found, self._mend(pace=None)  # somebody waits

    def tidy(self) -> int:
        """Remove from quarantine what has been there for long enough; return how many files."""
        return len(self._repairer.forget_quarantined(older_than_ms=self.limits.quarantine_ms))

    def _turn(self) -> Turn:
        is_on = self.limits.bytes_per_s > 0
        waiting = self._due() if is_on else []
        pace = _Pace(self.limits.bytes_per_s, self._stopping)
        good: list[Part] = []
        suspects: list[Part] = []
        size_bytes = 0
        with contextlib.suppress(_StoppedError):
            for one in waiting:
                if pace.is_over():
                    break
                pace.spend(FILE_COST_BYTES)
                fault = self._repairer.inspector.fault(one.part, one.size_bytes, pace=pace.spend)
                (good if fault is None else suspects).append(one.part)
                size_bytes += one.size_bytes or 0
        found = self._repairer.condemn(suspects)
        stuck = {one.part for one in found if one.found_at is None}
        self._stuck |= dict.fromkeys(stuck, time.monotonic())
        bad = [part for part in suspects if part not in stuck]
        self._write_down(good, bad, size_bytes, found=len(found) - len(stuck))
        mending = Mending()
        if len(found) > len(stuck) or self._is_time_to_mend():
            # What the reading before took is over: this is no turn of so many seconds.
            anew = _Pace(self.limits.bytes_per_s, self._stopping).spend if is_on else None
            mending = self._mend(anew)
        return Turn(
            len(good) + len(suspects),
            size_bytes,
            tuple(found),
            mending.mended,
            trust_fault=self._round.trust_fault(self._clock()) if is_on else None,
            is_idle=not waiting,
            trouble=mending.trouble,
        )

    def _due(self) -> list[rows.Due]:
        """What to read next: not what is known to be damaged and was tried to be put away lately,
        which is the first in each list and would keep all others from being read.
        """
        since = time.monotonic() - MEND_EVERY_S
        self._stuck = {part: at for part, at in self._stuck.items() if at > since}
        count = TURN_COUNT + len(self._stuck)
        due = rows.due(self._records.reader(), *self._due_between(), limit_count=count)
        released = self._round.due(self._clock(), limit_count=count)
        waiting = [*(rows.Due(part, None) for part in released), *due]
        return [one for one in waiting if one.part not in self._stuck]

    def _due_between(self) -> tuple[int, int]:
        """What was read between these times need not be read now."""
        now = self._clock()
        return now - self.limits.every_ms, now

    def _is_time_to_mend(self) -> bool:
        """What could not be mended is tried again now and then: there may be a copy by then."""
        return time.monotonic() - self._tried_at >= MEND_EVERY_S

    def _mend(self, pace: Pace | None) -> Mending:
        """Mend what can be. What is in the way ends this, and takes nothing from what was done."""
        self._tried_at = time.monotonic()
        mended: list[Mended] = []
        trouble = None
        try:
            with mapped_record_errors():
                self._mend_into(mended, pace)
        except StorageError as error:
            trouble = str(error)
        return Mending(tuple(mended), trouble)

    def _mend_into(self, mended: list[Mended], pace: Pace | None) -> None:
        if not self._repairer.damage():
            return
        try:
            with contextlib.suppress(_StoppedError):
                self._repairer.mend(self._sources, pace=pace, into=mended)
                # What a build would have made anew is not worth to be mourned for.
                self._records.write(damage.drop_caches)
        finally:
            if mended:
                self._note_mended(len(mended))

    def _note_mended(self, count: int) -> None:
        at = self._clock()
        self._records.write(
            lambda db: rows.note_work(db, at, parts=0, size_bytes=0, found=0, mended=count)
        )

    def _write_down(
        self, good: Sequence[Part], bad: Sequence[Part], size_bytes: int, *, found: int
    ) -> None:
        if not good and not bad and not found:
            return
        at = self._clock()

        def change(db: sqlite3.Connection) -> None:
            # Suspects too: those that are damaged have other rows by now.
            rows.note_read(db, [*good, *bad], at)
            unsecured.forget(db, unsecured.every(db).keys() & good)
            parts = len(good) + len(bad)
            rows.note_work(db, at, parts=parts, size_bytes=size_bytes, found=found, mended=0)

        self._records.write(change)
        self._round.note_read([*good, *bad], at)


class _StoppedError(Exception):
    """Somebody asked the scrub to stop: the turn ends in the middle of a file."""


class _Pace:
    """Keeps whoever reads to so many bytes a second, and counts the seconds."""

    def __init__(self, bytes_per_s: int, stopping: threading.Event) -> None:
        self._bytes_per_s = bytes_per_s
        self._stopping = stopping
        self._began = time.monotonic()
        self._spent = 0

    def spend(self, size_bytes: int) -> None:
        self._spent += size_bytes
        ahead_s = self._spent / self._bytes_per_s - (time.monotonic() - self._began)
        if self._stopping.wait(max(ahead_s, 0)):
            raise _StoppedError

    def is_over(self) -> bool:
        return time.monotonic() - self._began >= TURN_S
