"""The errors of the API: one table of codes, one table from exceptions to codes.

A code never changes its meaning. Its type fixes the status, but for the few that HTTP has a status
of its own for. The tables also make the pages that `doc_url` points at.

Source: contract §2 "Errors".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gitd.errors import (
    AccessDeniedError,
    AuthenticationError,
    KeyInvalidError,
    RateLimitedError,
    RequestError,
)
from hooks.errors import (
    IdempotencyKeyReusedError,
    InvalidRequestError,
    NotFoundError,
    RefusedError,
)
from storage.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    JobLogPositionError,
    RecordConflictError,
    SignatureInvalidError,
    StorageError,
    StorageFullError,
)

INVALID = "invalid_request"
AUTHENTICATION = "authentication"
PERMISSION = "permission"
NOT_FOUND = "not_found"
CONFLICT = "conflict"
RATE_LIMIT = "rate_limit"
OURS = "api_error"
JOB = "job"  # not an answer of ours: the `error` of a job that failed

STATUS_OF_TYPE = {
    INVALID: 400,
    AUTHENTICATION: 401,
    "quota_exceeded": 402,
    PERMISSION: 403,
    NOT_FOUND: 404,
    CONFLICT: 409,
    RATE_LIMIT: 429,
    OURS: 500,
}


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """A row of the table: what has happened, and what to do about it."""

    type: str
    code: str
    meaning: str
    remedy: str
    own_status: int | None = None

    @property
    def status(self) -> int:
        return self.own_status or STATUS_OF_TYPE.get(self.type, 0)


def _spoken(kind: str) -> str:
    return "API key" if kind == "api_key" else kind


ROWS = (
    ErrorCode(
        INVALID,
        "request.invalid",
        "A field of the request is unknown, missing, or has a value that it cannot have.",
        "Correct the field that param names. Unknown fields are refused, so that a typing error "
        "is never taken for a default.",
    ),
    ErrorCode(
        INVALID,
        "request.json_invalid",
        "The body is not one JSON object.",
        "Send one JSON object in UTF-8.",
    ),
    ErrorCode(
        INVALID,
        "request.media_type_unsupported",
        "The body is declared to be something other than JSON.",
        "Send Content-Type: application/json.",
        own_status=415,
    ),
    ErrorCode(
        INVALID,
        "request.too_large",
        "The body is larger than any request of this API needs to be.",
        "Send less. Sources travel by git push, not through the API.",
        own_status=413,
    ),
    ErrorCode(
        INVALID,
        "request.timed_out",
        "The body did not come in time.",
        "Send it at once, as a whole.",
        own_status=408,
    ),
    ErrorCode(
        INVALID,
        "request.method_not_allowed",
        "The path exists, and has no such method.",
        "Use one of the methods that the Allow header lists.",
        own_status=405,
    ),
    ErrorCode(
        INVALID,
        "request.version_invalid",
        "Forge-Version is not a date.",
        "Send a date such as 2026-06-23, or leave the header out.",
    ),
    ErrorCode(
        INVALID,
        "idempotency.key_invalid",
        "The Idempotency-Key is empty, too long, or not printable.",
        "Send 1 to 255 printable ASCII characters, such as a UUID.",
    ),
    ErrorCode(
        INVALID,
        "idempotency.key_reused",
        "The Idempotency-Key belongs to another request of the last 24 hours.",
        "Send a new key with every new request, and the same one only to repeat a request.",
    ),
    ErrorCode(
        INVALID,
        "pagination.cursor_invalid",
        "The cursor is damaged, or belongs to another list or other filters.",
        "Send next_cursor exactly as the last page gave it, to the same list with the same "
        "filters; or begin again without a cursor.",
    ),
    ErrorCode(
        INVALID,
        "stream.position_invalid",
        "Last-Event-ID is no id of an event of this stream.",
        "Send the id of the last event that was seen; or begin again without one.",
    ),
    ErrorCode(
        INVALID,
        "log.offset_invalid",
        "The log has fewer bytes than the offset says.",
        "Read it from its beginning: its newest lines were lost, or it is not kept any more.",
    ),
    ErrorCode(
        INVALID,
        "environment.ambiguous",
        "Several environments have the kind that to_env names.",
        "Name one of them by its slug or id; the message lists them.",
    ),
    ErrorCode(
        AUTHENTICATION,
        "authentication.required",
        "The request carries no API key.",
        "Send Authorization: Bearer mfk_live_... .",
    ),
    ErrorCode(
        AUTHENTICATION,
        "authentication.invalid_key",
        "The API key is unknown, revoked or expired.",
        "Check that the secret was copied whole, or ask for a new key.",
    ),
    ErrorCode(
        PERMISSION,
        "scope.insufficient",
        "The API key lacks the scope that the message names.",
        "Use a key that has the scope. Scopes of a key never change: make a new one.",
    ),
    ErrorCode(
        PERMISSION,
        "permission.address_refused",
        "The API key may be used only from certain networks, and this client is in none of them.",
        "Call from one of the key's networks.",
    ),
    ErrorCode(
        PERMISSION,
        "permission.key_bound",
        "The API key is bound to a site or an environment, and the request reaches beyond it.",
        "Use a key that is bound to nothing, or to the whole site.",
    ),
    ErrorCode(
        PERMISSION,
        "permission.beyond_key",
        "The request gives a key a later end, or more networks, than the asking key has itself.",
        "Ask for less: an earlier end, or some of the networks that the message names.",
    ),
    ErrorCode(
        PERMISSION,
        "permission.secret_rolled",
        "The API key was rolled, and the secret is its old one, which makes, changes and ends no "
        "key.",
        "Use the secret that the roll showed.",
    ),
    ErrorCode(
        RATE_LIMIT,
        "rate_limit.exceeded",
        "The API key made more requests than it may in this time.",
        "Wait for as many seconds as Retry-After says. Follow a job by its stream, or by ?wait=, "
        "and not by asking again and again.",
    ),
    ErrorCode(NOT_FOUND, "route.not_found", "There is no such path.", "See /v1/openapi.json."),
    *(
        ErrorCode(
            NOT_FOUND,
            f"{kind}.not_found",
            f"There is no such {_spoken(kind)}, or this API key may not know of it.",
            f"Check the id{names}, and which site the API key is bound to.",
        )
        for kind, names in (
            ("site", " or the name"),
            ("environment", " or the slug"),
            ("domain", " or the host name"),
            ("build", ""),
            ("artifact", ""),
            ("deployment", ""),
            ("release", ""),
            ("job", ""),
            ("variable", ""),
            ("secret", ""),
            ("api_key", ""),
            ("webhook", ""),
            ("delivery", ""),
        )
    ),
    ErrorCode(
        NOT_FOUND,
        "ref.not_found",
        "The site's repository has no such branch, tag or commit.",
        "Push it first, or name one that is there.",
    ),
    ErrorCode(
        CONFLICT,
        "variable.other_kind",
        "There is a secret where a variable was to be set, or a variable for a secret.",
        "Delete it first: what was set to be secret is not made readable by a mistake.",
    ),
    ErrorCode(
        CONFLICT,
        "variable.too_many",
        "The site or the environment has as many variables and secrets as it may.",
        "Delete those that nothing uses, or put several values into one.",
    ),
    ErrorCode(
        CONFLICT,
        "api_key.too_many",
        "As many API keys come from the first maker of the asking key as may.",
        "Revoke those that nobody uses.",
    ),
    ErrorCode(
        CONFLICT,
        "site.name_taken",
        "Another site has this name, or a preview or the server itself its address.",
        "Choose another name.",
    ),
    ErrorCode(
        CONFLICT,
        "site.branch_routed_elsewhere",
        "By a branch route, the branch that was to be the default one does not go live.",
        "PUT branch routes that send it live first; or choose another branch.",
    ),
    ErrorCode(
        CONFLICT,
        "webhook.too_many",
        "There are as many webhooks as there may be.",
        "Delete those that nobody needs.",
    ),
    ErrorCode(
        CONFLICT,
        "environment.exists",
        "The branch has a preview already.",
        "Use that one: GET the environments with ?branch= finds it.",
    ),
    ErrorCode(
        CONFLICT,
        "environment.too_many",
        "The site has as many previews as it may.",
        "Delete branches or previews that are done; or raise the setting previews.count_max.",
    ),
    ErrorCode(
        CONFLICT,
        "environment.routed_elsewhere",
        "A branch route sends the branch to production, to staging, or nowhere.",
        "Use the environment that the branch goes to; or change the branch routes first.",
    ),
    ErrorCode(
        CONFLICT,
        "environment.permanent",
        "Production and staging live as long as their site.",
        "Delete previews only, or the site.",
    ),
    ErrorCode(
        CONFLICT,
        "domain.exists",
        "The host name leads to this environment already.",
        "Use that one: GET it by its host name.",
    ),
    ErrorCode(
        CONFLICT,
        "domain.taken",
        "The host name leads to another environment of this server, perhaps of another site.",
        "Remove it there first. Whose it is, a key is told only of its own site.",
    ),
    ErrorCode(
        CONFLICT,
        "domain.reserved",
        "The host name is, or is below, one of the server's own: the sites' domain, or the name "
        "that git and the API answer at.",
        "Give a name of another domain.",
    ),
    ErrorCode(
        CONFLICT,
        "domain.too_many",
        "The environment has as many custom domains as it may.",
        "Remove those that nobody comes by.",
    ),
    ErrorCode(
        CONFLICT,
        "domain.not_for_previews",
        "The environment is a preview: those come and go with their branches.",
        "Give the name to production or staging.",
    ),
    ErrorCode(
        CONFLICT,
        "environment.nothing_running",
        "Nothing runs on the environment that was to be promoted or restarted.",
        "Push to it or deploy an artifact onto it first.",
    ),
    ErrorCode(
        CONFLICT,
        "host.away",
        "The site host, which has what its programs print, is not connected to this server.",
        "Try again in a moment; see whether gitd host runs, and its log. What it serves, it "
        "serves on.",
    ),
    ErrorCode(
        CONFLICT,
        "log.readers_too_many",
        "As many read what programs print as may at the same time.",
        "Try again when others have ended.",
    ),
    ErrorCode(
        CONFLICT,
        "artifact.previews_only",
        "Only builds of previews made the artifact, and so only they say how it is run.",
        "Promote the preview that runs it; or build its commit for this environment.",
    ),
    ErrorCode(
        CONFLICT,
        "artifact.revoked",
        "The key that vouched for the artifact was revoked, and nothing else vouches for it.",
        "Build its commit again; or let the server's operator vouch for it with gitd signing-key "
        "resign.",
    ),
    ErrorCode(
        CONFLICT,
        "release.no_previous",
        "Nothing ran on the environment before: there is nothing to go back to.",
        "Name a release of this environment to bring that very one back.",
    ),
    ErrorCode(
        CONFLICT,
        "release.already_current",
        "The release that was asked for is what runs now.",
        "Nothing needs to be done.",
    ),
    ErrorCode(
        CONFLICT,
        "release.unavailable",
        "What the release ran is not kept any more: it is older than the releases that are.",
        "Build its commit again and deploy that; the message names it. Releases with available "
        "true can be brought back.",
    ),
    ErrorCode(
        CONFLICT,
        "release.config_gone",
        "What the release's programs were given is not kept any more.",
        'Send config "now" (mf rollback --config now): they are given what is set now.',
    ),
    ErrorCode(
        CONFLICT,
        "deployment.under_way",
        "A deployment is on its way to the environment: its program begins anew by that.",
        "Wait for its job, which the message names; restart it then if that is still wanted.",
    ),
    ErrorCode(
        CONFLICT,
        "artifact.expired",
        "The artifact is not kept any more: nothing runs it, and it is neither recent nor pinned.",
        "Pin it to bring it back, as long as that is possible; else build its commit again.",
    ),
    ErrorCode(
        CONFLICT,
        "request.conflict",
        "Another request changed the same thing at the same moment.",
        "Look at how things stand now, then try again.",
    ),
    ErrorCode(
        OURS,
        "api.internal",
        "The server failed. It is not the request's fault, and it is in the server's log.",
        "Try again with the same Idempotency-Key. If it stays so, report the request_id.",
    ),
    ErrorCode(
        OURS,
        "storage.full",
        "The server's disk has no room. Nothing was changed.",
        "Make room on the server, then try again.",
    ),
    ErrorCode(
        OURS,
        "artifact.missing",
        "A part of the artifact is not in the store.",
        "Build the commit again; gitd check --repair on the server looks for another copy.",
    ),
    ErrorCode(
        OURS,
        "artifact.corrupt",
        "A part of the artifact is not what its digest says. It is never deployed.",
        "Build the commit again; gitd check --repair on the server looks for another copy.",
    ),
    ErrorCode(
        OURS,
        "artifact.signature_invalid",
        "No key that is trusted here vouches for the artifact. It is never deployed.",
        "Find out who changed the store; build the commit again.",
    ),
    ErrorCode(
        JOB,
        "build.undetected",
        "Nothing in the commit says how to build it.",
        "Add one of the files that the message names.",
    ),
    ErrorCode(
        JOB,
        "build.config_invalid",
        "managed.toml cannot be used as it is.",
        "Correct the key that the message names.",
    ),
    ErrorCode(
        JOB,
        "build.variable_missing",
        "managed.toml declares a variable for the build that is not set.",
        "Set what the message names, for the environment or its site; or do not declare it.",
    ),
    ErrorCode(
        JOB,
        "build.variables_unreadable",
        "The server could not open the values that are set. It is not the commit's fault.",
        "See the server's log: its key variables.key and its database do not belong together.",
    ),
    ErrorCode(
        JOB,
        "build.secret_in_output",
        "The output holds the value of a secret that the build was given. Nothing was kept.",
        "Let the build not write it to the file that the message names; what is no secret can be "
        "set as a variable.",
    ),
    ErrorCode(
        JOB,
        "build.runtime_missing",
        "The server lacks a program, or its version, that the build or the site needs.",
        "Ask its operator to install what the message names, or build another way in managed.toml.",
    ),
    ErrorCode(
        JOB,
        "build.submodule_unavailable",
        "A submodule is not on this server, or whoever started the build may not fetch from it.",
        "Push it to a site here and name it as ../SITE.git; or leave submodules out.",
    ),
    ErrorCode(
        JOB,
        "build.lfs_pointers",
        "Files of the commit are pointers of Git LFS: their contents are not in it.",
        "Commit the files themselves; or take the pointers as they are.",
    ),
    ErrorCode(
        JOB,
        "build.command_failed",
        "The build command ended with an error.",
        "Read the build's log; exit_status is the command's.",
    ),
    ErrorCode(
        JOB,
        "build.timed_out",
        "The build took longer than it may.",
        "Make it faster, or ask for more time in the server's settings.",
    ),
    ErrorCode(
        JOB,
        "build.limit_exceeded",
        "The build used more memory, processes, processor time or disk than it may.",
        "Let it use less, or ask for more in the setting that the message names.",
    ),
    ErrorCode(
        JOB,
        "build.output_missing",
        "The build command ended well, and its output folder is not there.",
        "Set build.output in managed.toml to the folder that the command writes.",
    ),
    ErrorCode(
        JOB,
        "build.output_invalid",
        "The output holds what no artifact may hold, such as a link that leads out of it.",
        "Remove the entry that the message names.",
    ),
    ErrorCode(
        JOB,
        "build.output_too_large",
        "The output, or the commit that it is made of, has too many files or bytes.",
        "Leave out what a visitor does not need.",
    ),
    ErrorCode(
        JOB,
        "build.sandbox_unavailable",
        "The server could not make a sandbox for the build. It is not the commit's fault.",
        "See the server's log; then build again.",
    ),
    ErrorCode(
        JOB,
        "build.builder_lost",
        "The builder went away in the middle of the build, more than once.",
        "See the server's log; then build again.",
    ),
    ErrorCode(
        JOB,
        "build.interrupted",
        "The server was restored from a backup that was made while the build ran.",
        "Build again.",
    ),
    ErrorCode(
        JOB,
        "deployment.interrupted",
        "The server was restored from a backup that was made while the deployment ran.",
        "Deploy again. What the environment served before, it serves still.",
    ),
    ErrorCode(
        JOB,
        "store.no_space",
        "The disk of the server has no room for the output. Nothing was kept; sites serve on.",
        "Make room on the server's disk; then build again.",
    ),
    ErrorCode(
        JOB,
        "store.quota_exceeded",
        "The artifacts of the site are larger together than they may be. Nothing was kept; what "
        "is live serves on.",
        "Delete previews, unpin artifacts, or ask for more (store.site_bytes_max).",
    ),
    ErrorCode(
        JOB,
        "build.superseded",
        "A newer push onto the same environment took the place of this build.",
        "Nothing: the newer build is on its way. The message names it.",
    ),
    ErrorCode(
        JOB,
        "build.source_unreadable",
        "The commit could not be read from the repository. It is not the commit's fault.",
        "Run gitd check on the server; then build again.",
    ),
    ErrorCode(
        JOB,
        "build.internal",
        "gitd failed while it built, or while it kept the output.",
        "See the server's log; then build again.",
    ),
    *(
        ErrorCode(JOB, code, f"{meaning} The prior release goes on serving.", remedy)
        for code, meaning, remedy in (
            (
                "release.unsigned",
                "The server could not sign that the artifact is to run.",
                "See the server's log: its signing key cannot be used.",
            ),
            (
                "release.statement_missing",
                "The site host was given no statement that the artifact is to run.",
                "Update and restart the server; then deploy again.",
            ),
            (
                "release.statement_invalid",
                "The statement that the artifact is to run does not hold.",
                "See the site host's log; find out who speaks for the server.",
            ),
            (
                "release.key_retired",
                "The statement that the artifact is to run bears a key that was retired before.",
                "Restart the server, so that it signs with the present key; then deploy again.",
            ),
            (
                "release.wrong_environment",
                "The statement that the artifact is to run is for another environment.",
                "See the site host's log; find out who speaks for the server.",
            ),
            (
                "release.replayed",
                "The environment went by a newer statement than the one that the server sent.",
                "Deploy again; if it stays so, the server's records are older than the site host.",
            ),
            (
                "release.config_unreadable",
                "What the release's programs are given of variables and secrets cannot be read.",
                "See the log of the server, and that of the site host; then deploy again.",
            ),
            (
                "release.expired",
                "The statement that the artifact is to run holds no longer.",
                "Deploy again; see that the clocks of server and site host agree.",
            ),
        )
    ),
    ErrorCode(
        JOB,
        "deployment.release_command_failed",
        "The release command ended with an error. The prior release goes on serving.",
        "Read the job's log.",
    ),
    ErrorCode(
        JOB,
        "deployment.start_failed",
        "The web process did not start, or ended at once. The prior release goes on serving.",
        "Read the job's log; the process must listen on $PORT.",
    ),
    ErrorCode(
        JOB,
        "deployment.health_check_failed",
        "The web process never answered its health check. The prior release goes on serving.",
        "Read the job's log; see run.health in managed.toml.",
    ),
    ErrorCode(
        JOB,
        "deployment.superseded",
        "Before its turn came, a newer deployment took its place. The job is canceled.",
        "Nothing needs to be done; the message names the newer deployment.",
    ),
    ErrorCode(
        JOB,
        "deployment.timed_out",
        "The roll took longer than it may. The prior release goes on serving.",
        "Try again; see the server's log.",
    ),
    ErrorCode(
        JOB,
        "deployment.host_failed",
        "The site host could not carry out the roll: its disk is full, for instance. The prior "
        "release goes on serving.",
        "See the site host's log; then deploy again.",
    ),
    ErrorCode(
        JOB,
        "deployment.host_unavailable",
        "No site host was connected for too long. What it serves, it serves on when it is back.",
        "See whether gitd host runs, and its log; then deploy again.",
    ),
)
CODES: dict[str, ErrorCode] = {row.code: row for row in ROWS}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told."""

    row: ErrorCode
    message: str
    param: str | None = None


Told = Callable[[Any], tuple[str, str | None]]


def _own_code(error: Any) -> tuple[str, str | None]:
    return error.code, getattr(error, "param", None)


def _always(code: str) -> Told:
    return lambda _: (code, None)


# The most specific first. What has no row, a client may not know: it reads as api.internal.
EXCEPTIONS: tuple[tuple[type[Exception], Told], ...] = (
    (AuthenticationError, _own_code),
    (AccessDeniedError, _own_code),
    (RateLimitedError, _always("rate_limit.exceeded")),
    (KeyInvalidError, lambda e: ("request.invalid", e.param)),
    (RequestError, _own_code),
    (NotFoundError, lambda e: (f"{e.kind}.not_found", None)),
    (RefusedError, _own_code),
    (InvalidRequestError, _own_code),
    (IdempotencyKeyReusedError, _always("idempotency.key_reused")),
    (JobLogPositionError, _always("stream.position_invalid")),
)
OUR_FAULTS: tuple[tuple[type[StorageError], str], ...] = (
    (RecordConflictError, "request.conflict"),
    (StorageFullError, "storage.full"),
    (ArtifactMissingError, "artifact.missing"),
    (ArtifactCorruptError, "artifact.corrupt"),
    (SignatureInvalidError, "artifact.signature_invalid"),
)


def refusal_of(error: Exception) -> Refusal:
    """What to tell a client that met `error`. The message of a fault of ours stays here."""
    for kind, told in EXCEPTIONS:
        if isinstance(error, kind):
            code, param = told(error)
            if code in CODES:
                return Refusal(CODES[code], str(error), param)
    for fault, code in OUR_FAULTS:
        if isinstance(error, fault):
            return Refusal(CODES[code], CODES[code].meaning)
    row = CODES["api.internal"]
    return Refusal(row, row.meaning)
