"""Value files: lines of NAME=value, as `.env` files have them.

Tools read such files differently: where one would cut a value off that another keeps, this is
refused until it is in quotes. Nothing is put in the place of `$NAME`. No error has a part of a
line, which may be a secret.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

FILE_BYTES_MAX = 64 * 1024  # a request has no more
STANDARD_INPUT = "-"
_END = r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)"
_NO_PAIR = re.compile(_END)
_PAIR = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)="
    rf"(?:'(?P<literal>[^']*)'{_END}"
    rf'|"(?P<escaped>(?:[^"\\]|\\["\\$nrt])*)"{_END}'
    r"|(?P<plain>(?:[^\s'\"`#](?:[^\n#]*[^\s#])?)?)(?:\n|\Z))"
)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_HOW = (
    "is no NAME=value. A value with # in it, with spaces at an end, or of several lines is in "
    '\'single quotes\', as it is; or in "double quotes", where \\n, \\r, \\t, \\\\, \\" and \\$ '
    "are written so."
)


def read_values(file: Path) -> dict[str, str]:
    """Read the values of a file by name, each name once; of standard input where it is `-`.

    Raises:
        click.UsageError: There is no such file, or it is no file of values, or has none.
    """
    what = "Standard input" if str(file) == STANDARD_INPUT else str(file)
    try:
        data = _read(file)
    except OSError as error:
        raise click.UsageError(f"{what} cannot be read: {error.strerror}.") from None
    if len(data) > FILE_BYTES_MAX:
        raise click.UsageError(
            f"{what} has more than {FILE_BYTES_MAX // 1024} KiB, which is what one change takes: "
            "split it, and give --no-roll with all but the last part."
        )
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise click.UsageError(f"{what} is no text in UTF-8.") from None
    values = _values(text, what)
    if not values:
        raise click.UsageError(f"{what} has no values: each is a line NAME=value.")
    return values


def _read(file: Path) -> bytes:
    if str(file) == STANDARD_INPUT:
        return sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
    with file.open("rb") as opened:
        return opened.read(FILE_BYTES_MAX + 1)


def _values(text: str, what: str) -> dict[str, str]:
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        if nothing := _NO_PAIR.match(text, position):
            position = nothing.end()
            continue
        place = f"{what}, line {text.count(chr(10), 0, position) + 1}"
        pair = _PAIR.match(text, position)
        if pair is None:
            raise click.UsageError(f"{place}: this {_HOW}")
        if pair["name"] in values:
            raise click.UsageError(f"{place}: {pair['name']} is there twice.")
        values[pair["name"]] = _value(pair)
        position = pair.end()
    return values


def _value(pair: re.Match[str]) -> str:
    if pair["escaped"] is not None:
        return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), pair["escaped"])
    return pair["literal"] or pair["plain"] or ""
