"""Counts in words: `1 file`, `2 files`."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "", *, width: int = 0) -> str:
    """The count with what is counted: `one` of it, `many` of it, or `one` with an s.

    `width`: how many characters the number has at least, for those that stand below each other.
    """
    what = one if count == 1 else many or f"{one}s"
    return f"{count:>{width},} {what}"
