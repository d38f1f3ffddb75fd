"""Tables: lists and objects for people.

On a terminal they fit its width: values are shortened, and the columns that matter least are left
out. Elsewhere every value is whole, so that `grep` and `awk` find what they look for.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

import click

from gitd.cli.answers import Fields, Page, at
from gitd.cli.screen import is_live, shows_colours
from gitd.terminal import printable, printable_lines

STATUS_COLOURS = {
    "succeeded": "green",
    "active": "green",
    "current": "green",
    "ready": "green",
    "serving": "green",
    "failed": "red",
    "revoked": "red",
    "damaged": "red",
    "restarting": "red",
    "canceled": "yellow",
    "running": "cyan",
    "provisioning": "cyan",
}
NOTHING = "-"
GAP = "  "
TEXT_CHARS_MIN = 8
COMMIT_CHARS = 12


class Kind(Enum):
    """What a cell shows, which decides how it may be shortened."""

    ID = auto()  # whole, for copying
    TEXT = auto()
    REF = auto()
    COMMIT = auto()
    STATUS = auto()
    FLAG = auto()  # yes, or nothing to say
    TIME = auto()
    SIZE = auto()
    PERCENT = auto()


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title and the dotted path of its value in each object.

    `rank`: where there is no room the highest goes first; 0 stays.
    """

    title: str
    path: str
    kind: Kind = Kind.TEXT
    rank: int = 0


def print_page(page: Page, columns: Sequence[Column], *, what: str) -> None:
    """Print a list, or that there is none of `what`."""
    if not page.items:
        click.echo(f"No {what}.", err=True)
        return
    if is_live(sys.stdout):
        _print_fitting(page.items, columns, shutil.get_terminal_size().columns)
    else:
        _print_whole(page.items, columns)
    if page.has_more:
        click.echo(f"There are more {what}: --limit N or --all shows them.", err=True)


def print_fields(fields: Fields) -> None:
    """Print an object, a field a line; those of inner objects with dotted names.

    Further lines of a value stand below its first one.
    """
    flat = _flat(fields)
    width = max((len(name) for name, _ in flat), default=0)
    for name, value in flat:
        titles = [printable(name)]
        for line in printable_lines(value):
            click.echo(f"{titles.pop() if titles else '':<{width}}{GAP}{line}".rstrip())


def _flat(fields: Fields, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, _plain(value)))
    return found


def _plain(value: object) -> str:
    if value is None or value in ("", [], {}):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _print_whole(items: Sequence[Fields], columns: Sequence[Column]) -> None:
    rows = [[column.title for column in columns]]
    rows += [[printable(_plain(at(item, column.path))) for column in columns] for item in items]
    widths = [max(map(_width, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        click.echo(_line(row, widths))


def _print_fitting(items: Sequence[Fields], columns: Sequence[Column], width: int) -> None:
    now = datetime.now(UTC)
    cells = {
        column: [
            column.title,
            *(printable(_short(at(item, column.path), column.kind, now)) for item in items),
        ]
        for column in columns
    }
    widths = fitting_widths({column: max(map(_width, cells[column])) for column in columns}, width)
    for index in range(len(items) + 1):
        row = [_cut(cells[column][index], widths[column]) for column in widths]
        styles = [_style(column, row[at], is_title=index == 0) for at, column in enumerate(widths)]
        click.echo(_line(row, list(widths.values()), styles))


def fitting_widths(wanted: dict[Column, int], width: int) -> dict[Column, int]:
    """The columns that fit into `width`, each with its own. Ids are never cut."""
    widths = dict(wanted)

    def lacks() -> int:
        return sum(widths.values()) + len(GAP) * (len(widths) - 1) - width

    while lacks() > 0 and (last := max(widths, key=lambda column: column.rank)).rank:
        del widths[last]
    for column in sorted(widths, key=widths.__getitem__, reverse=True):
        if column.kind in (Kind.TEXT, Kind.REF) and lacks() > 0:
            widths[column] = max(min(TEXT_CHARS_MIN, widths[column]), widths[column] - lacks())
    return widths


def _line(row: Sequence[str], widths: Sequence[int], styles: Sequence[str] = ()) -> str:
    parts = []
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        padding = " " * (width - _width(cell)) if index < len(row) - 1 else ""
        parts.append((_styled(cell, styles[index]) if styles else cell) + padding)
    return GAP.join(parts)


def _style(column: Column, cell: str, *, is_title: bool) -> str:
    if is_title:
        return "bold"
    return STATUS_COLOURS.get(cell, "") if column.kind is Kind.STATUS else ""


def _styled(cell: str, style: str) -> str:
    if not style or not shows_colours(sys.stdout):
        return cell
    return click.style(cell, bold=True) if style == "bold" else click.style(cell, fg=style)


def _cut(cell: str, width: int) -> str:
    while _width(cell) > width:
        cell = cell[:-2] + "…"
    return cell


def _width(cell: str) -> int:
    """How many places of a terminal the text takes: some letters take two."""
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


def _short(value: object, kind: Kind, now: datetime) -> str:
    match kind, value:
        case Kind.TIME, str():
            return age(value, now)
        case Kind.REF, str():
            return value.removeprefix("refs/heads/").removeprefix("refs/tags/")
        case Kind.COMMIT, str():
            return value[:COMMIT_CHARS]
        case Kind.SIZE, int():
            return size(value)
        case Kind.PERCENT, int():
            return f"{value} %"
        case Kind.FLAG, bool():
            return "yes" if value else NOTHING
        case Kind.STATUS, bool():
            return "current" if value else NOTHING
        case _:
            return _plain(value)


def age(at_time: str, now: datetime) -> str:
    """How long ago an RFC 3339 time was, or the text itself when it is none."""
    try:
        then = datetime.fromisoformat(at_time)
        seconds = max(0, int((now - then).total_seconds()))
    except (ValueError, TypeError):
        return at_time
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s} {unit} ago"
    return f"{seconds} s ago"


def size(size_bytes: int) -> str:
    """A size for people, in powers of 1000."""
    for unit_bytes, unit in ((1000**3, "GB"), (1000**2, "MB"), (1000, "kB")):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} B"
