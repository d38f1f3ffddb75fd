"""Words for a terminal: what may be written to one.

Log lines, branch names and labels come from other people. A terminal obeys what it is sent, so
only text and colours pass.
"""

from __future__ import annotations

import re

COLOUR = r"\x1b\[[0-9;:]*m"
COLOUR_BEGINS, COLOUR_ENDS = "\x1b[", "\x1b[m"
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: cursor, colours
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)"  # OSC and its kin: titles, clipboard, links
    r"|\x1b[ -/]*[0-~]"  # the short ones
)
_ESCAPES_BUT_COLOURS = re.compile(rf"(?!{COLOUR})(?:{_ESCAPES.pattern})")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS_BUT_COLOURS = re.compile(rf"(?!{COLOUR}){_CONTROLS.pattern}")


def printable(text: str) -> str:
    """The text on one line, without escapes and control characters."""
    return _CONTROLS.sub("", _ESCAPES.sub("", _last_overprint(text)))


def written_out(text: str) -> str:
    """The text with whatever else a terminal would obey written out, as Python does."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> list[str]:
    """Each line of the text as `printable` has it."""
    return [printable(line) for line in text.split("\n")] if text else []


def colourful(text: str) -> str:
    """As `printable`, but colours stay."""
    return _CONTROLS_BUT_COLOURS.sub("", _ESCAPES_BUT_COLOURS.sub("", _last_overprint(text)))


def coloured(text: str) -> str:
    """As `colourful`, and no colour goes on behind its end: some hide what follows."""
    shown = colourful(text)
    return shown if COLOUR_BEGINS not in shown else f"{shown}{COLOUR_ENDS}"


def _last_overprint(text: str) -> str:
    """What a line with carriage returns (a progress bar's) shows in the end."""
    return text.rstrip("\r\n").rpartition("\r")[2] if "\r" in text else text
