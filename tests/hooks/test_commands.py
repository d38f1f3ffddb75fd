"""Commands as lines of a log."""

from __future__ import annotations

import pytest

from hooks.commands import shown_command


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("node server.js", "node server.js"),
        ("\ncd x\nexec ./run\n", "... exec ./run"),
        ("  ./run  ", "./run"),
        ("\n", ""),
        ("if a; then\n  exec ./b\nfi\n", "... exec ./b ..."),
        ("while true; do\n(\n./run\n)\ndone &", "... ./run ..."),
        ("a\nfi nish", "... fi nish"),
        ("fi\ndone", "fi ..."),
    ],
)
def test_command_of_several_lines_is_shown_by_the_one_that_serves(command, shown):
    assert shown_command(command) == shown
