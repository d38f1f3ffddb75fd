"""Waiting for what another thread or process does, with an end to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

WAIT_S = 100
"""Far more than anything takes, on a machine that does other things too."""


def wait_for(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.002)


def waiters_of(path: Path) -> int:
    """How many wait for a lock on a file."""
    name = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and name in line for line in lines)
