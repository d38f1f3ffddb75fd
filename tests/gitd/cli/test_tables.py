"""Lists and objects as people see them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from gitd.cli import environments, releases
from gitd.cli.answers import Page
from gitd.cli.tables import Column, Kind, age, fitting_widths, print_fields, print_page, size

NOW = datetime(2026, 6, 23, 12, 0, tzinfo=UTC)
COLUMNS = (Column("NAME", "name"), Column("BY", "actor.label"), Column("NOW", "current"))


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("2026-06-23T11:59:57.120Z", "2 s ago"),
        ("2026-06-23T11:58:00Z", "2 min ago"),
        ("2026-06-23T09:00:00Z", "3 h ago"),
        ("2026-06-01T12:00:00Z", "22 d ago"),
        ("2026-06-23T12:00:09Z", "0 s ago"),
        ("2026-06-23", "2026-06-23"),
        ("soon", "soon"),
    ],
)
def test_times_are_told_by_their_age(at: str, words: str) -> None:
    assert age(at, NOW) == words


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_250_000, "1.2 MB"),
        (3 * 10**12, "3000.0 GB"),
    ],
)
def test_sizes_are_told_in_powers_of_1000(size_bytes: int, words: str) -> None:
    assert size(size_bytes) == words


def test_table_off_a_terminal_is_aligned_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    page = Page([{"name": long, "actor": {"label": "ci"}, "current": True}, {"name": "b"}], False)
    print_page(page, COLUMNS, what="things")
    assert capsys.readouterr().out.splitlines() == [
        f"{'NAME':<200}  BY  NOW",
        f"{long}  ci  yes",
        f"{'b':<200}  -   -",
    ]


def test_empty_list_says_so_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_page(Page([], has_more=False), COLUMNS, what="things")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "No things.\n")


def test_cut_list_says_that_there_is_more(capsys: pytest.CaptureFixture[str]) -> None:
    print_page(Page([{"name": "a"}], has_more=True), COLUMNS, what="things")
    assert capsys.readouterr().err == "There are more things: --limit N or --all shows them.\n"


def test_object_shows_its_inner_fields_by_dotted_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "x", "links": {"log": "/l"}, "no": None, "scopes": ["a", "b"]})
    assert capsys.readouterr().out.splitlines() == [
        "id         x",
        "links.log  /l",
        "no         -",
        "scopes     a, b",
    ]


def test_lines_of_a_value_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "x", "error": {"message": "one\n\x1b[2Jtwo\n\nthree"}})
    assert capsys.readouterr().out.splitlines() == [
        "id             x",
        "error.message  one",
        "               two",
        "",
        "               three",
    ]


def test_cells_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_page(Page([{"name": "\x1b[2Jx\n"}], has_more=False), COLUMNS, what="things")
    print_fields({"\x1bc": "\x1b]0;title\x07y"})
    assert "\x1b" not in capsys.readouterr().out


def test_kinds_that_shorten_leave_odd_values_alone(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column(kind.name, "v", kind) for kind in Kind]
    print_page(Page([{"v": {"odd": 1}}, {"v": 3}, {}], has_more=False), columns, what="things")
    assert len(capsys.readouterr().out.splitlines()) == 4


ID, REF, WHEN = Column("ID", "id", Kind.ID), Column("REF", "ref"), Column("WHEN", "when", rank=1)
WANTED = {ID: 30, REF: 40, WHEN: 10}


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (200, {ID: 30, REF: 40, WHEN: 10}),
        (84, {ID: 30, REF: 40, WHEN: 10}),
        (83, {ID: 30, REF: 40}),
        (60, {ID: 30, REF: 28}),
        (10, {ID: 30, REF: 8}),
    ],
)
def test_columns_are_left_out_before_values_are_cut(width: int, widths: dict[Column, int]) -> None:
    assert fitting_widths(WANTED, width) == widths


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on_a_terminal(
    found: dict[str, object], columns: Sequence[Column], monkeypatch: pytest.MonkeyPatch
) -> str:
    """What a terminal of 80 columns without colours shows of one object."""
    for name, value in (("COLUMNS", "80"), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with contextlib.redirect_stdout(_Terminal()) as terminal:
        print_page(Page([found], has_more=False), columns, what="things")
    return terminal.getvalue()


def test_kept_releases_are_not_called_current(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {
        "id": "rel_" + "0" * 26,
        "current": False,
        "ref": "refs/heads/main",
        "commit": "c0ffee" * 6 + "c0ff",
        "trigger": "rollback",
        "available": True,
    }
    head, row = shown_on_a_terminal(old, releases.COLUMNS, monkeypatch).splitlines()
    assert "current" not in row
    assert ("c0ffeec0ffee" in row, "rollback" in row) == (True, True)
    assert "WHY" in head


def test_name_of_an_environment_is_never_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slug = "dependabot-npm-and-yarn-4-2"
    found = {
        "slug": slug,
        "kind": "preview",
        "branch": "dependabot/npm_and_yarn/4.2",
        "status": "active",
        "preview_url": f"http://acme-store-{slug}-1a2b3c.localhost:8081",
        "id": "env_" + "0" * 26,
    }
    row = shown_on_a_terminal(found, environments.COLUMNS, monkeypatch).splitlines()[1]
    assert row.split()[0] == slug


def test_wide_letters_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page([{"name": "日本", "actor": {"label": "x"}}, {"name": "ab"}], has_more=False)
    print_page(page, COLUMNS[:2], what="things")
    assert capsys.readouterr().out.splitlines() == ["NAME  BY", "日本  x", "ab    -"]
