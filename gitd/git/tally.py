"""What the git room has done since it began: how pushes ended, and the packs of fetches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class PushOutcome(StrEnum):
    """How a push ended."""

    LANDED = "landed"  # every ref moved
    PARTLY = "partly"  # some did
    REFUSED = "refused"  # none did: it was not allowed, or is not whole
    FAILED = "failed"  # none did, by a fault of the server's
    BROKEN_OFF = (
        "broken_off"  # it never came to its end: its client left, fell silent, sent no pack
    )


class FetchOutcome(StrEnum):
    """What became of the pack of a fetch."""

    SENT = "sent"
    FAILED = "failed"  # it could not be made, or is damaged
    BROKEN_OFF = "broken_off"  # its client left


@dataclass(frozen=True, slots=True)
class GitTally:
    """Counts by outcome. Belongs to one event loop; any thread may read."""

    pushes: Counter[PushOutcome] = field(default_factory=Counter)
    fetches: Counter[FetchOutcome] = field(default_factory=Counter)
