"""What serves a Python project that does not say it, by what it depends on and usual names. Pure.

A server is taken only where the project depends on one: what else runs, or under another name, is
for a Procfile to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.plan import Listing
from hooks.builds.profiles.python import REQUIREMENTS, read_pyproject

MANAGE = "manage.py"
COLLECT_STATIC = "python manage.py collectstatic --no-input"
_MODULES = ("app", "main", "wsgi", "asgi")
"""Where Flask, FastAPI and their like have `app`. Source: Flask and FastAPI, "Deployment"."""
_ASGI = ("fastapi", "litestar", "quart", "starlette")  # what gunicorn by itself answers 500 for
_GUNICORN, _UVICORN = "gunicorn {} --bind 127.0.0.1:$PORT", "uvicorn {} --port $PORT"
_FASTAPI = "fastapi run --host 127.0.0.1 --port $PORT"  # it finds the application itself
# What a line of a file of pip's has behind the requirement: a comment, options, more lines.
# Source: pip, "Requirements File Format".
_REST = re.compile(r"\s+(?:#|--).*|\\$")
_LINE_CHARS_MAX = 2000
# What clients take though it is no requirement any more: `a>=20.0.*`. Source: PEP 440, `==` alone.
_LOOSE = re.compile(r"\s*([A-Za-z0-9][\w.-]*\s*+(?:\[[^\]]*\])?)\s*+[=<>!~][^;]*")
# These two begin with a script, and not with a name in it. Visitors are to come by gitd alone:
# Streamlit by itself listens on every address of the machine.
# Source: Streamlit, "Deploy your app on Community Cloud" and "config.toml", `server.address`;
# Gradio, "Environment variables".
_SCRIPTS, _STREAMLIT_APP = ("app", "main"), "streamlit_app"
_STREAMLIT = (
    "streamlit run {}.py --server.headless true --server.address 127.0.0.1 --server.port $PORT"
)
_GRADIO = "GRADIO_SERVER_NAME=127.0.0.1 GRADIO_SERVER_PORT=$PORT python {}.py"
_SETTINGS = re.compile(r"""DJANGO_SETTINGS_MODULE["']\s*,\s*["']([A-Za-z_][\w.]*?)\.settings\b""")


def server(listing: Listing) -> str | None:
    """Return the command that serves the project, None where that is not to be seen."""
    return application_server(listing) or _script_server(listing)


def application_server(listing: Listing) -> str | None:
    """Return the command of a server that the project depends on, None where it has none."""
    names = requirements(listing)
    if (project := _django_project(listing)) is not None:
        if "gunicorn" in names:
            return _GUNICORN.format(f"{project}.wsgi")
        return _UVICORN.format(f"{project}.asgi:application") if "uvicorn" in names else None
    if "fastapi[standard]" in names or "fastapi[all]" in names:
        return _FASTAPI
    module = _module(listing)
    if module is None:
        return None
    if "uvicorn" in names and "flask" not in names:
        return _UVICORN.format(f"{module}:app")
    if "gunicorn" in names and _asgi(names) is None:
        return _GUNICORN.format(f"{module}:app")
    return None


def _script_server(listing: Listing) -> str | None:
    """Return the command of a script that serves itself, None where there is none."""
    if _django_project(listing) is not None:
        return None
    names = requirements(listing)
    scripts = [name for name in (_STREAMLIT_APP, *_SCRIPTS) if listing.has_file(f"{name}.py")]
    if "streamlit" in names and scripts:
        return _STREAMLIT.format(scripts[0])
    scripts = [name for name in scripts if name in _SCRIPTS]
    return _GRADIO.format(scripts[0]) if "gradio" in names and scripts else None


def lack(listing: Listing) -> str:
    """Say what a project without `server` would need for one."""
    module = _module(listing)
    found = MANAGE if _django_project(listing) is not None else f"{module}.py" if module else None
    framework = _asgi(requirements(listing))
    if found == f"{module}.py" and framework is not None:
        return f"it has {found} and {framework}, and lacks uvicorn, which serves ASGI"
    if found is not None:
        return (
            f"it has {found}, and no server for it among what it depends on, which is gunicorn,"
            " or uvicorn for ASGI"
        )
    if listing.has_file(MANAGE):
        return f"{MANAGE} does not name the settings as `django-admin startproject` does"
    usual = ", ".join(f"{name}.py" for name in _MODULES)
    return f"there is neither {MANAGE} nor one of {usual}"


def collects_static(listing: Listing) -> bool:
    """Say whether the project serves what Django collects, which WhiteNoise does."""
    return listing.has_file(MANAGE) and "whitenoise" in requirements(listing)


def requirements(listing: Listing) -> frozenset[str]:
    """Return the names that a project depends on here, as `fastapi` and `fastapi[standard]`.

    What is for another system or Python is none of them. A `pyproject.toml` that is none names
    nothing: beside `requirements.txt` nobody else reads it.
    """
    try:
        pyproject = read_pyproject(listing)
    except BuildFailedError:
        pyproject = {}
    wanted = _table(pyproject, "project").get("dependencies")
    lines = [each for each in wanted if isinstance(each, str)] if isinstance(wanted, list) else []
    found = {name for line in lines for name in _names(line)}
    found.update(_poetry_names(_table(pyproject, "tool", "poetry", "dependencies")))
    return _file_names(listing.files.get(REQUIREMENTS, "")) | found


@lru_cache(maxsize=4)  # a detection asks several times
def _file_names(text: str) -> frozenset[str]:
    """Return what a file of pip's names."""
    lines = (_REST.sub("", line) for line in text.splitlines())
    return frozenset(name for line in lines for name in _names(line))


def _names(line: str) -> Iterator[str]:
    """Yield what a requirement names, nothing where it is none. Source: PEP 508."""
    if len(line) > _LINE_CHARS_MAX:
        return
    try:
        found = _requirement(line)
        if found.marker is not None and not found.marker.evaluate():
            return
    except (ValueError, RecursionError):  # it is none, or what it asks of the system is nothing
        return
    yield from _with_extras(found.name, found.extras)


def _requirement(line: str) -> Requirement:
    """Return the requirement that a line is, without its versions where they are none.

    Raises:
        ValueError: It is none.
    """
    try:
        return Requirement(line)
    except ValueError:
        loose = _LOOSE.fullmatch(line)
        if loose is None:
            raise
        return Requirement(loose[1])


def _poetry_names(table: dict[str, Any]) -> Iterator[str]:
    for name, wanted in table.items():
        extras = wanted.get("extras") if isinstance(wanted, dict) else None
        yield from _with_extras(name, extras if isinstance(extras, list) else ())


def _with_extras(name: str, extras: Iterable[object]) -> Iterator[str]:
    name = canonicalize_name(name)
    yield name
    yield from (f"{name}[{extra.lower()}]" for extra in extras if isinstance(extra, str))


def _asgi(names: frozenset[str]) -> str | None:
    """Return the ASGI framework that a project is made with, None where it has Flask, or none."""
    return next((name for name in _ASGI if name in names and "flask" not in names), None)


def _table(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        inner = document.get(key)
        document = inner if isinstance(inner, dict) else {}
    return document


def _module(listing: Listing) -> str | None:
    return next((name for name in _MODULES if listing.has_file(f"{name}.py")), None)


def _django_project(listing: Listing) -> str | None:
    """Return the package with the settings, as the script of `startproject` names it."""
    found = _SETTINGS.search(listing.files.get(MANAGE, ""))
    return found[1] if found is not None else None
