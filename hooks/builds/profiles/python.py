"""Python: what `requirements.txt`, `pyproject.toml` and `uv.lock` ask for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.managed_toml import CONFIG_INVALID
from hooks.builds.profiles.plan import Listing, Need, Recipe
from hooks.builds.profiles.toml_text import read_toml

PYPROJECT, REQUIREMENTS, UV_LOCK = "pyproject.toml", "requirements.txt", "uv.lock"
POETRY_LOCK = "poetry.lock"
VENV = ".venv"

_VENV = f"python3 -m venv {VENV}"
# A project without a build system is no package: what it depends on is installed, it is not.
_DEPENDENCIES = (
    f'python3 -c \'import tomllib; print(*tomllib.load(open("{PYPROJECT}", "rb"))'
    f'["project"].get("dependencies", []), sep="\\n")\' > /tmp/{REQUIREMENTS}'
    f" && pip install -r /tmp/{REQUIREMENTS}"
)
# Nothing can be installed into a release: what installs is not part of it.
_WITHOUT_PIP = "python3 -m pip uninstall --quiet --yes pip"
# uv notes when it built a project that is a package; nothing reads that in a release.
_WITHOUT_TIMES = (
    f"find {VENV} -name uv_cache.json -execdir sed -i /uv_cache.json/d RECORD ';' -delete"
)
# Compiled without times in them: equal sources give equal files, which are not looked at again.
_COMPILE = (
    "PYTHONHASHSEED=0 python3 -m compileall -q -q -f --invalidation-mode unchecked-hash . || true"
)
_POETRY_EXPORT = "poetry export -o requirements.txt"
# Nobody else reads its lock. It stands outside of the project's environment, which it makes.
_POETRY_BY_UV = 'UV_TOOL_BIN_DIR="$HOME/bin" uv tool install --quiet poetry'
_POETRY_BY_PIP = (
    'python3 -m venv "$HOME/poetry" && "$HOME/poetry/bin/pip" install --quiet poetry'
    ' && ln -s ../poetry/bin/poetry "$HOME/bin/poetry"'
)
_POETRY_INSTALL = (
    "POETRY_VIRTUALENVS_IN_PROJECT=true POETRY_VIRTUALENVS_OPTIONS_NO_PIP=true"
    " poetry install --only main --no-interaction --no-ansi"
)
_PIPENV_EXPORT = "pipenv requirements > requirements.txt"
_PDM_EXPORT = "pdm export --prod -o requirements.txt"
_EXPORTS = {
    "poetry.lock": _POETRY_EXPORT,
    "Pipfile.lock": _PIPENV_EXPORT,
    "Pipfile": _PIPENV_EXPORT,
    "pdm.lock": _PDM_EXPORT,
}
_UNREAD_LOCKS = ("poetry.lock", "Pipfile.lock", "pdm.lock")
_PYTHON = Need(("python3",), "python3")
_ENSUREPIP = Need(("python3",), "python3-venv", module="ensurepip")
_UV = Need(("uv",), "uv")


def dependency_file(listing: Listing) -> str | None:
    """Return the file that says what a Python project depends on, None for no such project.

    Raises:
        BuildFailedError: `build.config_invalid`, when `pyproject.toml` is not TOML.
    """
    found = listing.first_file(UV_LOCK, REQUIREMENTS)
    if found is not None or not listing.has_file(PYPROJECT):
        return found
    if listing.has_file(POETRY_LOCK):
        return POETRY_LOCK
    return PYPROJECT if _is_project(read_pyproject(listing)) else None


def recipe(listing: Listing, programs: Collection[str], *, runs: bool) -> Recipe:
    """Return what a Python project does by itself: a virtual environment below its own folder.

    `programs`: those that the machine has; uv is used where it is there, as pip would be. `runs`: a
    program of the project serves, and starts sooner when it is compiled.

    Raises:
        BuildFailedError: `build.config_invalid`.
    """
    decided = dependency_file(listing)
    has_uv = "uv" in programs
    install: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()
    client_needs = (_UV,)
    by_uv = decided == UV_LOCK or (has_uv and decided not in (None, POETRY_LOCK))
    if runs and by_uv and _is_package(listing):
        prune = (_WITHOUT_TIMES,)
    if decided == UV_LOCK:
        install = ("uv sync --locked --no-dev",)
    elif decided == POETRY_LOCK:
        alone = "" if _is_package(listing) else " --no-root"
        install = (_POETRY_BY_UV if has_uv else _POETRY_BY_PIP, _POETRY_INSTALL + alone)
        client_needs = (_UV,) if has_uv else (_ENSUREPIP,)
    elif decided is not None and has_uv:
        install = ("uv venv", f"uv pip install {_wanted(listing, decided)}")
    elif decided is not None:
        install = (_VENV, _with_pip(listing, decided))
        prune = (_WITHOUT_PIP,) if runs else ()
        client_needs = (_ENSUREPIP,)
    notes = [
        f"{name} is not read: `{_EXPORTS[name]}` pins its versions"
        for name in _UNREAD_LOCKS
        if listing.has_file(name) and decided not in (UV_LOCK, name)
    ]
    return Recipe(
        by=(decided,) if decided else (),
        prepare=() if decided == UV_LOCK else (_VENV,),
        install=install,
        prune=prune,
        finish=(_COMPILE,) if runs else (),
        needs=(_PYTHON,),
        client_needs=client_needs if decided else (),
        notes=tuple(notes),
    )


def unread(listing: Listing) -> tuple[str, ...]:
    """Return what is to be said of a tree that is no Python project here, and would be one of
    Pipenv, PDM or Poetry: nothing is installed.
    """
    name = listing.first_file(*_EXPORTS)
    if name is None and "[tool.poetry" in listing.files.get(PYPROJECT, ""):
        name = PYPROJECT
    if name is None:
        return ()
    export = _EXPORTS.get(name, _POETRY_EXPORT)
    return (f"{name} is not read, and nothing is installed: commit what `{export}` writes",)


def refuse_package_mode(listing: Listing) -> None:
    """Refuse a project of Poetry's that is no package where it would be installed as one.

    Raises:
        BuildFailedError: `build.config_invalid`, with what to do.
    """
    if dependency_file(listing) != PYPROJECT or not _is_package(listing):
        return
    tool = read_pyproject(listing).get("tool")
    poetry = tool.get("poetry") if isinstance(tool, dict) else None
    if isinstance(poetry, dict) and poetry.get("package-mode") is False:
        raise BuildFailedError(
            CONFIG_INVALID,
            f"{listing.path(PYPROJECT)} says package-mode = false, which Poetry alone can install:"
            f" commit {POETRY_LOCK}, which `poetry lock` writes, or set build.install in"
            " managed.toml",
        )


def _wanted(listing: Listing, decided: str) -> str:
    if decided == PYPROJECT and _is_package(listing):
        return "-e ."
    return f"-r {decided}"


def _with_pip(listing: Listing, decided: str) -> str:
    wanted = _wanted(listing, decided)
    return _DEPENDENCIES if wanted == f"-r {PYPROJECT}" else f"pip install {wanted}"


def read_pyproject(listing: Listing) -> dict[str, Any]:
    """Return what `pyproject.toml` says, nothing where there is none.

    Raises:
        BuildFailedError: `build.config_invalid`, when it is not TOML.
    """
    text = listing.text(PYPROJECT)
    if text is None:
        return {}
    try:
        return read_toml(text)
    except ValueError as error:
        raise BuildFailedError(
            CONFIG_INVALID, f"{listing.path(PYPROJECT)} is not TOML: {error}"
        ) from error


def _is_package(listing: Listing) -> bool:
    return "build-system" in read_pyproject(listing)


def _is_project(pyproject: dict[str, Any]) -> bool:
    """Many a pyproject.toml holds nothing but the settings of a linter."""
    return "project" in pyproject or "build-system" in pyproject
