"""Repair: damaged parts of a store go into quarantine, and good copies take their places.

Both happen alone behind the gate, for a moment each: nobody publishes or collects meanwhile. The
records say that a part is damaged after its file is secured in quarantine, and that it is whole
after a verified copy lies in its place, durably. Whenever this process ends in between, the next
one goes on from there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.artifacts import ArtifactStore
from storage.blobs import Staging, blob_key, blob_sizes
from storage.copies import Lacking, Offer, Source
from storage.errors import ArtifactError, TreeError
from storage.files import FULL, Lease, mapped_errors
from storage.gate import Gate
from storage.inspector import Fault, Inspector, Pace, stamp_of
from storage.layout import STATEMENT_MODE, blob_mode
from storage.manifest import Manifest
from storage.parts import Part, PartKind
from storage.quarantine import Kept, Quarantine
from storage.records import blobs as rows
from storage.records import damage, index, unsecured
from storage.records.damage import Damage
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.timestamps import now_ms

# Says in the records, at a time, that a part is there again.
_Heal = Callable[[sqlite3.Connection, int], None]

_STAGED = "part"  # no name that the recovery of an ingest looks for
IN_PLACE = "its own file"
IN_QUARANTINE = "its own file, in quarantine"


@dataclass(frozen=True, slots=True)
class Mended:
    """A part that is whole again, and where the copy came from, for people."""

    part: Part
    source: str


class Repairer:
    """Repairs one store. Any thread and any process may, also several at once."""

    def __init__(
        self, store: ArtifactStore, records: Records, *, clock: Callable[[], int] = now_ms
    ) -> None:
        self._store = store
        self._layout = store.layout
        self._records = records
        self._gate = Gate(store.layout)
        self._clock = clock
        self.inspector = Inspector(store.layout)
        self.quarantine = Quarantine(store.layout)
        self._read: dict[str, tuple[int, int, int]] = {}  # files that are no copies, as they were

    def condemn(self, suspects: Iterable[Part]) -> list[Damage]:
        """Look at parts again; what is damaged goes into quarantine and counts as absent.

        What only lies there wrongly, with its bytes right, is set right. Where the system refuses
        something about one of them, the damage says so and the others are gone on with.

        Returns:
            The damage that nobody had written down before. What there is no place for in quarantine
            stays where it is and counts as there: it has no `found_at`, and is returned each time.

        Raises:
            StorageError: The system or the database refused.
        """
        with mapped_errors("look for damage"), mapped_record_errors():
            looked = [self._look(part) for part in suspects]
        return [found for found in looked if found is not None]

    def mend(
        self,
        sources: Sequence[Source],
        *,
        pace: Pace | None = None,
        into: list[Mended] | None = None,
    ) -> list[Mended]:
        """Put a good copy into the place of everything that is damaged, as far as there are any.

        Where the system refuses one, its damage says so and the others are gone on with. What lies
        in quarantine, and in the places, is read before anything is written for it, and is not read
        again by this one while it stays as it is: only what could not be read is tried each time.

        `pace`: of that reading. What it raises ends the mending. `into`: is added to and returned;
        whoever gave it has what was mended before an error, too.

        Raises:
            StorageFullError: There is no room for copies.
            StorageError: The store or the database refused. A source that cannot be read is passed
                over.
        """
        mended = [] if into is None else into
        with mapped_errors("repair the store"), mapped_record_errors():
            self._records.write(damage.tidy)
            tried: set[Part] = set()
            in_place = functools.partial(self._in_place, pace=pace)
            in_quarantine = functools.partial(self._in_quarantine, pace=pace)
            # What was found damaged is asked again last: reading it may take long.
            asked: tuple[Source, ...] = (in_place, *sources, in_quarantine)
            # A manifest that is whole again may name blobs that the records had lost.
            while lacking := self._lacking(tried):
                tried.update(lacking)
                for source in asked:
                    if lacking:
                        self._mend_from(source, lacking, mended)
        return mended

    def damage(self) -> list[Damage]:
        """All that is damaged, as the records say."""
        return damage.every(self._records.reader())

    def forget_quarantined(self, *, older_than_ms: int) -> list[Kept]:
        """Remove from quarantine what was found long ago and is mended since.

        Raises:
            StorageError: The system or the database refused.
        """
        with mapped_errors("tidy the quarantine"), self._gate.collecting():
            still = {found.part for found in self.damage()}
            forgotten = self.quarantine.forget(self._clock() - older_than_ms, but=still)
        for kept in forgotten:
            self._read.pop(self.quarantine.path(kept.name), None)
        return forgotten

    # -- condemning -----------------------------------------------------------------------------

    def _size_of(self, part: Part) -> int | None:
        """The size of a live part by its row, which a statement has none of; None when it is gone,
        going, or known to be damaged.
        """
        db = self._records.reader()
        if part.kind is PartKind.BLOB:
            return rows.size_of_live(db, part.key)
        if part.kind is PartKind.TREE:
            return 0 if rows.has_tree(db, part.digest) else None
        is_known = rows.is_attested(db, part.name) and not damage.is_damaged(db, part)
        return 0 if is_known else None

    def _look(self, part: Part) -> Damage | None:
        size_bytes = self._size_of(part)
        fault = self.inspector.fault(part, size_bytes) if size_bytes is not None else None
        if size_bytes is None or fault is None:
            if unsecured.is_noted(self._records.reader(), part):
                self._records.write(lambda db: unsecured.forget(db, [part]))
            return None
        if not fault.is_of_bytes and self._set_right(part, size_bytes):
            return None
        return self._condemn(part, size_bytes, fault)

    def _condemn(self, part: Part, size_bytes: int, fault: Fault) -> Damage | None:
        with self._gate.collecting():
            if self._size_of(part) is None:
                return None  # collected, or found by somebody else
            is_seen = self.inspector.is_as_before(part, fault)
            if not is_seen and self.inspector.fault(part, size_bytes) is None:
                return None
            at = self._clock()
            why = fault.text
            with _each_by_itself() as trouble:
                name = self.quarantine.secure(part, at)
            if trouble:  # what is there is overwritten, if it counts as absent: it must not be lost
                why = f"{why}; no place in quarantine{trouble[0]}"
                self._records.write(lambda db: unsecured.note(db, part, why))
                return Damage(part, size_bytes, why, None)
            self._records.write(lambda db: damage.note(db, part, why, at))
            with _each_by_itself() as trouble:
                if name is not None:
                    self.quarantine.take(part, name)
            if trouble:
                why = f"{why}; cannot be moved away{trouble[0]}"
                self._records.write(lambda db: damage.note(db, part, why, at))
        return Damage(part, size_bytes, why, at)

    def _set_right(self, part: Part, size_bytes: int) -> bool:
        """Replace a file by its own bytes, with mode, time and owner as they must be.

        Not changed in place: whoever set them wrongly may hold the file open.
        """
        path = part.path(self._layout)
        with contextlib.suppress(OSError):  # to be able to read it
            os.chmod(path, _mode(part))  # noqa: PTH101 - a plain string
        offer = Offer.of_file(part, path, IN_PLACE, size_bytes)
        with contextlib.suppress(ArtifactError, TreeError), _each_by_itself() as trouble:
            if self._take(offer, is_needed=lambda: self._size_of(part) is not None):
                return True
        return bool(
            trouble
        )  # its bytes are right: it stays as it is, and a check goes on to say so

    # -- mending --------------------------------------------------------------------------------

    def _lacking(self, tried: Collection[Part]) -> dict[Part, int | None]:
        """What is damaged and was not tried to mend yet, with the sizes of blobs."""
        return {one.part: one.size_bytes for one in self.damage() if one.part not in tried}

    def _mend_from(
        self, source: Source, lacking: dict[Part, int | None], mended: list[Mended]
    ) -> None:
        offers = source(lacking)
        while True:
            try:
                offer = next(offers, None)
                if offer is None:
                    return
                if offer.part not in lacking or not self._take_or_say(offer):
                    continue
            except (ArtifactError, TreeError):
                continue  # there is no such copy, or it is another's
            del lacking[offer.part]
            mended.append(Mended(offer.part, offer.source))

    def _take_or_say(self, offer: Offer) -> bool:
        """As `_take`; where the system refuses it, the damage says so."""
        is_taken = False
        with _each_by_itself() as trouble:
            is_taken = self._take(offer)
        if trouble:
            more = f"a good copy cannot take its place{trouble[0]}"
            self._records.write(lambda db: damage.explain(db, offer.part, more))
        return is_taken

    def _take(self, offer: Offer, is_needed: Callable[[], bool] | None = None) -> bool:
        """Put what is offered into its place, if it is what it must be. Says whether it was."""
        part = offer.part
        db = self._records.reader()
        needed = is_needed or (lambda: damage.is_damaged(db, part))
        with self._room_for(offer), self._lease() as lease:
            staging = Staging(self._layout, lease)
            heal = _stage(staging, offer, part.path(self._layout))
            if heal is None:
                return False
            staging.sync()
            with self._gate.collecting():
                if not needed():
                    return True  # mended by somebody else, or gone
                staging.place(set())
                at = self._clock()
                self._records.write(lambda db: heal(db, at))
        return True

    @contextlib.contextmanager
    def _room_for(self, offer: Offer) -> Iterator[None]:
        with self._store.room.claimed(offer.size_bytes, 1):
            yield

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Lease]:
        lease = Lease.take(self._layout.tmp)
        try:
            yield lease
        finally:
            lease.release()

    def _in_place(self, lacking: Lacking, pace: Pace | None) -> Iterator[Offer]:
        """What lies in the places: the process that put it there may have ended before it said so,
        or somebody put it there by hand.
        """
        for part, size_bytes in list(lacking.items()):
            path = part.path(self._layout)
            if self._is_copy(path, part, size_bytes, pace):
                yield Offer.of_file(part, path, IN_PLACE, size_bytes)

    def _in_quarantine(self, lacking: Lacking, pace: Pace | None) -> Iterator[Offer]:
        """What was put away: a disk that could not read it then may be able to now."""
        try:
            kept = self.quarantine.kept()
        except OSError:
            return
        for one in kept:
            path, part = self.quarantine.path(one.name), one.part
            if part in lacking and self._is_copy(path, part, lacking[part], pace):
                yield Offer.of_file(part, path, IN_QUARANTINE, lacking[part])

    def _is_copy(self, path: str, part: Part, size_bytes: int | None, pace: Pace | None) -> bool:
        """Whether a file of ours is whole after all. It may be large, and for ever none."""
        try:
            stamp = stamp_of(os.lstat(path))
            if self._read.get(path) == stamp:
                return False
            if self.inspector.is_copy(path, part, size_bytes, pace):
                return True
        except OSError:
            return False
        self._read[path] = stamp
        return False


@contextlib.contextmanager
def _each_by_itself() -> Iterator[list[str]]:
    """Note what the system says of one part; a disk that is full ends it for all."""
    said: list[str] = []
    try:
        yield said
    except OSError as error:
        if error.errno in FULL:
            raise
        said.append(f": {error.strerror}")


def _stage(staging: Staging, offer: Offer, final: str) -> _Heal | None:
    """Write what is offered; None when it is not what it must be."""
    part = offer.part
    if part.kind is PartKind.BLOB:
        digest = staging.add_pieces(
            offer.pieces, path=b"", size_bytes=offer.size_bytes, executable=part.is_executable
        )
        if blob_key(digest, executable=part.is_executable) != part.key:
            return None
    else:
        data = b"".join(offer.pieces)
        if not part.names(data):
            return None
        staging.add_statement(_STAGED, data, final)
        if part.kind is PartKind.TREE:
            manifest = Manifest.parse(data)
            row, sizes = index.row_of(manifest), blob_sizes(manifest)
            return lambda db, at: index.heal_tree(db, row, sizes, at)
    return lambda db, at: damage.heal(db, part, at)


def _mode(part: Part) -> int:
    if part.kind is PartKind.BLOB:
        return blob_mode(executable=part.is_executable)
    return STATEMENT_MODE
