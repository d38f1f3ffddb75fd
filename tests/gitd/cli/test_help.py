"""What `--help` lists of commands."""

from __future__ import annotations

import re

import click
import pytest
from click.shell_completion import ShellComplete

from gitd.__main__ import cli
from gitd.cli.elsewhere import ELSEWHERE
from gitd.cli.main import mf
from gitd.cli.session import Session

GROUPS = {"mf": mf, "gitd": cli} | {
    name: command
    for group in (mf, cli)
    for name, command in group.commands.items()
    if isinstance(command, click.Group)
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


@pytest.mark.parametrize("word", ["reload", "run", "config:set", "login"])
def test_word_of_another_platform_is_answered_with_what_does_that_here(word: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        mf.main([word, "x", "--y"], standalone_mode=False)
    assert f"'{word}'" in caught.value.message
    assert "`" in caught.value.message or "FORGE_TOKEN" in caught.value.message


def test_word_of_another_platform_is_completed_in_silence() -> None:
    """What a shell asks at each key is no place for advice."""
    completing = ShellComplete(mf, {}, "mf", "_MF_COMPLETE")
    for word in ("reload", "config:set", "nonsense"):
        found = completing.get_completions([word], "s")
        assert "sites" in {each.value for each in found}


def test_what_is_named_there_is_here_and_no_word_hides_a_command() -> None:
    assert not ELSEWHERE.keys() & mf.commands.keys()
    for advice in ELSEWHERE.values():
        for named in re.findall(r"`mf ([a-z]+)(?: ([a-z]+))?", advice):
            command = mf.commands[named[0]]
            assert not named[1] or named[1] in getattr(command, "commands", {}), advice


def test_missing_environment_says_how_one_is_named() -> None:
    with pytest.raises(click.UsageError) as caught:
        mf.main(
            ["releases", "--site", "acme-store"], standalone_mode=False, obj=Session(None, None)
        )
    assert "--env production" in caught.value.format_message()
