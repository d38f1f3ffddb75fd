"""Command groups: how `gitd` and `mf` list their commands."""

from __future__ import annotations

import click

SENTENCE_CHARS_MAX = 200


class Group(click.Group):
    """A group whose list of commands has their sentences whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(SENTENCE_CHARS_MAX))
            for name, command in found
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
