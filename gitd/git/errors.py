"""What a git request can fail with, before it becomes an answer.

GitdError
├── GitRequestError                 `message` is for the user
│   ├── NotAuthenticatedError       401 and a challenge
│   ├── NotAllowedError             403, its message shown
│   ├── NotFoundError               404
│   ├── TooManyRequestsError        429, its message shown
│   ├── NoRoomError                 507, its message shown
│   ├── UnsupportedBodyError        415: type or encoding
│   ├── BodyTooLargeError           413
│   ├── BodyInvalidError            400: the bytes are no git request
│   └── BodyStalledError            the client sent nothing for too long
└── PushRefusedError                a whole push is refused; the reason stands at each ref
"""

from __future__ import annotations

from collections.abc import Mapping

from gitd.errors import GitdError


class GitRequestError(GitdError):
    """Root: a git request that is answered with something else than git data."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class NotAuthenticatedError(GitRequestError):
    """Nobody is logged in, or with wrong credentials: answered with 401 and a challenge."""

    def __init__(self, message: str = "", *, challenges: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.challenges = challenges or ('Basic realm="git"',)


class NotAllowedError(GitRequestError):
    """The actor may see the repository but not do this: 403, with the message as text."""


class NotFoundError(GitRequestError):
    """No such repository, or none that this actor may know of: 404."""


class TooManyRequestsError(GitRequestError):
    """The actor asks too often: 429, with the message as text. `headers` say when to come again."""

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class NoRoomError(GitRequestError):
    """The disk has no room for what the client would send: 507, with the message as text."""


class UnsupportedBodyError(GitRequestError):
    """A body of another type or encoding than the service takes."""


class BodyTooLargeError(GitRequestError):
    """A body, or a part of it, exceeds its bound."""


class BodyInvalidError(GitRequestError):
    """A body that is no git request."""


class BodyStalledError(GitRequestError):
    """The client sent nothing for longer than the limit."""


class PushRefusedError(GitdError):
    """A receiver refuses a whole push; `reason` is what stands behind each ref."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
