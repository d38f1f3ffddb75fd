"""Sizes as people write them: `4GiB`, `512k`, or plain bytes."""

from __future__ import annotations

import re
from fractions import Fraction

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_EXPONENTS = {"k": 1, "m": 2, "g": 3, "t": 4}


def is_size(key: str) -> bool:
    """Say whether a setting of that name is a number of bytes."""
    return "bytes" in key.split("_")


def parse_size(text: str) -> int:
    """Return a number of bytes. Units are powers of 1024, with or without `iB` or `B`.

    Raises:
        ValueError: it is no size, or no whole number of bytes.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size such as 4GiB, 512k or 1048576")
    unit = (found[2] or "").lower()
    size = Fraction(found[1]) * 1024 ** _EXPONENTS.get(unit, 0)
    if size.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(size)
