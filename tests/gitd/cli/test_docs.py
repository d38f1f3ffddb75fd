"""docs/mf.md against the commands that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gitd.cli.exits import ExitCode
from gitd.cli.main import mf
from gitd.cli.session import Session

PAGE = (Path(__file__).parents[3] / "docs" / "mf.md").read_text()
SECTIONS = dict(re.findall(r"^### (mf [^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EVERYWHERE = PAGE.partition("## What holds for every command")[2].partition("\n## ")[0]
EXAMPLES = sorted(
    {
        line
        for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("mf ")
    }
)


def commands(group: click.Group = mf, path: str = "mf") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ALL = dict(commands())


def test_every_command_has_a_section_and_no_other_has() -> None:
    assert set(SECTIONS) == set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_an_example(path: str) -> None:
    shorter = path.removesuffix(" list")
    lines = re.findall(r"```\n(.*?)```", SECTIONS[path], re.DOTALL)[0].splitlines()
    assert any(line.startswith((path, shorter)) for line in lines)


@pytest.mark.parametrize("path", ALL)
def test_every_option_is_documented(path: str) -> None:
    said = SECTIONS[path] + EVERYWHERE
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                assert f"{option} " in said or f"{option}`" in said or f"{option}\n" in said, option


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_is_a_command_that_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_SITE", "acme-store")  # as a checkout names it
    arguments = shlex.split(line.partition(" | ")[0])[1:]
    session = Session("http://127.0.0.1:1", None)
    context = mf.make_context("mf", arguments, obj=session)
    command: click.Command = mf
    while isinstance(command, click.Group):
        left = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, left)
        assert found is not None
        context = found.make_context(name, rest, parent=context)
        command = found


@pytest.mark.parametrize("path", ALL)
def test_every_command_explains_itself(path: str) -> None:
    command = ALL[path]
    assert command.help
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_every_exit_code_is_documented() -> None:
    codes = re.findall(r"^\| (\d+) \|", EVERYWHERE, re.MULTILINE)
    assert [int(code) for code in codes] == [code.value for code in ExitCode]


def test_every_command_has_json() -> None:
    for path, command in ALL.items():
        assert any("--json" in parameter.opts for parameter in command.params), path
