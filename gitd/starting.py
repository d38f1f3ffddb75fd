"""What makes the start of a process cheap: imported before what it concerns.

Every gitd process loads some 800 modules. Three things there cost a good part of its start and give
nothing: structlog loads rich where it is installed, for tracebacks in colour that our log never
prints; aiohttp reads every certificate authority that the machine trusts, for clients that none of
our processes is; and the garbage collector looks through all that was loaded, time and again, in a
program that has not made any garbage yet.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

GARBAGE_THRESHOLD = 10_000  # containers made, less those gone, before a look; Python's own is 700


def prepare() -> None:
    """Load structlog without rich, which stays there for whoever asks, and collect seldom."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    with _missing("rich"):
        import structlog  # noqa: F401


def load_aiohttp() -> None:
    """Load aiohttp without TLS: here it speaks plain HTTP alone, to sockets of this machine.

    Asked for https, it refuses. Whoever else speaks TLS has it: that is loaded before.
    """
    if "aiohttp" in sys.modules:
        return
    import asyncio  # noqa: F401 - this and the next have TLS
    import urllib.request  # noqa: F401

    with _missing("ssl"):
        import aiohttp  # noqa: F401


@contextlib.contextmanager
def _missing(name: str) -> Iterator[None]:
    """Let a module seem not to be installed."""
    found = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not None:
            sys.modules[name] = found


prepare()
