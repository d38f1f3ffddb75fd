"""Stages: the marks in a job's log where a step of its work begins and where it ends."""

from __future__ import annotations

from typing import Literal

Mark = Literal["", "begin", "end"]


def begin_text(stage: str) -> str:
    return f"== {stage}"


def end_text(stage: str, seconds: float) -> str:
    return f"== {stage}: {seconds:.2f} s"


def shown_command(command: str) -> str:
    """Return a command as one line of a log: its last one, behind dots where others come before it.

    The last one is what serves; those before it prepare that.
    """
    *before, last = command.strip().splitlines() or [""]
    return f"{'... ' if before else ''}{last}"
