"""How a roll fails.

PipelineError
└── RollFailedError     the environment stays as it was; `code` says why
"""

from __future__ import annotations

from typing import Final

from hooks.errors import PipelineError

HOST_FAILED: Final = "deployment.host_failed"
"""The code for what is neither the artifact's fault nor the release's."""


class RollFailedError(PipelineError):
    """A release was not put in place. What the environment served before, it still serves.

    `output`: the last lines that the release itself said, if that is what failed.
    """

    def __init__(self, code: str, message: str, *, output: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.output = output
