"""docs/git-server.md, row by row: each has a proof, or says why it needs none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).parents[3]
DOCUMENT = REPOSITORY_ROOT / "docs/git-server.md"
UNPROVEN = {"2.18"}  # its row gives the reason


def rows() -> dict[str, list[str]]:
    """Return the number of each row, and the last of its cells as a list."""
    found: dict[str, list[str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        if row := re.fullmatch(r"\| (\d+\.\d+) \| .+ \| .+ \| (.+) \|", line):
            assert row[1] not in found, f"there are two rows {row[1]}"
            found[row[1]] = row[2].split(", ")
    return found


def known_tests() -> set[str]:
    found = set()
    for path in (REPOSITORY_ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(node.name)
    return found


def test_every_row_has_a_proof_that_exists() -> None:
    known, found = known_tests(), rows()
    assert {row for row, names in found.items() if names == ["\u2014"]} == UNPROVEN
    missing = {
        row: lacking
        for row, names in found.items()
        if row not in UNPROVEN and (lacking := [name for name in names if name not in known])
    }
    assert missing == {}


def test_rows_are_counted_without_gaps() -> None:
    numbers = [tuple(map(int, row.split("."))) for row in rows()]
    sections = {section for section, _ in numbers}
    assert sections == set(range(1, 11))
    for section in sections:
        own = [number for one, number in numbers if one == section]
        assert own == list(range(1, len(own) + 1)), f"section {section}"


def test_tests_that_are_named_for_a_row_stand_in_it() -> None:
    """`test_8_3_...` and `test_1_10_and_1_19_...` are for the rows 8.3, and 1.10 and 1.19."""
    found = rows()
    strays = []
    for path in (REPOSITORY_ROOT / "tests/gitd").rglob("test_*.py"):
        for name in re.findall(r"def (test_\d+_\d+_\w+)", path.read_text()):
            numbers = re.match(r"test_((?:\d+_\d+_(?:and_)?)+)", name)
            assert numbers is not None
            for section, number in re.findall(r"(\d+)_(\d+)_", numbers[1]):
                if name not in found.get(f"{section}.{number}", []):
                    strays.append(f"{name} is not in row {section}.{number}")
    assert strays == []
