"""What the collections of this process came to, since it began."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from storage.collect import Collected
from storage.retention import Fate


class CollectionOutcome(StrEnum):
    """How a collection ended."""

    DONE = "done"
    STOPPED = "stopped"  # the server stopped in the middle of it
    WITHHELD = "withheld"  # files were kept, for what the records say is in doubt
    REFUSED = "refused"  # something looked wrong, such as damaged records
    FAILED = "failed"  # the system or the database refused
    LEFT = "left_to_another"  # somebody collected already


@dataclass(slots=True)
class CollectionTally:
    """Counts. Belongs to one event loop; any thread may read.

    Attributes:
        removed: What went, by kind: `artifact`, `cache`, `tree`, `blob`, `leftover`.
        freed_bytes: How much smaller the files of the store became.
        seconds: How long all of them took together.
    """

    outcomes: Counter[CollectionOutcome] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    freed_bytes: int = 0
    seconds: float = 0.0

    def note(self, collected: Collected) -> None:
        """Take in what one did that was not refused."""
        self.freed_bytes += collected.freed_bytes
        self.removed.update(
            artifact=len(collected.of(Fate.DROPPED)),
            cache=len(collected.caches),
            tree=collected.trees,
            blob=collected.blobs,
            leftover=collected.leftovers,
        )
        if not collected.is_whole:
            outcome = CollectionOutcome.STOPPED
        elif collected.doubt is not None:
            outcome = CollectionOutcome.WITHHELD
        else:
            outcome = CollectionOutcome.DONE
        self.outcomes[outcome] += 1
