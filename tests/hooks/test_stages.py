"""Marks and commands as lines of a job's log."""

from __future__ import annotations

import pytest

from hooks.stages import shown_command


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("node server.js", "node server.js"),
        ("\ncd x\nexec ./run\n", "... exec ./run"),
        ("  ./run  ", "./run"),
        ("\n", ""),
    ],
)
def test_command_of_several_lines_is_shown_by_the_one_that_serves(command, shown):
    assert shown_command(command) == shown
