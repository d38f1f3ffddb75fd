"""Counts in words."""

from __future__ import annotations

import pytest

from storage.counted import counted


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "file"), "0 files"),
        (counted(1, "file"), "1 file"),
        (counted(1234, "file"), "1,234 files"),
        (counted(1, "is", "are"), "1 is"),
        (counted(2, "is", "are"), "2 are"),
        (counted(1, "file", width=4), "   1 file"),
        (counted(1000, "file", width=4), "1,000 files"),
    ],
)
def test_what_is_counted_goes_with_its_count(said: str, expected: str) -> None:
    assert said == expected
