"""What other people's text may do to a terminal."""

from __future__ import annotations

import pytest

from gitd.terminal import coloured, colourful, printable

RED = "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize(
    ("text", "plain", "coloured"),
    [
        ("hello", "hello", "hello"),
        (RED, "red", RED),
        ("\x1b[38;5;9mx\x1b[m", "x", "\x1b[38;5;9mx\x1b[m"),
        ("a\x1b[2Jb", "ab", "ab"),
        ("a\x1b[10;10Hb", "ab", "ab"),
        ("\x1b]0;title\x07x", "x", "x"),
        ("\x1b]52;c;cm0gLXJm\x1b\\x", "x", "x"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "click", "click"),
        ("\x1b]0;never ends", "", ""),
        ("\x1bPq#0\x1b\\x", "x", "x"),
        ("\x9b31mx", "31mx", "31mx"),
        ("a\x1b", "a", "a"),
        ("a\x1b[", "a", "a"),
        ("\x1b(Bx\x1b7", "x", "x"),
        ("bell\x07 null\x00 del\x7f", "bell null del", "bell null del"),
        ("10 %\r 50 %\r100 %", "100 %", "100 %"),
        ("line\r\n", "line", "line"),
        ("two\nlines", "twolines", "twolines"),
        ("col\tcol", "col\tcol", "col\tcol"),
        ("abc\u202egpj.exe", "abcgpj.exe", "abcgpj.exe"),
        ("lone\ud800", "lone", "lone"),
        ("größe ✓", "größe ✓", "größe ✓"),
    ],
)
def test_only_text_and_colours_pass(text: str, plain: str, coloured: str) -> None:
    assert printable(text) == plain
    assert colourful(text) == coloured


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hello", "hello"),
        (RED, f"{RED}\x1b[m"),
        ("\x1b[8mwhat follows is hidden", "\x1b[8mwhat follows is hidden\x1b[m"),
        ("\x1b]52;c;cm0gLXJm\x1b\\x", "x"),
    ],
)
def test_colour_ends_with_its_line(text: str, shown: str) -> None:
    assert coloured(text) == shown


def test_what_is_left_of_an_escape_makes_no_new_one() -> None:
    assert "\x1b" not in printable("\x1b\x1b[2J[2J")
    assert colourful("\x1b\x1b[2J[2J").count("\x1b") == 0
    assert "\x1b" not in printable("\x1b[\x1b[2J2J")
    assert colourful("\x1b[\x1b[2J2J").count("\x1b") == 0
