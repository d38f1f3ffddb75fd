"""Advice: what whoever pushed can do about a build or a roll that failed, by its code. Pure."""

from __future__ import annotations

OF_THE_COMMIT = frozenset(
    {
        "build.config_invalid",
        "build.lfs_pointers",
        "build.output_invalid",
        "build.output_missing",
        "build.undetected",
    }
)
"""How a build fails however often the same commit is built."""
_OF_THE_COMMIT_OR_NOT = frozenset(
    {
        "build.command_failed",
        "build.limit_exceeded",
        "build.output_too_large",
        "build.runtime_missing",
        "build.secret_in_output",
        "build.submodule_unavailable",
        "build.timed_out",
        "deployment.health_check_failed",
        "deployment.release_command_failed",
        "deployment.start_failed",
        "deployment.timed_out",
    }
)
_MEND = "mend it, commit, and push again"


def after_failure(code: str | None, again: str) -> list[str]:
    """Return what to do next. `again` is the command that does the same once more.

    `code` is None where somebody canceled it: nothing is to be mended then. That holds for failures
    that are the server's, too.
    """
    if code in OF_THE_COMMIT:
        return [f"{_MEND}: no retry helps"]
    if code in _OF_THE_COMMIT_OR_NOT:
        return [_MEND, f"or, if it was not the commit's fault: {again}"]
    return [f"to try again without a push: {again}"]
