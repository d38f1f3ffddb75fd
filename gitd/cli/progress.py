"""Progress: a followed job on standard error, for eyes on a terminal or for a log file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

import click

from gitd.cli.answers import Job, LogLine
from gitd.cli.screen import is_live
from gitd.cli.stream import Item, Outage
from gitd.terminal import colourful, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

WORDS = {"build.run": "build", "deployment.roll": "roll"}
STAGE_CHARS = 8


class Display(Protocol):
    """Shows what a job does, until it is left."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, batch: Sequence[Item]) -> None: ...


def display(*, quiet: bool) -> Display:
    """The display that suits standard error."""
    if quiet:
        return QuietDisplay()
    return LiveDisplay() if is_live(sys.stderr) else PlainDisplay()


def state_of(job: Job) -> str:
    """The job's status, with its place in the queue while it waits there."""
    if job.queue_position is None:
        return job.status
    return f"{job.status}, number {job.queue_position} in the queue"


class QuietDisplay:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, batch: Sequence[Item]) -> None:
        pass


class PlainDisplay:
    """A line for each log line and each state, without colours."""

    def __init__(self) -> None:
        self._told: tuple[str, str, int | None] = ("", "", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, batch: Sequence[Item]) -> None:
        lines = [line for item in batch for line in self._lines(item)]
        if lines:
            click.echo("\n".join(lines), err=True)

    def _lines(self, item: Item) -> list[str]:
        match item:
            case LogLine() if not item.begins_stage:
                return [printable(f"[{item.stage}] {item.line}" if item.stage else item.line)]
            case Job() if self._told != (item.id, item.status, item.queue_position):
                self._told = (item.id, item.status, item.queue_position)
                return [printable(f"{WORDS.get(item.type, 'job')} {item.id} {state_of(item)}")]
            case Outage():
                return [printable(f"(connection lost: {item.message}; trying again)")]
            case _:
                return []


class LiveDisplay:
    """Log lines scroll by above a bar that says how far the job is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=100)
        self._words = "job"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, batch: Sequence[Item]) -> None:
        from rich.console import Group

        lines = [
            self._log_line(item)
            for item in batch
            if isinstance(item, LogLine) and not item.begins_stage
        ]
        if lines:
            self._console.print(Group(*lines))
        for item in batch:
            self._describe(item)

    def _describe(self, item: Item) -> None:
        match item:
            case Job():
                self._words = WORDS.get(item.type, "job")
                waits = f" ({state_of(item)})" if item.status == "queued" else ""
                self._update(f"{self._words}{waits}", completed=item.progress)
            case LogLine() if item.stage:
                self._update(f"{self._words}: {printable(item.stage)}")
            case Outage():
                self._update(f"{self._words}: connection lost, trying again")
            case _:
                pass

    def _update(self, description: str, *, completed: int | None = None) -> None:
        self._progress.update(self._task, description=description, completed=completed)

    def _log_line(self, item: LogLine) -> RenderableType:
        from rich.text import Text

        line = Text.from_ansi(colourful(item.line), overflow="fold")
        if not item.stage:
            return line
        stage = f"{printable(item.stage):<{STAGE_CHARS}} "
        return Text.assemble((stage, "dim"), line, overflow="fold")
