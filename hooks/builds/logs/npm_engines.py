"""Engines: npm's warnings of packages that ask for another Node, five lines each. Pure.

Where such a package fails later it seldom says that it is this, and often in another step. Which
of Node and npm is too old the warning does not say: where a package asks for both, both are told.
Source: npm 11, `lib/utils/display.js` (`npm warn EBADENGINE`), and npm-install-checks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LINE = re.compile(r"npm (?:warn|WARN) EBADENGINE ?(.*)")
_BEGINS, _ENDS = "Unsupported engine {", "}"
_LINES_MAX = 20
_PACKAGE = re.compile(r"\bpackage: '([^']{1,200})'")
_NODE = re.compile(r"\bnode: 'v?([^']{1,200})'")
_NPM = re.compile(r"\bnpm: '([^']{1,200})'")


class EngineFilter:
    """Makes one line of each warning, and keeps what the first one says."""

    def __init__(self) -> None:
        self.first: str | None = None
        """As `a@1.0.0 asks for node >=22; this server has 20.1.0`."""
        self._held: list[str] = []

    def rest(self, lines: Sequence[str]) -> list[str]:
        """Return the lines with one for each warning, which may go on in the next ones."""
        if not self._held and not any("EBADENGINE" in line for line in lines):
            return list(lines)
        return [kept for line in lines for kept in self._kept(line)]

    def end(self) -> list[str]:
        """Return what is left of a warning that does not end."""
        held, self._held = self._held, []
        return held

    def _kept(self, line: str) -> list[str]:
        found = _LINE.fullmatch(line.rstrip())
        if found is None or (not self._held and found[1] != _BEGINS):
            return [*self.end(), line]
        self._held.append(line)
        if found[1] != _ENDS and len(self._held) < _LINES_MAX:
            return []
        return self._told(self.end())

    def _told(self, held: list[str]) -> list[str]:
        asked, _, current = "\n".join(held).partition(" current: ")
        package, wanted, has = _PACKAGE.search(asked), _NODE.search(asked), _NODE.search(current)
        if package is None or wanted is None or has is None:
            return held
        said, here = f"{package[1]} asks for node {wanted[1]}", has[1]
        if wanted_npm := _NPM.search(asked):
            has_npm = _NPM.search(current)
            if has_npm is None:
                return held
            said, here = f"{said} and npm {wanted_npm[1]}", f"{here} and {has_npm[1]}"
        self.first = self.first or f"{said}; this server has {here}"
        return [f"npm warn EBADENGINE {said}"]
