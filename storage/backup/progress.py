"""How far a backup or a restore is, for people who watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of `what`; 0 of 0 where it is not counted."""

    what: str
    done: int = 0
    total: int = 0


Tell = Callable[[Progress], None]


def silently(_: Progress) -> None:
    """Tell nobody."""
