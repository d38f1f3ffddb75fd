"""Versions: which of the runtimes that a commit asks for this server has in another version. Pure.

A server has one Node and one Python: what a build gets is told in its first lines, where it is not
what was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion
from packaging.version import Version as PythonVersion

from hooks.builds.profiles.package_json import PACKAGE_JSON
from hooks.builds.profiles.plan import Listing, Plan
from hooks.builds.profiles.python import PYPROJECT
from hooks.builds.profiles.toml_text import read_toml
from hooks.builds.wire import VERSION_FILES

_NODE_FILES, _PYTHON_FILES = VERSION_FILES[:2], VERSION_FILES[2:]
_RANGE_CHARS_MAX = 200
_SHOWN_CHARS_MAX = 60
# A file that names a whole version is often older than its last digits matter.
_NODE_PARTS, _PYTHON_PARTS = 1, 2
_PINNED = re.compile(r"(?:v|python-)?(\d+(?:\.\d+)*)")
_COMPARATOR = re.compile(r"\s*(>=|<=|[><=^~])?\s*v?(\d+(?:\.\d+)*)(?:\.[x*X])*\s*")
_ANY = re.compile(r"\s*(?:[*xX]|latest)?\s*")
_HYPHEN = re.compile(r"(\S+)\s+-\s+(\S+)")
Version = tuple[int, ...]
Satisfies = Callable[[str, str], bool | None]


def unmet(listing: Listing, plan: Plan, toolchain: Mapping[str, str]) -> list[str]:
    """Return a line for each file that asks for another version than the toolchain has.

    What is spelled in a way that is not understood here asks for nothing.
    """
    used = {program for need in plan.needs for program in need.programs}
    lines = []
    for program, file, wanted, satisfies in _asked(listing):
        has = toolchain.get(program)
        if program in used and has is not None and satisfies(has, wanted) is False:
            name, shown = program.removesuffix("3"), wanted[:_SHOWN_CHARS_MAX]
            lines.append(f"{listing.path(file)} asks for {name} {shown}; this server has {has}")
    return lines


def satisfies_npm(has: str, wanted: str) -> bool | None:
    """Say whether a version is in a range as npm spells it; None where it is no such range.

    Source: node-semver, "Ranges".
    """
    if len(wanted) > _RANGE_CHARS_MAX or (found := re.match(r"\d+(?:\.\d+)*", has)) is None:
        return None
    version = _version(found[0])
    answers = [_in_all(version, part) for part in wanted.split("||")]
    return None if None in answers else any(answers)


def satisfies_python(has: str, wanted: str) -> bool | None:
    """Say whether a version is one that `requires-python` asks for; None where it says nothing.

    Source: PEP 440, "Version specifiers".
    """
    if len(wanted) > _RANGE_CHARS_MAX:
        return None
    try:
        return SpecifierSet(wanted).contains(PythonVersion(has), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None


def _asked(listing: Listing) -> Iterator[tuple[str, str, str, Satisfies]]:
    """Yield program, file, version or range, and how that is read."""
    for program, files, parts in (
        ("node", _NODE_FILES, _NODE_PARTS),
        ("python3", _PYTHON_FILES, _PYTHON_PARTS),
    ):
        for file in files:
            pinned = _PINNED.fullmatch(listing.files.get(file, "").strip())
            if pinned is not None:
                yield program, file, ".".join(pinned[1].split(".")[:parts]), satisfies_npm
    if isinstance(wanted := _engine(listing), str):
        yield "node", PACKAGE_JSON, wanted, satisfies_npm
    if isinstance(wanted := _requires_python(listing), str):
        yield "python3", PYPROJECT, wanted, satisfies_python


def _engine(listing: Listing) -> object:
    try:
        document = json.loads(listing.files.get(PACKAGE_JSON, "").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    engines = document.get("engines") if isinstance(document, dict) else None
    return engines.get("node") if isinstance(engines, dict) else None


def _requires_python(listing: Listing) -> object:
    try:
        project = read_toml(listing.files.get(PYPROJECT, "")).get("project")
    except ValueError:
        return None
    return project.get("requires-python") if isinstance(project, dict) else None


def _in_all(version: Version, text: str) -> bool | None:
    """Say whether a version fits each of some comparators."""
    if hyphen := _HYPHEN.fullmatch(text.strip()):
        text = f">={hyphen[1]} <={hyphen[2]}"
    if _ANY.fullmatch(text):
        return True
    fits, at = True, 0
    while at < len(text):
        found = _COMPARATOR.match(text, at)
        if found is None:
            return None
        fits = fits and _fits(version, found[1] or "", _version(found[2]))
        at = found.end()
    return fits


def _fits(version: Version, operator: str, bound: Version) -> bool:
    match operator:
        case ">=":
            return version >= bound
        case ">":
            return version >= _after(bound)
        case "<":
            return version < bound
        case "<=":
            return version < _after(bound)
        case "^":
            return bound <= version < _after(bound[:1])
        case "~":
            return bound <= version < _after(bound[:2])
        case _:
            return bound <= version < _after(bound)


def _after(bound: Version) -> Version:
    """The first version that is none of those that begin with `bound`."""
    return (*bound[:-1], bound[-1] + 1)


def _version(text: str) -> Version:
    return tuple(int(part[:9]) for part in text.split("."))
