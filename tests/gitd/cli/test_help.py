"""What `--help` lists of commands."""

from __future__ import annotations

import click
import pytest

from gitd.cli.main import mf

GROUPS = {"mf": mf} | {
    name: command for name, command in mf.commands.items() if isinstance(command, click.Group)
}


@pytest.mark.parametrize("name", GROUPS)
def test_sentence_of_a_command_is_whole(name: str) -> None:
    group = GROUPS[name]
    context = click.Context(group, info_name=name, terminal_width=80)
    said = " ".join(group.get_help(context).partition("Commands:")[2].split())
    assert "..." not in said
    for command in group.commands.values():
        sentence = " ".join((command.help or "").split("\n\n")[0].split())
        assert sentence.split(". ")[0].rstrip(".") in said
