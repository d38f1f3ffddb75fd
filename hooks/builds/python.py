"""Python: what `requirements.txt`, `pyproject.toml` and `uv.lock` ask for."""

from __future__ import annotations

import tomllib
from typing import Any

from hooks.builds.errors import BuildFailedError
from hooks.builds.managed_toml import CONFIG_INVALID
from hooks.builds.plan import Listing, Need, Recipe

PYPROJECT, REQUIREMENTS, UV_LOCK = "pyproject.toml", "requirements.txt", "uv.lock"
VENV = ".venv"

_VENV = f"python3 -m venv {VENV}"
_PIP = f"{VENV}/bin/python -m pip install"
_OF_REQUIREMENTS = f"{_PIP} -r {REQUIREMENTS}"
_OF_PROJECT = f"{_PIP} -e ."
# A project without a build system is no package: what it depends on is installed, it is not.
_OF_DEPENDENCIES = (
    f'{VENV}/bin/python -c \'import tomllib; print(*tomllib.load(open("{PYPROJECT}", "rb"))'
    f'["project"].get("dependencies", []), sep="\\n")\' > /tmp/{REQUIREMENTS}'
    f" && {_PIP} -r /tmp/{REQUIREMENTS}"
)
_UV_SYNC = "uv sync --locked --no-dev"
# Compiled without times in them: equal sources give equal files, which are not looked at again.
_COMPILE = (
    "PYTHONHASHSEED=0 python3 -m compileall -q -q -f --invalidation-mode unchecked-hash . || true"
)
_PYTHON = Need(("python3",), "python3")
_ENSUREPIP = Need(("python3",), "python3-venv", module="ensurepip")
_UV = Need(("uv",), "uv")


def dependency_file(listing: Listing) -> str | None:
    """Return the file that says what a Python project depends on, None for no such project.

    Raises:
        BuildFailedError: `build.config_invalid`, when `pyproject.toml` is not TOML.
    """
    found = listing.first_file(UV_LOCK, REQUIREMENTS)
    if found is None and _is_project(_pyproject(listing)):
        return PYPROJECT
    return found


def recipe(listing: Listing, *, runs: bool) -> Recipe:
    """Return what a Python project does by itself: a virtual environment below its own folder.

    `runs`: a program of it serves, and starts sooner when it is compiled.

    Raises:
        BuildFailedError: `build.config_invalid`.
    """
    decided = dependency_file(listing)
    install: tuple[str, ...] = ()
    client_needs: tuple[Need, ...] = ()
    if decided == UV_LOCK:
        install = (_UV_SYNC,)
        client_needs = (_UV,)
    elif decided is not None:
        install = (f"{_VENV} && {_fill(listing, decided)}",)
        client_needs = (_ENSUREPIP,)
    notes = [
        f"{name} is not read: {advice}"
        for name, advice in (
            ("poetry.lock", "`poetry export -o requirements.txt` pins its versions"),
            ("Pipfile.lock", "`pipenv requirements > requirements.txt` pins its versions"),
        )
        if listing.has_file(name) and decided != UV_LOCK
    ]
    return Recipe(
        by=(decided,) if decided else (),
        install=install,
        finish=(_COMPILE,) if install and runs else (),
        needs=(_PYTHON,),
        client_needs=client_needs,
        notes=tuple(notes),
    )


def _fill(listing: Listing, decided: str) -> str:
    if decided == REQUIREMENTS:
        return _OF_REQUIREMENTS
    return _OF_PROJECT if "build-system" in _pyproject(listing) else _OF_DEPENDENCIES


def _pyproject(listing: Listing) -> dict[str, Any]:
    text = listing.text(PYPROJECT)
    if text is None:
        return {}
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise BuildFailedError(
            CONFIG_INVALID, f"{listing.path(PYPROJECT)} is not TOML: {error}"
        ) from error


def _is_project(pyproject: dict[str, Any]) -> bool:
    """Many a pyproject.toml holds nothing but the settings of a linter."""
    return "project" in pyproject or "build-system" in pyproject
