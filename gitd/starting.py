"""Cheap starts of processes. Import this before structlog and aiohttp.

Every gitd process loads some 800 modules. Three things there cost a good part of its start and give
nothing: structlog loads rich where it is installed, for tracebacks in colour that our log never
prints; aiohttp reads every certificate authority that the machine trusts, twice, which few of our
processes ever need; and the garbage collector looks through all that was loaded, time and again, in
a program that has not made any garbage yet.
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
    """Load aiohttp with TLS contexts that trust nobody: an https request needs one of its own.

    One that brings none ends with a certificate that cannot be verified.
    """
    if "aiohttp" in sys.modules:
        return
    with _trusting_nobody():
        import aiohttp  # noqa: F401


@contextlib.contextmanager
def _trusting_nobody() -> Iterator[None]:
    """Let TLS contexts that are made meanwhile read no certificates."""
    import ssl

    ssl.SSLContext.set_default_verify_paths = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths  # what it hid is the class's above it


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
