"""The collector: takes from the store what nothing keeps, while others use it.

A cycle goes from decisions to deletions, and each step rests on what the one before made durable.
Nothing is given up before it is certain that files may go for it. Then artifacts expire and are
dropped, which changes rows alone; trees that nobody asks for any more are condemned, and lose their
references; blobs without a reference are condemned and then unlinked, a few at a time, alone behind
the gate. Any error ends the cycle there and then, but for a file that cannot be removed: that one
is left and said. The next cycle takes up what was begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from storage.artifacts import ArtifactStore
from storage.audit import Audit
from storage.blobs import blob_path
from storage.decisions import Decided, apply, decide
from storage.digest import Digest
from storage.errors import CollectorBusyError, RecordsError
from storage.files import Remover, mapped_errors
from storage.gate import Gate
from storage.holding import held_trees
from storage.leftovers import check_leftovers, doubt_of_leftovers, remove_leftovers
from storage.model import BuildCache
from storage.records import blobs as rows
from storage.records import garbage
from storage.records import retention as retention_rows
from storage.records.damage import Damage
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.recovery import Recovered
from storage.repair import Repairer
from storage.retention import Fate, Pressure, Retention, Verdict
from storage.timestamps import now_ms

# Blobs that go while the gate is held: as many as take some `HELD_S`, which differs a lot by disk.
BATCH_COUNT_MAX = 250
BATCH_COUNT_MIN = 10
BATCH_COUNT_FIRST = 60
HELD_S = 0.03
REFS_COUNT = 2000  # references in one transaction
TREES_COUNT = 50  # manifests that go while the gate is held
DUTY = 0.2  # how much of the time a collector that is in no hurry holds the gate
ASK_EVERY_S = 0.05  # whether another collector has ended


@dataclass(frozen=True, slots=True)
class Order:
    """How to collect.

    Attributes:
        pressure: What is given up for room.
        is_forced: Go on where so much would go that it looks wrong.
        is_hurried: Do not leave the gate to others for most of the time.
        is_thorough: Look for files that no row knows, too.
        waits: When somebody collects already, wait for the end of that.
    """

    pressure: Pressure = Pressure.NONE
    is_forced: bool = False
    is_hurried: bool = False
    is_thorough: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """What a cycle did, or would do.

    Attributes:
        verdicts: About every artifact that was there.
        caches: The build caches that went, and why each did.
        trees: How many trees went; so with `blobs`, whose sizes together are `size_bytes`.
        leftovers: How many files went that no row knew; `leftover_bytes` is their size.
        is_whole: False when it was stopped before its end.
        stuck: Files that could not be removed, and why; the next cycle tries again.
        doubt: Why no tree, no blob or no leftover went, and what to do; None when they did.
    """

    verdicts: tuple[Verdict, ...] = ()
    caches: tuple[tuple[BuildCache, str], ...] = ()
    trees: int = 0
    blobs: int = 0
    size_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0
    is_whole: bool = True
    stuck: tuple[str, ...] = ()
    doubt: str | None = None

    def of(self, *fates: Fate) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.fate in fates]

    @property
    def freed_bytes(self) -> int:
        """How much smaller the store's files are together."""
        return self.size_bytes + self.leftover_bytes

    @property
    def is_idle(self) -> bool:
        """Whether nothing happened at all."""
        counts = self.trees + self.blobs + self.leftovers + len(self.caches)
        return not counts and not self.of(Fate.EXPIRES, Fate.RESTORED, Fate.DROPPED)


class _StoppedError(Exception):
    """Somebody asked the collector to stop: the cycle ends between two steps."""


@dataclass(slots=True)
class _Tally:
    trees: int = 0
    blobs: int = 0
    size_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0


@dataclass(slots=True)
class _Cycle:
    """What one run knows of itself."""

    order: Order
    tally: _Tally = field(default_factory=_Tally)
    audited: set[Digest] = field(default_factory=set)  # trees that were asked
    doubt: str | None = None
    batch_count: int = BATCH_COUNT_FIRST


class Collector:
    """The collector of one store. Any thread may run it, and any process: one does at a time."""

    def __init__(
        self,
        store: ArtifactStore,
        records: Records,
        retention: Retention,
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.retention = retention
        self._store = store
        self._layout = store.layout
        self._records = records
        self._gate = Gate(store.layout)
        self._clock = clock
        self._stopping = threading.Event()
        self._remover = Remover()  # of the cycle under way
        repairer = Repairer(store, records, clock=clock)
        self._audit = Audit(store.layout, records, repairer, self._check_stop)

    def stop(self) -> None:
        """End the cycle under way between two batches, and let no other begin."""
        self._stopping.set()

    def take_damage(self) -> list[Damage]:
        """The manifests that were found damaged since this was last asked, also in cycles that
        were refused. They are in quarantine.
        """
        found, self._audit.found = self._audit.found, []
        return found

    def plan(self, pressure: Pressure = Pressure.NONE, *, is_forced: bool = False) -> Collected:
        """Say what a cycle would do now. Changes nothing.

        `is_forced`: as of an `Order`.
        """
        with mapped_errors("plan a collection"), mapped_record_errors():
            db = self._records.reader()
            decided = self._decisions(db, self._clock(), pressure)
            unkept = garbage.unkept_trees(db)
            doubt = self._audit.doubt(but=decided.ids(Fate.DROPPED))
            if doubt is None and not is_forced:
                doubt = self._audit.doubt_of_unkept(unkept)
            if doubt is not None:
                return Collected(decided.verdicts, decided.caches, doubt=doubt)
            trees = {*decided.going, *unkept, *garbage.condemned_trees(db)}
            freed = garbage.freed_blobs(db, trees)
            loose = garbage.unreferred_blobs(db)
            doubt = None if is_forced else self._audit.doubt_of_loose(loose)
            if doubt is not None:
                trees, loose = set(), []
            else:
                doubt = doubt_of_leftovers(
                    self._layout, self._records, self._gate, is_forced=is_forced
                )
            return Collected(
                verdicts=decided.verdicts,
                caches=decided.caches,
                trees=len(trees),
                blobs=freed.blobs + len(loose),
                size_bytes=freed.size_bytes + garbage.size_of(db, loose),
                doubt=doubt,
            )

    def run(self, order: Order = Order()) -> Collected:
        """Collect once. Blocking: call it from a thread.

        What it freed is free when it returns, and what anybody may still want is not touched. It
        ends early after `stop`.

        Raises:
            CollectorBusyError: Somebody collects already, and the order is not to wait.
            CollectionRefusedError: Something looks wrong: the records are damaged, which nothing
                goes on beside, or so much would go that `is_forced` is needed.
            StorageError: The system or the database refused. What was begun is taken up by the next
                cycle; nothing that is in use was touched.
        """
        with mapped_errors("collect"), mapped_record_errors(), self._alone(waits=order.waits):
            cycle = _Cycle(order)
            self._remover = Remover()
            self._store.room.relieve_if_full()
            # A commit before all else: it proves that the records can be written. After it no
            # earlier commit is in doubt; one that fails meanwhile may be, and so there is another
            # commit behind the gate wherever files go.
            now = self._clock()
            self._records.write(
                lambda db: retention_rows.note_run(db, now, is_thorough=order.is_thorough)
            )
            done, recovered = Collected(), Recovered(0, 0, 0)
            try:
                goes = order.is_thorough or self._may_something_go(order.pressure)
                self._audit.check_database(goes=goes)
                recovered = self._store.recover()
                done = self._decide(self._permitted(cycle), goes=goes)
                self._check(cycle)
                cycle.doubt = self._audit.doubt()
                if cycle.doubt is None and goes:
                    self._collect(cycle)
                if cycle.doubt is None and order.is_thorough:
                    self._remove_leftovers(cycle)
            except _StoppedError:
                done = replace(done, is_whole=False)
            tally = cycle.tally
            return replace(
                done,
                stuck=tuple(dict.fromkeys((*recovered.stuck, *self._remover.stuck()))),
                doubt=cycle.doubt,
                trees=tally.trees,
                blobs=tally.blobs,
                size_bytes=tally.size_bytes,
                leftovers=tally.leftovers,
                leftover_bytes=tally.leftover_bytes,
            )

    def _may_something_go(self, pressure: Pressure) -> bool:
        """Whether a cycle would change anything, by what the records say as they are now.

        Where they cannot be read, whoever looks at them before it does will say why.
        """
        db = self._records.reader()
        try:
            with mapped_record_errors():
                decided = self._decisions(db, self._clock(), pressure)
                return decided.changes or _has_garbage(db)
        except RecordsError:
            return True

    # -- decisions ------------------------------------------------------------------------------

    def _permitted(self, cycle: _Cycle) -> Pressure:
        """How much may be given up for room: nothing where no file could go for it.

        Raises:
            CollectionRefusedError: The records do not know what is in use.
        """
        pressure = cycle.order.pressure
        planned = self._decisions(self._records.reader(), self._clock(), pressure)
        if planned.gives_up:
            self._ask_trees(cycle, but=planned.going)
            if self._audit.doubt(but=planned.ids(Fate.DROPPED)):
                return Pressure.NONE
        return pressure

    def _decide(self, pressure: Pressure, *, goes: bool) -> Collected:
        """Let artifacts and caches go that nothing keeps. Rows alone change.

        Unless it `goes`, which a check of the database came before, what is to go by now waits for
        the next cycle.
        """
        now = self._clock()
        decided = self._decisions(self._records.reader(), now, pressure)
        if not goes:
            return Collected(verdicts=decided.unchanged)
        if decided.changes:
            # Once more, in the transaction: somebody may deploy or pin one in this very moment.
            decided, envelopes = self._records.write(lambda db: self._apply(db, now, pressure))
            for name in envelopes:
                self._remover.remove(self._layout.envelope(name))
        return Collected(verdicts=decided.verdicts, caches=decided.caches)

    def _decisions(self, db: sqlite3.Connection, now: int, pressure: Pressure) -> Decided:
        return decide(db, self.retention, now, pressure)

    def _apply(
        self, db: sqlite3.Connection, now: int, pressure: Pressure
    ) -> tuple[Decided, list[str]]:
        decided = self._decisions(db, now, pressure)
        return decided, apply(db, decided, now)

    # -- trees ----------------------------------------------------------------------------------

    def _check(self, cycle: _Cycle) -> None:
        """Make sure, where something may go, that the records know what is in use."""
        if cycle.order.is_thorough or _has_garbage(self._records.reader()):
            self._ask_trees(cycle)

    def _ask_trees(self, cycle: _Cycle, but: AbstractSet[Digest] = frozenset()) -> None:
        """Each tree once in a cycle: `but` those that are about to go, and stay after all if
        somebody wants them in that moment.
        """
        is_thorough = cycle.order.is_thorough
        cycle.audited |= self._audit.check_trees(is_thorough=is_thorough, but=but | cycle.audited)

    def _collect(self, cycle: _Cycle) -> None:
        db = self._records.reader()
        unkept = garbage.unkept_trees(db)
        if not cycle.order.is_forced:
            self._audit.check_unkept(unkept)
        self._condemn_trees(unkept)
        condemned = garbage.condemned_trees(db)
        for digest in condemned:
            self._release_tree(cycle, digest)
        self._sweep_loose(cycle)
        for start in range(0, len(condemned), TREES_COUNT):
            self._check_stop()
            self._unlink_trees(cycle, condemned[start : start + TREES_COUNT])

    def _condemn_trees(self, unkept: Sequence[Digest]) -> None:
        if not unkept:
            return
        # A reader says which tree it reads before it looks whether it is there, behind the gate:
        # alone behind it, either it is seen here or it will not find the tree.
        with self._gate.collecting():
            unread = set(unkept) - held_trees(self._layout)
            self._records.write(lambda db: garbage.condemn_trees(db, unread))

    def _release_tree(self, cycle: _Cycle, digest: Digest) -> None:
        """Remove a tree's references, and the blobs that nothing refers to then."""
        count = REFS_COUNT
        while count == REFS_COUNT:
            self._check_stop()
            count, loose = self._records.write(
                lambda db: garbage.release_refs(db, digest, limit_count=REFS_COUNT)
            )
            self._sweep(cycle, loose)

    def _unlink_trees(self, cycle: _Cycle, digests: Sequence[Digest]) -> None:
        with self._gate.collecting():
            self._records.settle()  # of one that took such a tree in again and failed
            found = garbage.forgettable_trees(self._records.reader(), digests)
            gone = [one for one in found if self._remover.remove(self._layout.tree(one))]
            self._records.write(lambda db: garbage.forget_trees(db, gone))
        cycle.tally.trees += len(gone)

    # -- blobs ----------------------------------------------------------------------------------

    def _sweep_loose(self, cycle: _Cycle) -> None:
        """Remove the blobs that nothing refers to, whatever the reason."""
        loose = garbage.unreferred_blobs(self._records.reader())
        if not cycle.order.is_forced:
            self._audit.check_loose(loose)
        self._sweep(cycle, loose)

    def _sweep(self, cycle: _Cycle, blob_ids: Sequence[int]) -> None:
        start = 0
        while start < len(blob_ids):
            self._check_stop()
            # Or it would happen while the gate is held.
            self._records.checkpoint()
            batch = blob_ids[start : start + cycle.batch_count]
            began = time.monotonic()
            self._sweep_batch(cycle.tally, batch)
            held_s = time.monotonic() - began
            start += len(batch)
            cycle.batch_count = next_batch_count(len(batch), held_s)
            if not cycle.order.is_hurried:
                self._stopping.wait(held_s * (1 / DUTY - 1))

    def _sweep_batch(self, tally: _Tally, blob_ids: Sequence[int]) -> None:
        with self._gate.collecting():
            condemned = self._records.write(lambda db: garbage.condemn_blobs(db, blob_ids))
            if not condemned:
                return
            self._unlink_blobs(condemned)
            refused = self._remover.refused
            gone = [b for b in condemned if blob_path(self._layout, b.key) not in refused]
            self._records.write(lambda db: rows.forget(db, [blob.key for blob in gone]))
        tally.blobs += len(gone)
        tally.size_bytes += sum(blob.size_bytes for blob in gone)

    def _unlink_blobs(self, condemned: Sequence[garbage.BlobRow]) -> None:
        for blob in condemned:
            self._remover.remove(blob_path(self._layout, blob.key))

    def _remove_leftovers(self, cycle: _Cycle) -> None:
        check_leftovers(self._layout, self._records, self._gate, is_forced=cycle.order.is_forced)
        removed = remove_leftovers(
            self._layout,
            self._records,
            self._gate,
            self._remover,
            is_stopped=self._stopping.is_set,
        )
        cycle.tally.leftovers += removed.files
        cycle.tally.leftover_bytes += removed.size_bytes
        self._check_stop()

    # -- one at a time --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, *, waits: bool) -> Iterator[None]:
        fd = os.open(self._layout.collector, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _is_locked(fd):
                if not waits or self._stopping.wait(ASK_EVERY_S):
                    raise CollectorBusyError("somebody collects already")
            yield
        finally:
            os.close(fd)

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise _StoppedError


def _has_garbage(db: sqlite3.Connection) -> bool:
    finders = (garbage.unkept_trees, garbage.condemned_trees, garbage.unreferred_blobs)
    return any(find(db) for find in finders)


def next_batch_count(count: int, took_s: float) -> int:
    """How many blobs to take next, when `count` of them took so long: no more than twice as many,
    so that one fast batch of few does not lead to a slow one of many.
    """
    fitting = int(count * min(HELD_S / max(took_s, 1e-6), 2))
    return max(BATCH_COUNT_MIN, min(fitting, BATCH_COUNT_MAX))


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
