"""How a build fails: by its own fault, or by ours.

PipelineError
├── BuildFailedError            theirs: the commit cannot be built; `code` says why
├── BuildOverError              nobody's: it ended while something was done for it
└── BuilderError                ours
    ├── SandboxUnavailableError     this machine cannot run the sandbox
    ├── GroupsUnavailableError      no control groups can be made here: limits are kept otherwise
    ├── ControlUnreachableError     control does not answer the slot
    └── LeaseLostError              the job is not this slot's any more
"""

from __future__ import annotations

from hooks.errors import PipelineError


class BuildFailedError(PipelineError):
    """The commit cannot be built as it is. The message tells its author what to change."""

    def __init__(self, code: str, message: str, *, exit_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.exit_status = exit_status


class BuildOverError(PipelineError):
    """The build was canceled or ended otherwise: nobody waits any more for what was being done."""


class BuilderError(PipelineError):
    """The build could not go on, through no fault of the commit."""


class SandboxUnavailableError(BuilderError):
    """The sandbox could not be set up here: nothing of the commit was run."""


class GroupsUnavailableError(BuilderError):
    """No control groups can be made here."""


class ControlUnreachableError(BuilderError):
    """Control does not answer, or not in the words of `wire`."""


class LeaseLostError(BuilderError):
    """The job was taken away, or control was away for longer than the lease lasts."""
