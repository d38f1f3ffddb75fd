"""A position in the log of an environment's programs: a file of it, and a byte of that.

A file is named by the time of its first line, `2026-01-01T00:00:00.000Z`. So a reader that lost its
connection says where it goes on.
"""

from __future__ import annotations

import re

_POSITION = re.compile(r"([0-9TZ:.-]{1,32})/([0-9]{1,12})")


def position(file: str, offset: int) -> str:
    """The place of the byte `offset` of a log's `file`, to begin behind."""
    return f"{file}/{offset}"


def is_position(text: str) -> bool:
    return file_and_offset(text) is not None


def file_and_offset(text: str) -> tuple[str, int] | None:
    """What the position names; None where the text is none."""
    match = _POSITION.fullmatch(text)
    return (match[1], int(match[2])) if match else None
