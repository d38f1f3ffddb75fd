"""Why a step failed, by what package clients print. The lines are theirs."""

from __future__ import annotations

import pytest

from hooks.builds.logs.reasons import Found

NPM_CI = "can only install packages when your package.json and package-lock.json or npm-shrinkwrap"
NO_SUCH = "mend its name or version, or add the registry that has it"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            f"npm error `npm ci` {NPM_CI}.json are in sync. Please update your lock file",
            "package-lock.json does not fit package.json: run `npm install` and commit it",
        ),
        (
            ' ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with "frozen-lockfile" because',
            "pnpm-lock.yaml does not fit package.json: run `pnpm install` and commit it",
        ),
        (
            "error Your lockfile needs to be updated, but yarn was run with `--frozen-lockfile`.",
            "yarn.lock does not fit package.json: run `yarn install` and commit it",
        ),
        (
            "\u27a4 YN0028: \u2502 The lockfile would have been modified by this install, which",
            "yarn.lock does not fit package.json: run `yarn install` and commit it",
        ),
        (
            "error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided.",
            "uv.lock does not fit pyproject.toml: run `uv lock` and commit it",
        ),
        (
            '- Required package "a/b" is not present in the lock file.',
            "composer.lock does not fit composer.json: run `composer update` and commit it",
        ),
        (
            (
                "pyproject.toml changed significantly since poetry.lock was last generated. Run"
                " `poetry lock` to fix the lock file."
            ),
            "poetry.lock does not fit pyproject.toml: run `poetry lock` and commit it",
        ),
        (
            "npm error notarget No matching version found for left-pad@99.",
            f"No matching version found for left-pad@99: {NO_SUCH}",
        ),
        (
            "ERROR: No matching distribution found for nosuch==9",
            f"No matching distribution found for nosuch==9: {NO_SUCH}",
        ),
        (
            "  cause: Because nosuch was not found in the package registry and you require it",
            f"Because nosuch was not found in the package registry and you require it: {NO_SUCH}",
        ),
        (
            "  \u2570\u2500\u25b6 Because there is no version of flask==99 and you require it.",
            f"Because there is no version of flask==99 and you require it: {NO_SUCH}",
        ),
        (
            "    [cause]: Error: No compatible signature found in package metadata",
            (
                "the registry lacks what corepack verifies a package manager by: run"
                " `corepack use pnpm@10`, or yarn with its version, and commit package.json, which"
                " has its digest then"
            ),
        ),
        (
            "Failed to fetch Geist Mono from Google Fonts.",
            (
                "Failed to fetch Geist Mono from Google Fonts: keep the font in the repository"
                " (next/font/local), or let the server's operator allow fonts.googleapis.com and"
                " fonts.gstatic.com (builders.egress_allow)"
            ),
        ),
        (
            (
                "django.core.exceptions.ImproperlyConfigured: You're using the staticfiles app"
                " without having set the STATIC_ROOT setting to a filesystem path."
            ),
            (
                'set STATIC_ROOT, as in STATIC_ROOT = BASE_DIR / "staticfiles", or build.command in'
                " managed.toml to what is to be done instead, or to false"
            ),
        ),
        *(
            (
                line,
                (
                    f"{line.rstrip('.')}: the settings read it, and a build is given what"
                    " [build] variables in managed.toml names; [build] command = false collects"
                    " no static files"
                ),
            )
            for line in (
                "KeyError: 'SECRET_KEY'",
                (
                    "django.core.exceptions.ImproperlyConfigured: The SECRET_KEY setting must not"
                    " be empty."
                ),
                (
                    "django.core.exceptions.ImproperlyConfigured: Set the SECRET_KEY environment"
                    " variable"
                ),
                (
                    "decouple.UndefinedValueError: SECRET_KEY not found. Declare it as envvar or"
                    " define a default value."
                ),
            )
        ),
    ],
)
def test_reason_of_a_client_comes_with_what_to_do(line: str, reason: str) -> None:
    found = Found()
    found.look(["before", line, *["after"] * 100])
    assert (found.text, found.code) == (reason, "build.command_failed")


def test_reason_that_says_more_wins_whichever_came_first() -> None:
    found = Found()
    said = "cause: Because nosuch was not found in the package registry"
    found.look(["error: No solution found when resolving dependencies"])
    assert found.text == "what is asked for does not fit together"
    found.look([said])
    found.look(["No solution found when resolving dependencies"])
    assert found.text is not None
    assert found.text.startswith("Because nosuch")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "error: No interpreter found for Python 3.19 in search path",
            "No interpreter found for Python 3.19 in search path: ask for a version that",
        ),
        (
            (
                'error a@1.0.0: The engine "node" is incompatible with this module. Expected'
                ' version ">=22". Got "20.1.0"'
            ),
            'error a@1.0.0: The engine "node" is incompatible with this module. Expected version',
        ),
        (
            "npm error notsup Not compatible with your version of node/npm: a@1.0.0",
            "Not compatible with your version of node/npm: a@1.0.0: ask for a version that",
        ),
        (
            "Node.js v20.1.0 is not supported by Astro!",
            "Node.js v20.1.0 is not supported by Astro!: ask for a version that",
        ),
        (
            'You are using Node.js 18.1.0. For Next.js, Node.js version ">=20.9.0" is required.',
            "You are using Node.js 18.1.0. For Next.js, Node.js version",
        ),
        (
            "      Because the current Python version (3.11.2) does not satisfy Python>=3.12 and",
            "Because the current Python version (3.11.2) does not satisfy Python>=3.12 and: ask",
        ),
        (
            "ERROR: Package 'a' requires a different Python: 3.11.2 not in '>=3.13'",
            "Package 'a' requires a different Python: 3.11.2 not in '>=3.13': ask for a version",
        ),
        (
            (
                "    - Root composer.json requires php >=8.4 but your php version (8.2.36) does not"
                " satisfy that requirement."
            ),
            (
                "Root composer.json requires php >=8.4 but your php version (8.2.36) does not"
                " satisfy that requirement: ask for a version"
            ),
        ),
        (
            (
                "    - a/b 1.0 requires ext-dom * -> it is missing from your system. Install or"
                " enable PHP's dom extension."
            ),
            (
                "a/b 1.0 requires ext-dom * -> it is missing from your system. Install or enable"
                " PHP's dom extension: the server's operator installs it"
            ),
        ),
    ],
)
def test_runtime_that_the_server_lacks_is_no_fault_of_the_command(line: str, said: str) -> None:
    found = Found()
    found.look(["before", line, "after"])
    assert found.code == "build.runtime_missing"
    assert found.text is not None
    assert found.text.startswith(said)


def test_python_that_the_project_itself_asks_for_is_no_lack_of_the_server() -> None:
    found = Found()
    found.look(
        [
            "  x No solution found when resolving dependencies for split",
            "  ╰─▶ Because the requested Python version (>=3.8) does not satisfy Python>=3.9 and",
        ]
    )
    assert found.text == "what is asked for does not fit together"
    assert found.code == "build.command_failed"


def test_what_says_no_reason_has_none() -> None:
    found = Found()
    found.look(["npm error code ELIFECYCLE", "Error: Cannot find module"])
    assert (found.text, found.code) == (None, "build.command_failed")
