"""The screen: whether there is a terminal, and what it shows."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def is_live(stream: TextIO) -> bool:
    """Say whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def shows_colours(stream: TextIO) -> bool:
    """Say whether colours may be sent to `stream`. Source: no-color.org."""
    return is_live(stream) and not os.environ.get("NO_COLOR")


def may_ask() -> bool:
    """Say whether there is somebody to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()
