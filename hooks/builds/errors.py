"""How a build fails: by its own fault, or by ours.

PipelineError
├── BuildFailedError            theirs: the commit cannot be built; `code` says why
└── SandboxUnavailableError     ours: this machine cannot run the sandbox
"""

from __future__ import annotations

from hooks.errors import PipelineError


class BuildFailedError(PipelineError):
    """The commit cannot be built as it is. The message tells its author what to change."""

    def __init__(self, code: str, message: str, *, exit_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.exit_status = exit_status


class SandboxUnavailableError(PipelineError):
    """The sandbox could not be set up here: nothing of the commit was run."""
