"""What makes the start of a process cheap: imported before what it concerns.

Every gitd process loads some 800 modules. Two things there cost a third of its start and give
nothing: structlog loads rich where it is installed, for tracebacks in colour that our log never
prints; and the garbage collector looks through all that was loaded, time and again, in a program
that has not made any garbage yet.
"""

from __future__ import annotations

import gc
import sys

GARBAGE_THRESHOLD = 10_000  # containers made, less those gone, before a look; Python's own is 700


def prepare() -> None:
    """Load structlog without rich, which stays there for whoever asks, and collect seldom."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


prepare()
