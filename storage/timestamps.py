"""Timestamps: milliseconds since 1970, UTC, and as text.

Source: contract §1 Timestamps: RFC 3339, UTC, `Z`, milliseconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache


def now_ms() -> int:
    """The time of day now."""
    return time.time_ns() // 1_000_000


@lru_cache(maxsize=4096)
def rfc3339(at_ms: int) -> str:
    """`at_ms`: milliseconds since 1970, UTC."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
