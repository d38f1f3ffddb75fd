"""Exits: how `mf` ends when it does not end well, as a code for programs and words for people.

CliError
├── RefusedError        3  the server said no, or its answer shows that it would: its code, its
│                          message, what to do, its request id
└── UnreachableError    4  no answer, or none of this API's
    └── StrangeAnswerError
A failed job is a result and no error: the command that waited for it returns `ExitCode.FAILED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum

import click

from gitd.terminal import printable


class ExitCode(IntEnum):
    """Source: contract section 7; 130 is the shell's 128 + SIGINT."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


ADVICE = {
    "authentication.": (
        "Set FORGE_TOKEN to an API key that is valid here. On the server's machine "
        "`gitd key create --label NAME --preset deploy-bot --data DIR` makes one."
    ),
    "scope.insufficient": (
        "Use a key that has this scope: keys are never widened. On the server's machine "
        "`gitd key create --label NAME --scope {scope} --data DIR` makes one that has it, and no "
        "other."
    ),
    "site.not_found": (
        "`mf sites list` shows the sites that this key may see; `mf sites create NAME` makes one, "
        "with a key that has sites:write, and so does `gitd site create NAME` on the server."
    ),
    "site.branch_routed_elsewhere": (
        "`mf routes show --site SITE` shows where each branch goes; `mf routes set` changes that."
    ),
    "environment.not_found": "`mf env list --site SITE` shows the environments of a site.",
    "environment.ambiguous": "Name one of them by its slug.",
    "environment.nothing_running": "Push to it, or `mf deploy` an artifact onto it, first.",
    "deployment.under_way": "`mf jobs wait JOB` follows that; restart then, if still needed.",
    "ref.not_found": "Push it first; `git ls-remote` shows the branches and tags that are there.",
    "artifact.not_found": "`mf artifacts --site SITE --env ENV` shows what can be deployed.",
    "release.no_previous": "`mf releases --site SITE --env ENV` shows what there is to go back to.",
    "release.already_current": "`mf releases --site SITE --env ENV` shows the other releases.",
    "idempotency.key_reused": "Send each new request with a new --idempotency-key, or with none.",
    "rate_limit.": "Try again later.",
}


_SCOPE = re.compile(r"\b[a-z]+:[a-z]+\b")


class CliError(click.ClickException):
    """Ends the command: `message` for people, `advice` is what they can do, one line each."""

    def __init__(self, message: str, *advice: str) -> None:
        super().__init__(message)
        self.advice: Sequence[str] = advice

    def lines(self) -> list[str]:
        return [f"mf: {self.message}", *self.advice]

    def fields(self) -> dict[str, object]:
        """What `--json` prints of it: shaped like the API's error envelope."""
        return {"error": {"type": "client", "code": self.code(), "message": self.message}}

    def code(self) -> str:
        return "client.failed"


class RefusedError(CliError):
    """The server answered with an error envelope."""

    exit_code = ExitCode.REFUSED

    def __init__(
        self, envelope: Mapping[str, object], error: Mapping[str, object], *, status: int
    ) -> None:
        self.envelope = envelope
        self.status = status
        self.error_code = str(error.get("code") or f"http.{status}")
        param = f" ({error['param']})" if error.get("param") else ""
        said = str(error.get("message") or "no reason given")
        super().__init__(f"{self.error_code}{param}: {said}", *_advice(envelope, error))

    def code(self) -> str:
        return self.error_code

    def fields(self) -> dict[str, object]:
        return dict(self.envelope)


class UnreachableError(CliError):
    """No answer came, after all tries."""

    exit_code = ExitCode.UNREACHABLE

    def code(self) -> str:
        return "client.unreachable"


class StrangeAnswerError(UnreachableError):
    """Something answered, but not this API."""

    def code(self) -> str:
        return "client.strange_answer"


def fields_of(error: click.ClickException) -> dict[str, object]:
    """What `--json` prints of an error: wrong usage too, where nobody was asked."""
    if isinstance(error, CliError):
        return error.fields()
    code = "client.usage" if isinstance(error, click.UsageError) else "client.failed"
    message = printable(" ".join(error.format_message().split()))
    return {"error": {"type": "client", "code": code, "message": message}}


def _advice(envelope: Mapping[str, object], error: Mapping[str, object]) -> list[str]:
    named = _SCOPE.search(str(error.get("message") or ""))
    scope = named[0] if named else "SCOPE"
    known = _known_advice(str(error.get("code") or ""))
    advice = [line.replace("{scope}", scope) for line in known]
    if not advice and error.get("doc_url"):
        advice = [f"See {error['doc_url']}"]
    if envelope.get("request_id"):
        advice.append(f"Request id: {envelope['request_id']}")
    return advice


def _known_advice(code: str) -> list[str]:
    return [
        advice
        for known, advice in ADVICE.items()
        if code == known or (known.endswith(".") and code.startswith(known))
    ]


def report(error: click.ClickException) -> None:
    """Say on standard error why the command ends."""
    if not isinstance(error, CliError):
        error.show()
        return
    click.echo("\n".join(printable(line) for line in error.lines()), err=True)
