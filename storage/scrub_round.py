"""The round of a scrub: what is read time and again though no row says when it was read.

That is what the store has of release statements, and the generations of trust. Both are few and
small, so only this process remembers when: after a start all of them come anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storage import trust
from storage.errors import SignatureInvalidError
from storage.parts import Part
from storage.records import release_statements
from storage.records.db import Records

SETTLE_MS = 600_000
"""A statement is written down first, and laid into the store after: so long it may be missing."""
TRUST_EVERY_MS = 3_600_000


class Round:
    """One round. Belongs to one scrub.

    `trust_folder`: where the generations lie.
    """

    def __init__(self, trust_folder: Path, records: Records, *, every_ms: int) -> None:
        self._trust_folder = trust_folder
        self._records = records
        self._every_ms = every_ms
        self._next: dict[str, int] = {}  # when each statement is to be read
        self._trust_next: int | None = None
        self._seen: trust.Seen | None = None
        self._trust_fault: str | None = None

    def due(self, now: int, *, limit_count: int) -> list[Part]:
        """The release statements that it is time to read, as parts of the store."""
        names = release_statements.each_name(self._records.reader())
        self._next = {name: self._next.get(name, now + SETTLE_MS) for name in names}
        # Later than any that was set by this clock: it was ahead, and is not any more.
        last = now + max(self._every_ms, SETTLE_MS)
        found = [Part.of_envelope(n) for n, at in self._next.items() if at <= now or at > last]
        return found[:limit_count]

    def note_read(self, parts: Iterable[Part], now: int) -> None:
        """They were read, whatever was found."""
        for part in parts:
            if part.name in self._next:
                self._next[part.name] = now + self._every_ms

    def trust_fault(self, now: int) -> str | None:
        """Say what is wrong with the generations of trust, as of the last time they were read."""
        if self._trust_next is None or not now < self._trust_next <= now + TRUST_EVERY_MS:
            self._trust_next = now + TRUST_EVERY_MS
            self._trust_fault = self._look_at_trust()
            # A generation that is being added looks as if one were missing.
            if self._trust_fault is not None:
                self._trust_fault = self._look_at_trust()
        return self._trust_fault

    def _look_at_trust(self) -> str | None:
        try:
            keyring = trust.load_keyring(self._trust_folder, root_key_ids=None)
            if self._seen is not None:
                trust.check_succession(self._seen, keyring)
        except SignatureInvalidError as error:
            return str(error)
        self._seen = keyring.seen
        return None
