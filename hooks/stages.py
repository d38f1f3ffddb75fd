"""Stages: the marks in a job's log where a step of its work begins and where it ends."""

from __future__ import annotations

from typing import Literal

Mark = Literal["", "begin", "end"]


def begin_text(stage: str) -> str:
    return f"== {stage}"


def end_text(stage: str, seconds: float) -> str:
    return f"== {stage}: {seconds:.2f} s"
