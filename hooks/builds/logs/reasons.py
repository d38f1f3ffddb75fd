"""Reasons: lines of programs that say why a step failed, and what whoever pushed can do.

Such a line is often far above the end: what is missing is listed below it, one line each. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hooks.builds.profiles.runtimes import RUNTIME_MISSING

LINE_CHARS_MAX = 200
COMMAND_FAILED = "build.command_failed"


@dataclass(frozen=True, slots=True)
class Reason:
    """What a line with `mark` in it means.

    `is_said`: the line names what is wrong, and so is repeated before the advice.
    `is_all`: what the program says behind it is of no more use than the advice.
    """

    mark: str
    advice: str
    is_said: bool = False
    is_all: bool = False
    code: str = COMMAND_FAILED


_NO_SUCH = "mend its name or version, or add the registry that has it"
_OTHER_VERSION = "ask for a version that this server has, or let its operator install that one"
REASONS = (
    Reason(
        "can only install packages when your package.json and package-lock.json",
        "package-lock.json does not fit package.json: run `npm install` and commit it",
        is_all=True,
    ),
    Reason(
        "ERR_PNPM_OUTDATED_LOCKFILE",
        "pnpm-lock.yaml does not fit package.json: run `pnpm install` and commit it",
        is_all=True,
    ),
    Reason(
        "Your lockfile needs to be updated, but yarn was run with",
        "yarn.lock does not fit package.json: run `yarn install` and commit it",
        is_all=True,
    ),
    Reason(
        "The lockfile would have been modified by this install",
        "yarn.lock does not fit package.json: run `yarn install` and commit it",
        is_all=True,
    ),
    Reason(
        "needs to be updated, but `--locked` was provided",
        "uv.lock does not fit pyproject.toml: run `uv lock` and commit it",
        is_all=True,
    ),
    Reason(
        "is not present in the lock file",
        "composer.lock does not fit composer.json: run `composer update` and commit it",
        is_all=True,
    ),
    Reason(
        "changed significantly since poetry.lock was last generated",
        "poetry.lock does not fit pyproject.toml: run `poetry lock` and commit it",
        is_all=True,
    ),
    *(
        Reason(mark, _OTHER_VERSION, is_said=True, code=RUNTIME_MISSING)
        for mark in (
            "is incompatible with this module. Expected version",  # yarn
            "Your Node version is incompatible with",  # pnpm
            "Not compatible with your version of node/npm",  # npm, with engine-strict
            "is not supported by Astro!",
            "For Next.js, Node.js version",
            "requires a minimum Node.js version of",  # Angular
            "the current Python version (",  # uv; one that was requested is the project's own
            "requires a different Python",  # pip
            "does not satisfy that requirement",  # composer: PHP, or an extension of it
        )
    ),
    Reason(
        "it is missing from your system. Install or enable PHP's",  # composer
        "the server's operator installs it, as in `apt-get install php-xml` for ext-dom",
        is_said=True,
        code=RUNTIME_MISSING,
    ),
    Reason("No matching version found for", _NO_SUCH, is_said=True),  # npm, pnpm
    Reason("No matching distribution found for", _NO_SUCH, is_said=True),  # pip
    Reason("was not found in the ", _NO_SUCH, is_said=True),  # uv
    Reason("there is no version of", _NO_SUCH, is_said=True),  # uv
    Reason("No solution found when resolving", "what is asked for does not fit together"),  # uv
    *(
        Reason(
            mark,
            "the registry lacks what corepack verifies a package manager by: run"
            " `corepack use pnpm@10`, or yarn with its version, and commit package.json, which has"
            " its digest then",
        )
        for mark in ("No compatible signature found in", "Cannot find matching keyid")
    ),
    Reason(
        "from Google Fonts.",  # Next.js
        "keep the font in the repository (next/font/local), or let the server's operator allow"
        " fonts.googleapis.com and fonts.gstatic.com (builders.egress_allow)",
        is_said=True,
    ),
    Reason(
        "without having set the STATIC_ROOT setting",  # Django
        'set STATIC_ROOT, as in STATIC_ROOT = BASE_DIR / "staticfiles", or build.command in'
        " managed.toml to what is to be done instead, or to false",
    ),
    *(
        Reason(
            mark,
            "the settings read it, and a build is given what [build] variables in managed.toml"
            " names; [build] command = false collects no static files",
            is_said=True,
        )
        for mark in (
            "KeyError: 'SECRET_KEY'",  # os.environ
            "The SECRET_KEY setting must not be empty",  # Django
            "ImproperlyConfigured: Set the ",  # django-environ
            "not found. Declare it as envvar",  # python-decouple
        )
    ),
    Reason(
        "No interpreter found for",  # uv
        _OTHER_VERSION,
        is_said=True,
        code=RUNTIME_MISSING,
    ),
)
_BEFORE = re.compile(r"^\W*(?:(?:error|cause): |npm (?:error|ERR!) \w+ )?", re.IGNORECASE)
_ORDER = {reason: number for number, reason in enumerate(REASONS)}


class Found:
    """The best reason among the lines so far: the one that stands first in `REASONS`."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self._line = ""

    def look(self, lines: Sequence[str]) -> None:
        """Look for reasons in what a program printed."""
        text = "\n".join(lines)  # most have none, which is seen sooner in all at once
        better = REASONS[: _ORDER[self.reason]] if self.reason is not None else REASONS
        for reason in better:
            if reason.mark in text:
                self.reason = reason
                self._line = next(line for line in lines if reason.mark in line)
                return

    @property
    def code(self) -> str:
        return self.reason.code if self.reason is not None else COMMAND_FAILED

    @property
    def is_all(self) -> bool:
        """Whether no more need be said than `text`."""
        return self.reason is not None and self.reason.is_all

    @property
    def text(self) -> str | None:
        """One line for whoever pushed, None where no reason was found."""
        if self.reason is None:
            return None
        if not self.reason.is_said:
            return self.reason.advice
        said = _BEFORE.sub("", self._line, count=1)[:LINE_CHARS_MAX]
        return f"{said.rstrip('. ')}: {self.reason.advice}"
