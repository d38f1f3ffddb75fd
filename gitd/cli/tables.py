"""Tables: lists and objects for people.

On a terminal they fit its width and have colours; elsewhere each cell is whole, so that `grep`
and `awk` find what they look for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

import click

from gitd.cli.answers import Fields, Page, at
from gitd.cli.screen import is_live, printable

STATUS_STYLES = {
    "succeeded": "green",
    "active": "green",
    "current": "green",
    "failed": "red",
    "canceled": "yellow",
    "running": "cyan",
    "provisioning": "cyan",
}
NOTHING = "-"


class Kind(Enum):
    """What a cell shows, which decides how it may be shortened."""

    ID = auto()  # whole, for copying
    TEXT = auto()
    STATUS = auto()
    TIME = auto()
    SIZE = auto()
    PERCENT = auto()


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title and the dotted path of its value in each object."""

    title: str
    path: str
    kind: Kind = Kind.TEXT


def print_page(page: Page, columns: Sequence[Column], *, what: str) -> None:
    """Print a list, or that there is none of `what`."""
    if not page.items:
        click.echo(f"No {what}.", err=True)
        return
    if is_live(sys.stdout):
        _print_rich(page.items, columns)
    else:
        _print_plain(page.items, columns)
    if page.has_more:
        click.echo(f"There are more {what}: --limit N or --all shows them.", err=True)


def print_fields(fields: Fields) -> None:
    """Print an object, a field a line; those of inner objects with dotted names."""
    flat = _flat(fields)
    width = max((len(name) for name, _ in flat), default=0)
    for name, value in flat:
        click.echo(f"{printable(name):<{width}}  {printable(value)}")


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


def _print_plain(items: Sequence[Fields], columns: Sequence[Column]) -> None:
    rows = [[column.title for column in columns]]
    rows += [[printable(_plain(at(item, column.path))) for column in columns] for item in items]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_rich(items: Sequence[Fields], columns: Sequence[Column]) -> None:
    # rich takes 60 ms to import, and only a terminal needs it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column.kind is Kind.TEXT
        table.add_column(column.title, no_wrap=not is_text, overflow="fold")
    now = datetime.now(UTC)
    for item in items:
        cells = []
        for column in columns:
            cell = printable(_short(at(item, column.path), column.kind, now))
            style = STATUS_STYLES.get(cell, "") if column.kind is Kind.STATUS else ""
            cells.append(Text(cell, style=style))
        table.add_row(*cells)
    Console(highlight=False).print(table)


def _short(value: object, kind: Kind, now: datetime) -> str:
    match kind, value:
        case Kind.TIME, str():
            return age(value, now)
        case Kind.SIZE, int():
            return size(value)
        case Kind.PERCENT, int():
            return f"{value} %"
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
