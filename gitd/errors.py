"""What the outer layer refuses, and why.

GitdError
├── ConfigError                   the settings cannot be used
├── StartError                    this machine, or the data folder, does not let it start
├── LoopFailedError               a part of the server that goes on for ever has ended
├── AuthenticationError           nobody that we know: `code` says how far it got
├── AccessDeniedError             somebody we know, who may not: `code` says why
│   ├── ScopeInsufficientError    the key lacks a scope: `scope` names it
│   ├── AddressRefusedError       the key may not be used from this address
│   ├── KeyBoundError             the key is bound to less than the request touches
│   ├── BeyondKeyError            the request gives away more than the key has
│   └── SecretRolledError         the secret is the one that the key had before it was rolled
├── RateLimitedError              the key made too many requests: `retry_after_s` says when again
├── KeyInvalidError               an API key cannot be made like that: `param` names the field
└── RequestError                  the request cannot be understood: `code`, `param`
"""

from __future__ import annotations

from collections.abc import Mapping


class GitdError(Exception):
    """Root of all that gitd raises on purpose."""


class ConfigError(GitdError):
    """A setting is unknown, unreadable, or not of its kind. The message names it."""


class StartError(GitdError):
    """The data folder or the machine does not let gitd start. The message says what to do."""


class LoopFailedError(GitdError):
    """A part of the server that goes on for ever has ended: the server has to be started afresh."""

    def __init__(self) -> None:
        super().__init__(
            "a part of the server has failed, and its log says how: it has to be started again"
        )


class AuthenticationError(GitdError):
    """There is no key, or none that we know, or it is no longer good."""

    def __init__(self, message: str, *, code: str = "authentication.invalid_key") -> None:
        super().__init__(message)
        self.code = code


class AccessDeniedError(GitdError):
    """The key is good, and does not allow this."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ScopeInsufficientError(AccessDeniedError):
    """The key lacks a scope."""

    def __init__(self, scope: str) -> None:
        super().__init__("scope.insufficient", f"This API key lacks the scope {scope}.")
        self.scope = scope


class AddressRefusedError(AccessDeniedError):
    """The key has a list of networks, and the client is in none of them."""

    def __init__(self, address: str | None) -> None:
        super().__init__(
            "permission.address_refused",
            f"This API key may not be used from {address or 'an unknown address'}.",
        )
        self.address = address


class KeyBoundError(AccessDeniedError):
    """The key is bound to a site or an environment, and the request reaches beyond it."""

    def __init__(self, bound_to: str) -> None:
        super().__init__(
            "permission.key_bound",
            f"This API key is bound to {bound_to}, and the request reaches beyond it.",
        )
        self.bound_to = bound_to


class BeyondKeyError(AccessDeniedError):
    """The request gives another key more than the asking one has."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "permission.beyond_key",
            f"This API key gives away no more than it has: {reason}.",
        )


class SecretRolledError(AccessDeniedError):
    """The key was rolled, and the secret is the one from before: it changes no key any more."""

    def __init__(self) -> None:
        super().__init__(
            "permission.secret_rolled",
            "This API key was rolled: its old secret makes, changes and ends no key.",
        )


class RateLimitedError(GitdError):
    """The key has made as many requests of a kind as it may for now."""

    def __init__(self, kind: str, retry_after_s: int, headers: Mapping[str, str]) -> None:
        super().__init__(
            f"This API key has made too many requests ({kind}): try again in {retry_after_s} s."
        )
        self.retry_after_s = retry_after_s
        self.headers = {**headers, "Retry-After": str(retry_after_s)}


class KeyInvalidError(GitdError):
    """An API key cannot be made like that."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class RequestError(GitdError):
    """A request cannot be understood. `param` names the field at fault, if one is."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
