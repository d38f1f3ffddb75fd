"""Versions that a commit asks for, held against those of the server: tables."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.builds.profiles import detection
from hooks.builds.profiles.managed_toml import ManagedToml
from hooks.builds.profiles.plan import Listing
from hooks.builds.profiles.versions import satisfies_npm, satisfies_python, unmet
from hooks.builds.wire import Folder, RootEntry

HAS = {"node": "20.20.2", "python3": "3.11.2"}


@pytest.mark.parametrize(
    ("has", "wanted", "fits"),
    [
        ("20.20.2", "20", True),
        ("20.20.2", "20.x", True),
        ("20.20.2", "v20.20.2", True),
        ("20.20.2", "20.1", False),
        ("20.20.2", "22.x", False),
        ("20.20.2", "*", True),
        ("20.20.2", "", True),
        ("20.20.2", ">=18", True),
        ("20.20.2", ">= 18.0.0 < 20", False),
        ("20.20.2", "<=20", True),
        ("20.20.2", ">20", False),
        ("20.20.2", "^18 || ^20.9.0 || >=22", True),
        ("20.20.2", "^18.0.0 || ^22.0.0", False),
        ("20.20.2", "~20.20.0", True),
        ("20.20.2", "~20.19", False),
        ("20.20.2", "18 - 20", True),
        ("20.20.2", "16 - 18.9", False),
        ("20.20.2", "lts/*", None),
        ("20.20.2", ">=18 nonsense", None),
        ("unknown", "20", None),
        ("20.20.2", "1" * 300, None),
        ("20.20.2", ">=18,<22", None),
        ("20.20.2", "~=20.1", None),
        ("20.20.2", "==20", None),
        ("20.20.2", "!=22", None),
    ],
)
def test_ranges_of_node_are_read_as_npm_does(has: str, wanted: str, fits: object) -> None:
    assert satisfies_npm(has, wanted) is fits


@pytest.mark.parametrize(
    ("has", "wanted", "fits"),
    [
        ("3.11.2", "", True),
        ("3.11.2", ">=3.9,<4", True),
        ("3.11.2", " >= 3.9 , < 4 ", True),
        ("3.11.2", ">=3.12", False),
        ("3.11.2", "~=3.9", True),
        ("3.11.2", "~=3.11.0", True),
        ("3.11.2", "~=3.11.3", False),
        ("3.11.2", "==3.11.*", True),
        ("3.11.2", ">=3.9, !=3.11.*", False),
        # npm would take the digits that are missing for any.
        ("3.11.2", ">3.11", True),
        ("3.9.5", ">3.9", True),
        ("3.11.2", ">=3.8,<=3.11", False),
        ("3.11.2", "<=3.11.2", True),
        ("3.11.2", "==3.11", False),
        ("3.11.2", "!=3.11", True),
        ("3.11.0", "==3.11", True),
        ("3.11.2", "===3.11.2", True),
        ("3.14.0rc1", ">=3.13", True),
        ("3.14.0rc1", ">=3.14", False),
        # npm's, and Poetry's.
        ("3.11.2", "3.11", None),
        ("3.11.2", "^3.9", None),
        ("3.11.2", "~3.11", None),
        ("3.11.2", "*", None),
        ("3.11.2", ">=3.9 <4", None),
        ("3.11.2", ">=3.9 || >=4", None),
        ("3.11.2", ">=3.9.*", None),
        ("3.11.2", "~=3", None),
        ("unknown", ">=3.9", None),
        ("3.11.2", ">=3" + " " * 300, None),
    ],
)
def test_ranges_of_python_are_read_as_pip_does(has: str, wanted: str, fits: object) -> None:
    assert satisfies_python(has, wanted) is fits


@given(st.text(max_size=300))
def test_any_text_is_a_range_or_none(wanted: str) -> None:
    assert satisfies_npm("20.20.2", wanted) in (True, False, None)
    assert satisfies_python("3.11.2", wanted) in (True, False, None)


def said(files: dict[str, str], where: str = ".") -> list[str]:
    entries = tuple(RootEntry(name, "file") for name in files)
    listing = Listing.of(Folder("7ee5" * 10, entries, files), where)
    plan = detection.detect(listing, ManagedToml(), ())
    return unmet(listing, plan, HAS)


def package(**more: object) -> dict[str, str]:
    return {"package.json": json.dumps({"scripts": {"start": "node a.js"}, **more})}


PYTHON = {"requirements.txt": "", "Procfile": "web: python3 app.py"}


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            package(engines={"node": "22.x"}),
            ["package.json asks for node 22.x; this server has 20.20.2"],
        ),
        (package(engines={"node": ">=18"}), []),
        (package(engines={"node": 22}), []),
        (package(engines="22"), []),
        (package() | {".nvmrc": "v22.1.0\n"}, [".nvmrc asks for node 22; this server has 20.20.2"]),
        (package() | {".nvmrc": "20.1.0\n"}, []),
        (package() | {".nvmrc": "lts/iron"}, []),
        (
            PYTHON | {".python-version": "3.13\n"},
            [".python-version asks for python 3.13; this server has 3.11.2"],
        ),
        (
            PYTHON | {"runtime.txt": "python-3.12.7"},
            ["runtime.txt asks for python 3.12; this server has 3.11.2"],
        ),
        (PYTHON | {"runtime.txt": "python-3.11.9"}, []),
        (
            PYTHON | {"pyproject.toml": '[project]\nrequires-python = ">=3.12"'},
            ["pyproject.toml asks for python >=3.12; this server has 3.11.2"],
        ),
        (PYTHON | {"pyproject.toml": '[project]\nrequires-python = ">3.11"'}, []),
        ({"index.html": "", ".nvmrc": "22", "runtime.txt": "python-2.7"}, []),
    ],
)
def test_version_that_the_server_has_not_is_told(files: dict[str, str], lines: list[str]) -> None:
    assert said(files) == lines


def test_file_in_a_sub_folder_is_told_by_its_path() -> None:
    (line,) = said(package() | {".node-version": "22"}, where="apps/web")
    assert line.startswith("apps/web/.node-version asks for node 22;")
