"""Durations as people type them: a number and a unit."""

from __future__ import annotations

import re

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def seconds_of(text: str) -> int:
    """Read a duration.

    Raises:
        ValueError: It is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration such as 12h, 90d or 4w.")
    return int(found[1]) * _SECONDS[found[2]]
