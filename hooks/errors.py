"""What a use case can refuse, and why. HTTP is known elsewhere.

PipelineError
├── NotFoundError               `kind` is what was looked for: site, environment, build, ...
├── RefusedError                the request makes no sense as things stand: `code` says why
│   └── AmbiguousEnvironmentError
├── InvalidRequestError         the request itself is wrong: `param` names the field
└── IdempotencyKeyReusedError   the key belongs to another request
"""

from __future__ import annotations

from collections.abc import Sequence


class PipelineError(Exception):
    """Root of all that hooks raise on purpose."""


class NotFoundError(PipelineError):
    """There is no such thing, or the caller may not know of it: the two look alike."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind.replace('_', ' ')} {name!r} here.")
        self.kind = kind
        self.name = name


class RefusedError(PipelineError):
    """The state of things forbids it. `code` is dotted and never changes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidRequestError(PipelineError):
    """A field of the request is wrong."""

    def __init__(self, message: str, *, param: str, code: str = "request.invalid") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class AmbiguousEnvironmentError(InvalidRequestError):
    """A kind was named that several environments have."""

    def __init__(self, kind: str, slugs: Sequence[str]) -> None:
        names = ", ".join(slugs)
        super().__init__(
            f"This site has several {kind} environments: name one of {names}.",
            param="to_env",
            code="environment.ambiguous",
        )
        self.slugs = tuple(slugs)


class IdempotencyKeyReusedError(PipelineError):
    """The idempotency key was used for another request."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key belongs to another request of the last 24 hours: "
            "send a new key with a new request."
        )
