"""What people rely on is written down: commands, error codes, pages, terms."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from gitd.__main__ import cli
from gitd.api.errors import CODES
from gitd.cli.exits import ADVICE
from gitd.cli.session import NO_KEY
from gitd.layout import DataFolder
from hooks.builds.profiles import managed_toml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *EXAMPLES]
_TYPED = r"^(?: {4})?(?:sudo )?(?:/opt/gitd/bin/)?(gitd [a-z].*)$"
_CODE = re.compile(r"(?:build|deployment|artifact|store|release|environment)\.[a-z_]+")
# Keys of managed.toml look like codes.
NOT_CODES = {f"build.{key}" for key in managed_toml.TABLES["build"]}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*path, name))
        else:
            found[" ".join((*path, name))] = command
    return found


def parse(line: str) -> None:
    """Read a line that is to be typed as `gitd` would, up to the point where it would act."""
    words = shlex.split(line.partition("  #")[0])[1:]
    context, command = cli.make_context("gitd", words), cli
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        context, command = found.make_context(found.name, rest, parent=context), found


def test_every_gitd_command_and_option_is_documented() -> None:
    page = (DOCS / "gitd.md").read_text()
    for name, command in commands(cli).items():
        assert f"`gitd {name}" in page, name
        section = page.partition(f"`gitd {name}")[2].partition("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert any(flag in section for flag in parameter.opts), (name, parameter.opts)


def test_every_folder_of_the_data_folder_is_in_its_table(tmp_path: Path) -> None:
    table = (DOCS / "architecture.md").read_text().partition("## The data folder")[2]
    DataFolder(tmp_path).prepare()
    missing = [path.name for path in tmp_path.iterdir() if f"\n| `{path.name}/" not in table]
    assert missing == []


def test_every_code_that_a_job_can_end_with_has_its_page() -> None:
    used = {
        node.value
        for path in (ROOT / "hooks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _CODE.fullmatch(node.value)
    }
    assert used - NOT_CODES <= set(CODES)


def test_every_key_of_managed_toml_is_documented() -> None:
    page = (DOCS / "builds.md").read_text()
    for table, keys in managed_toml.TABLES.items():
        for key in keys:
            assert f"| `{table}.{key}` |" in page, key


def blocks(page: str) -> list[str]:
    """What a page shows to be typed: fenced, or indented as in the examples."""
    fenced = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return fenced or re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_gitd_command_to_type_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = path.read_text()
    if "GITD_DATA" in page:
        monkeypatch.setenv("GITD_DATA", "/srv/gitd")
    for line in re.findall(_TYPED, "\n".join(blocks(page)), re.MULTILINE):
        parse(line)


@pytest.mark.parametrize("advice", [NO_KEY, ADVICE["authentication."]])
def test_every_hint_that_names_a_gitd_command_can_be_typed(advice: str) -> None:
    commands = re.findall(r"`(gitd [^`]*)`", advice)
    assert commands
    for line in commands:
        parse(line)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_site_that_an_example_pushes_to_is_made_before(path: Path) -> None:
    page = path.read_text()
    (name,) = re.findall(r"http://127\.0\.0\.1:8080/(\S+)\.git", page)
    made, pushed = page.find(f"    gitd site create {name} "), page.find("git push managed main")
    assert 0 < made < pushed
    assert f"<http://{name}.localhost:8081" in page


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_that_pages_name_are_there() -> None:
    named = re.compile(r"`((?:gitd|hooks|storage|tests|bench|examples|systemd)/[\w./-]+)`")
    for page in PAGES:
        missing = [path for path in named.findall(page.read_text()) if not (ROOT / path).exists()]
        assert missing == [], page.name


def test_decisions_are_numbered_once_and_listed() -> None:
    files = sorted(p.name for p in (DOCS / "decisions").glob("[0-9]*.md"))
    numbers = [name[:4] for name in files]
    assert len(set(numbers)) == len(numbers), numbers
    index = (DOCS / "decisions" / "README.md").read_text()
    assert [name for name in files if name not in index] == []


@pytest.mark.parametrize("name", ["store.md", "builds.md", "promises.md"])
def test_every_proof_that_a_page_names_is_there(name: str) -> None:
    page = (DOCS / name).read_text()
    section = page.partition("## What is proven")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", section)
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(named) >= len(rows) > 25
    for path, test in named:
        text = (ROOT / "tests" / path).read_text()
        assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{path}::{test}"


def test_nothing_speaks_of_how_it_was_made() -> None:
    banned = re.compile(r"\.\./shared|/work/|\bsubagent|\bhelper-\d")
    for folder in ("gitd", "hooks", "storage", "docs", "bench", "examples", "systemd", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".toml", ".service"} and path != Path(__file__):
                assert not banned.search(path.read_text()), path
